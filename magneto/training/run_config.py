"""Tell runs apart by their configurations: their names, and the differences that matter to the result."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from magneto.errors import ConfigError

# Already in the name, or without influence on the result.
_NOT_IN_NAME = ("task", "backbone", "size", "seed", "mode", "resume", "name", "runs_dir", "data_dir")
_VOLATILE = (
    "mode", "resume", "name", "runs_dir", "data_dir", "checkpoint", "input", "output", "prompt", "predict", "logger",
    "summary", "dry_run", "sweep", "trainer.enable_progress_bar", "trainer.threads",
    "trainer.accelerator", "trainer.num_sanity_val_steps", "callbacks.save_every", "callbacks.save_minutes",
    "callbacks.save_async", "data.num_workers", "data.data_dir",
)  # fmt: skip
_ABSENT = "(absent)"
NEUTRAL: tuple[Any, ...] = (None, False, 0, "", "none", [], {})
"""Values that switch a key off: a version without this key does the same."""


_SHARED = (
    "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accumulate_grad_batches", "data.batch_size",
    "data.batch_frames", "data.batch_tokens",
)  # fmt: skip
"""Keys that do not matter where `data.global_batch` says what a step sees."""


def shared_keys(flat: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of a flat configuration that make no difference, since any processes share its batch."""
    return _SHARED if flat.get("data.global_batch") else ()


def _is_volatile(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _VOLATILE)


def slug(overrides: Sequence[str]) -> str:
    """Return overrides as one file name of at most 120 bytes: letters and digits of all scripts, and `_.=,+-`.

    Any other character becomes `_`. A hash follows where the name was cut, or where a character that is not ASCII was
    replaced: two names that differ in such a character alone stay different.
    """
    given = unicodedata.normalize("NFC", "-".join(overrides))
    kept = "".join(char if _is_readable(char) else "\0" for char in given)
    text = re.sub("\0+", "_", kept).strip("_")
    lost = any(new == "\0" and not old.isascii() for old, new in zip(given, kept, strict=True))
    if lost or len(text.encode()) > 120:
        digest = hashlib.sha256("-".join(overrides).encode(errors="surrogatepass")).hexdigest()[:8]
        text = "-".join(filter(None, [text.encode()[:110].decode(errors="ignore"), digest]))
    return text


def _is_readable(char: str) -> bool:
    return char.isalnum() or char in "_.=,+-" or unicodedata.category(char).startswith("M")


def run_name(config: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Return the run's name: backbone, size, seed and whatever else was overridden; `name=` replaces it.

    Without a time stamp, so that the same command finds the same run again.

    Raises:
        ConfigError: `name=` leaves nothing that a folder can be called.
    """
    if config["name"]:
        name = slug([str(config["name"])])
        if name.strip(".") == "":
            raise ConfigError(
                f"name={config['name']}: no name for a folder. Set name to one with a letter or a digit in it."
            )
        return name
    rest = {}
    shared = shared_keys(flatten(config))
    for override in overrides:
        override = override.lstrip("+~")
        key = override.split("=", 1)[0].split("@")[0]
        if key not in (*_NOT_IN_NAME, *shared) and not _is_volatile(key):
            rest[key] = override  # of a key that is given twice, the last one counts
    head = f"{config['backbone']['placement']}-{config['size_name']}-seed{config['seed']}"
    return "-".join([head, slug(sorted(rest.values()))]) if rest else head


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"a.b": 1}` for `{"a": {"b": 1}}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return lines `key: old -> new` for every key that matters to the result and differs.

    A key that one side does not have makes no difference where the other switches it off: another version wrote it.
    """
    before, after = compared(old), compared(new)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        one, other = before.get(key, _ABSENT), after.get(key, _ABSENT)
        neutral = (key not in before and other in NEUTRAL) or (key not in after and one in NEUTRAL)
        if one != other and not neutral:
            lines.append(f"{key}: {one} -> {other}")
    return lines


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration that matter to the result, by their whole keys."""
    flat = flatten(config)
    shared = shared_keys(flat)
    return {key: value for key, value in flat.items() if key not in shared and not _is_volatile(key)}
