"""The one exception that a user's mistake raises, and the hint that goes into its message."""

import dataclasses
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake that the user can mend: the message names the file or key, what is wrong and the remedy.

    `run.py` prints it without a traceback and exits with code 2.
    """


def nearest(name: object, options: Iterable[str]) -> str:
    """A hint for a mistyped name, to end a message with: " Did you mean 'x'?", or "" if none is near."""
    matches = get_close_matches(str(name), list(options), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from plain values, strictly.

    Args:
        cls: a dataclass.
        values: its fields by name.
        where: the configuration key that holds `values`, for the messages.

    Raises:
        UserError: a key that is no field (the nearest one is named), a missing one, or a value that `cls` refuses.
    """
    assert dataclasses.is_dataclass(cls)
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            raise UserError(f"{where}.{key}: there is no such key.{nearest(key, fields)}")
    try:
        return cls(**values)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
