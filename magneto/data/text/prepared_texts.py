"""Tokenized texts in a prepared folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from magneto.data.collate import IGNORE as IGNORE  # part of the batches


@dataclass
class PreparedTexts:
    """A prepared folder of texts about images, read lazily so that it is cheap to send to a worker.

    kind: stem of the files that hold their arrays and the texts themselves.
    """

    folder: Path
    kind: str

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "kind": self.kind}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What was counted and found when the folder was written."""
        return dict(json.loads((self.folder / "facts.json").read_text(encoding="utf-8")))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """By name; the subclass says which."""
        with np.load(self.folder / f"{self.kind}.npz") as arrays:
            return dict(arrays)

    @cached_property
    def texts(self) -> list[str]:
        """All of them."""
        # A file's lines end with "\n" alone, those of splitlines() with characters that a text may hold, too.
        with (self.folder / f"{self.kind}.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line)["text"] for line in lines]
