"""Write files whole or not at all, and read metrics.csv of a run that was killed."""

import contextlib
import csv
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magneto.errors import ConfigError

CHECKPOINT_REMEDY = (
    "Use the other checkpoint of the run (best.ckpt or last.ckpt), or use resume=never to start over."
)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a killed writer, never leaves half of it.

    Bytes that are no UTF-8, which Python keeps as surrogates in a text, become the escapes of JSON and YAML.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ConfigError(
            f"{path}: cannot be written ({error}). Free space or change the permissions."
        ) from error


def finite(value: Any) -> Any:
    """Return plain values with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """Return the rows of a metrics.csv; a line that a killed process or machine left damaged is dropped.

    A complete line ends with a line break: a value cut in two would otherwise still read as a number.
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        # Line by line: to the csv module, a single quotation mark would make one value of all that follows.
        try:
            step, metric, value = next(csv.reader([line]), []) if '"' in line else line.split(",")
            row = int(step), metric, float(value)
        except (ValueError, csv.Error):  # also the header
            continue
        if "\0" not in metric and "\ufffd" not in metric:
            rows.append(row)
    return rows
