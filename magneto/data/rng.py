"""Random numbers of the data: from (run seed, purpose, epoch, example), never from a worker or a global
state.
"""

import hashlib

import numpy as np


def random_stream(seed: int, purpose: str, epoch: int, example: int = 0) -> np.random.Generator:
    """An independent stream per argument tuple (Philox, keyed by a hash of the tuple)."""
    key = hashlib.blake2b(f"{seed}/{purpose}/{epoch}/{example}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


def uniforms(seed: int, purpose: str, epoch: int, examples: np.ndarray, draws: int) -> np.ndarray:
    """As `random_stream`, for a whole batch at once: `draws` numbers for each example, whatever the batch.

    A stream each of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014),
    which can be computed for all examples together; a generator object for each would take longer than the images.

    Args:
        seed: of the run.
        purpose: what the numbers are for.
        epoch: counted from 0.
        examples: (B,) their numbers.
        draws: numbers for each.

    Returns:
        (B, draws) float64 in [0, 1).
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{epoch}".encode(), digest_size=8).digest()
    key = np.full(1, int.from_bytes(digest, "big"), np.uint64)
    states = _mixed(key + np.asarray(examples).astype(np.uint64) * GOLDEN)
    counters = np.arange(1, draws + 1, dtype=np.uint64) * GOLDEN
    numbers: np.ndarray = (_mixed(states[:, None] + counters) >> np.uint64(11)) * 2.0**-53
    return numbers


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of a uint64 depends on all others."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
