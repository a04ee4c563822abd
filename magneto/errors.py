"""The one exception that a user's mistake raises, and the hint that goes into its message."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake that the user can mend: the message names the file or key, what is wrong and the remedy.

    `run.py` prints it without a traceback and exits with code 2.
    """


def nearest(name: object, options: Iterable[str]) -> str:
    """A hint for a mistyped name, to end a message with: " Did you mean 'x'?", or "" if none is near."""
    matches = get_close_matches(str(name), list(options), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""
