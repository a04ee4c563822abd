"""Random numbers of the data: from (run seed, purpose, epoch, example), never from a worker or a global
state.
"""

import hashlib

import numpy as np


def random_stream(seed: int, purpose: str, epoch: int, example: int = 0) -> np.random.Generator:
    """An independent stream per argument tuple (Philox, keyed by a hash of the tuple)."""
    key = hashlib.blake2b(f"{seed}/{purpose}/{epoch}/{example}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
