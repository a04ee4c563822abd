"""What a user gives to `mode=predict`."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from magneto.errors import ConfigError, MagnetoError

log = logging.getLogger("magneto")


@dataclass(frozen=True)
class PredictInput:
    """What a user gives to `mode=predict`.

    Attributes:
        path: `input=`, a file or a folder; "-" is the standard input.
        prompts: `prompt=`, given on the command line itself.
        key: what the user called the path, for messages.
    """

    path: str | None = None
    prompts: tuple[str, ...] | None = None
    key: str = "input"

    def lines(self) -> Iterator[str]:
        """The prompts, or the lines of the file as they come, without their ends and without a byte order mark.

        A later line that is not UTF-8 is read as an empty one, and named in the log: the others keep their places.

        Raises:
            ConfigError: there is no such file, or its first line is not UTF-8 text.
        """
        if self.prompts is not None:
            yield from self.prompts
            return
        assert self.path is not None
        if self.path != "-" and (
            not Path(self.path).exists() or Path(self.path).is_dir()
        ):  # a pipe is read, too
            raise ConfigError(
                f'{self.key}={self.path}: no such file. Name a text file, or "-" for the standard input.'
            )
        with contextlib.ExitStack() as opened:
            stream = (
                sys.stdin.buffer if self.path == "-" else opened.enter_context(Path(self.path).open("rb"))
            )
            for number, line in enumerate(stream, start=1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    why = f"{self.key}={self.path}, line {number}: not UTF-8 text ({error.reason} at byte {error.start})"
                    if number == 1:
                        raise ConfigError(f"{why}. Convert the file to UTF-8.") from error
                    log.warning("%s: read as an empty line", why)
                    yield ""

    def unanswered(self, number: int, why: MagnetoError) -> None:
        """Log why line `number` has an empty answer.

        Raises:
            MagnetoError: `why`, where it is the only prompt of the command line.
        """
        if self.prompts is not None and len(self.prompts) == 1:
            raise why
        log.warning("line %d of the input has an empty answer: %s", number, why)
