"""Exceptions for the mistakes of a user, and the hint in their messages."""

from collections.abc import Iterable
from difflib import get_close_matches


class MagnetoError(ValueError):
    """Base of the mistakes that a user can correct: the message names the file or key, what is wrong and the remedy.

    `run.py` prints it without a traceback and exits with code 2.
    """


class ConfigError(MagnetoError):
    """An unknown or impossible value in the configuration or on the command line."""


class DataError(MagnetoError):
    """A file or a corpus that is missing, damaged or not of the expected form."""


def nearest(name: object, options: Iterable[str]) -> str:
    """Return a hint for a mistyped name, to end a message with: " Did you mean 'x'?", or "" if none is near."""
    matches = get_close_matches(str(name), list(options), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""
