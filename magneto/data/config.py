"""Settings that all kinds of data share; a kind's own are in its `config.py`.

Types, ranges and defaults stand here once, and `magneto.config.validate.from_mapping` checks them; relations between
settings are checked in `__post_init__`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from magneto.errors import ConfigError

Count = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of every kind of data."""

    data_dir: str = "data"
    """Where corpora keep what they fetch, and where the prepared folders are."""
    num_workers: Annotated[int, Ge(0)] | Literal["auto"] = "auto"
    """Processes that load batches; 0: the main one. auto: that one where a CPU trains, which memory maps and decoded images
    hardly delay, and up to eight for each GPU, which would wait."""
    global_batch: Count | None = None
    """Size of the batch of an optimizer step, of all processes together, in the unit of the data's own setting
    (batch_size, batch_frames, batch_tokens), which then is the largest of one process: as many are accumulated as make it
    up. A run goes on with any number of processes that divides it."""
    streaming: bool = False
    """Training examples are read from the shards of the corpus while the model trains, and only a bounded number of held-out
    ones is prepared: for corpora that are larger than a disk."""
    seed: int = 0
    """Of the order, the masks and the augmentation of the training examples."""


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(DataConfig):
    """Settings of data that is divided by a hash where a corpus states no split."""

    val_fraction: Share = 0.05
    test_fraction: Share = 0.05

    def __post_init__(self) -> None:
        if sum(self.fractions) >= 1:
            raise ConfigError(
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} must leave something "
                "to train on: together below 1."
            )

    @property
    def fractions(self) -> tuple[float, float]:
        """The shares of val and test."""
        return float(self.val_fraction), float(self.test_fraction)


@dataclass(frozen=True, kw_only=True)
class StreamConfig(DataConfig):
    """Settings of `streaming`."""

    streams: Count | None = None
    """Readers that have shards of their own, all processes together; None: STREAMS. The batches depend on it and not on the
    number of processes and workers, which must divide it."""
    shuffle_window: Count | None = None
    """Examples of a shard that are shuffled together, which a stream holds in memory; None: WINDOW."""
    max_held_out: Count | None = None
    """Examples of val and of test that are read where the corpus states no split; None: HELD_OUT. Training skips all that
    the hash holds out, also those that are not read."""


def plain(config: DataConfig, *names: str) -> dict[str, Any]:
    """Return these settings by name."""
    values: Mapping[str, Any] = vars(config)
    return {name: values[name] for name in names}
