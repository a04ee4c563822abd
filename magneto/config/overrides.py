"""Overrides of the command line as Hydra's grammar reads them."""

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from magneto.config.groups import CONF

_TEXTS = ("prompt", "predict.query", "predict.question", "predict.stop")


def literal(argument: str) -> str:
    """Return the argument, quoted where its value is a sentence, or a path or else that Hydra's grammar cannot read.

    `prompt=The [MASK] of it, isn't it?` is the text itself, and so is `folder=~/my images (1)`. A list, a quoted string and
    `null` stay as they are, and so do paths that the grammar can read, such as the choices of a sweep.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    if key.startswith("+") and (CONF / key[1:]).is_dir():  # a group is in the defaults list: it is replaced
        argument, key = argument[1:], key[1:]
    if key not in _TEXTS or value.startswith(("[", "'", '"')) or value in ("", "null"):
        try:
            OverridesParser.create().parse_override(argument)
            return argument
        except HydraException:
            pass
    return f"{key}={quoted(value.replace('${', chr(92) + '${'))}"


def quoted(text: str) -> str:
    """Return a text in single quotation marks, for Hydra's grammar."""
    return QuotedString(text, Quote.single).with_quotes()
