"""Input of `mode=predict` and of `Task.predict`."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.errors import ConfigError, MagnetoError

log = logging.getLogger("magneto")


@dataclass(frozen=True)
class PredictInput:
    """Input of `mode=predict` and of `Task.predict`: one of `path`, `prompts` and `items`.

    Attributes:
        path: `input=`, a file or a folder; "-" is the standard input.
        prompts: `prompt=`, the texts themselves.
        items: from Python: paths, images or waveforms.
        key: what the user called the path, for messages.
        single: whether it is one text, image or recording, and neither a list nor a folder nor a file of texts.
    """

    path: str | None = None
    prompts: tuple[str, ...] | None = None
    items: tuple[Any, ...] | None = None
    key: str = "input"
    single: bool = False

    @classmethod
    def of(cls, given: Any, texts: bool) -> PredictInput:
        """Return the input that a Python object stands for.

        Args:
            given: a text, a path, an image, a waveform, or a list of them.
            texts: whether a string is a text, and a `Path` a file of texts; else both are paths.
        """
        if not texts:
            if isinstance(given, list | tuple):
                return cls(items=tuple(given))
            return cls(
                items=(given,),
                single=not (isinstance(given, str | Path) and Path(given).expanduser().is_dir()),
            )
        if isinstance(given, Path):
            return cls(path=str(given))
        one = isinstance(given, str)
        prompts = (given,) if one else tuple(given)
        if wrong := [text for text in prompts if not isinstance(text, str)]:
            raise ConfigError(
                f"{type(wrong[0]).__name__}: this model reads texts. Give a string, a list of strings, or a Path of a file "
                "with a text in each line."
            )
        return cls(prompts=prompts, single=one)

    def files(self) -> tuple[Any, ...]:
        """Return the paths, images or waveforms that are given.

        Raises:
            ConfigError: texts are given.
        """
        if self.items is not None:
            return self.items
        if self.path is None:
            raise ConfigError("prompt=: this model reads files. Set input= to a file or a folder of them.")
        return (self.path,)

    def lines(self) -> Iterator[str]:
        """Yield the prompts, or the lines of the file as they come, without their ends and without a byte order mark.

        A later line that is not UTF-8 is read as an empty one, and named in the log: the others keep their numbers.

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
