"""The user's own recordings, listed in JSON-lines manifests by NeMo's convention (see docs/data.md).

One object a line: `audio_filepath` (absolute, or relative to the manifest) and `text`; optional `duration` in
seconds (a recording of another length is skipped as damaged), `lang`, `speaker`, and for a manifest that is
divided here `split` (train, val, test) or `group`.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.data.features import Audio
from magneto.data.sources import SPLITS, Corpus, Groups, Skipped, Utterance, hash_split
from magneto.data.tokenizer import normalize_text
from magneto.errors import UserError

log = logging.getLogger(__name__)

EXAMPLE = '{"audio_filepath": "clips/a.wav", "duration": 2.5, "text": "hello there"}'


class ManifestSource:
    """Recordings (wav, flac, ogg, mp3; any sample rate; mono or more channels) with transcripts.

    Either `manifest`, one file that is divided by each line's `split`, and where it has none by a hash
    (fractions `val_fraction` and `test_fraction`; lines with the same `group`, the same audio file or the
    same text stand on one side); or `train`, `val` and `test`, one file each. language: of the lines without
    `lang`.
    """

    def __init__(
        self,
        manifest: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        language: str = "und",
    ) -> None:
        separate = {"train": train, "val": val, "test": test}
        if (manifest is None) == all(path is None for path in separate.values()):
            raise UserError(
                "data: name either `manifest` (one file, divided here) or `train`, `val` and `test` (three "
                "files)."
            )
        if manifest is None and (missing := [side for side, path in separate.items() if path is None]):
            raise UserError(
                f"data: the manifest of {' and '.join(missing)} is missing. Name all of train, val and "
                "test, or one `manifest` to be divided here."
            )
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise UserError(
                f"data: val_fraction={val_fraction} and test_fraction={test_fraction} must be above 0 and "
                "together below 1."
            )
        self.files = {
            side: Path(path).expanduser()
            for side, path in ({"": manifest, **separate}).items()
            if path is not None
        }
        self.fractions = (val_fraction, test_fraction)
        self.language = language

    def identity(self) -> dict[str, Any]:
        """The manifests' contents, and sizes and times of the audio files: replacing a broken file prepares
        anew.
        """
        audio = hashlib.sha256()
        for _, path in self._files():
            for entry in _lines(path):
                stat = entry.audio.stat() if entry.audio.is_file() else None
                audio.update(f"{entry.audio}\0{stat and (stat.st_size, stat.st_mtime_ns)}\0".encode())
        return {
            "corpus": "manifest",
            "recipe": 1,
            "manifests": {
                side: hashlib.sha256(path.read_bytes()).hexdigest() for side, path in self._files()
            },
            "audio": audio.hexdigest(),
            "fractions": list(self.fractions),
            "language": self.language,
        }

    def load(self, data_dir: Path) -> Corpus:
        """All lines. Raises `UserError` for a missing manifest and a line that breaks the convention."""
        utterances, skipped = [], []
        sides: dict[Path, set[str]] = {}
        for side, path in self._files():
            lines = list(_lines(path))
            for line in lines:
                sides.setdefault(line.audio, set()).add(side)
            splits = [side] * len(lines) if side else self._divide(lines)
            for line, split in zip(lines, splits, strict=True):
                name = f"{side}:{line.number}" if side else str(line.number)
                if not line.audio.is_file():
                    skipped.append(Skipped(name, str(line.audio), f"missing file (named in {path.name})"))
                    continue
                utterances.append(
                    Utterance(
                        id=name,
                        audio=Audio(line.audio),
                        text=line.text,
                        language=line.language or self.language,
                        speaker=line.speaker,
                        group=line.group or str(line.audio),
                        split=split,
                        duration=line.duration,
                    )
                )
        if shared := [path for path, names in sides.items() if len(names) > 1]:
            log.warning(
                "%d audio files stand in several manifests, the first %s: scores will flatter.",
                len(shared),
                shared[0],
            )
        return Corpus(utterances, skipped, {"manifests": [path.name for _, path in self._files()]})

    def _files(self) -> Iterator[tuple[str, Path]]:
        for side, path in self.files.items():
            if not path.is_file():
                raise UserError(
                    f"The manifest {path} is not there: check the path (data.sources...{side or 'manifest'})."
                )
            yield side, path

    def _divide(self, lines: list["Line"]) -> list[str]:
        groups = Groups()
        for line in lines:
            groups.union(f"line {line.relative}", ("audio", line.audio), ("text", normalize_text(line.text)))
            if line.group:
                groups.union(f"line {line.relative}", ("group", line.group))
        names = groups.names()
        val, test = self.fractions
        return [
            line.split or hash_split(names[f"line {line.relative}"], val=val, test=test) for line in lines
        ]


@dataclass(frozen=True)
class Line:
    """A line of a manifest, checked."""

    number: int  # from 1
    audio: Path
    relative: str  # as the manifest names it: the same on every machine when it is relative
    text: str
    duration: float | None
    language: str
    speaker: str
    group: str
    split: str


def _lines(manifest: Path) -> Iterator[Line]:
    with manifest.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{manifest}:{number}"
            try:
                text = raw.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}: not UTF-8 ({error.reason} at byte {error.start}). Save the manifest as UTF-8."
                ) from error
            if text.strip():
                yield _line(text, number, where, manifest.parent)


def _line(raw: str, number: int, where: str, folder: Path) -> Line:
    try:
        values = json.loads(raw)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}). A line looks like {EXAMPLE}"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: a line must be a JSON object, such as {EXAMPLE}")
    for key in ("audio_filepath", "text"):
        if key not in values:
            raise UserError(f"{where}: the key {key!r} is missing. A line looks like {EXAMPLE}")
    for key in ("audio_filepath", "text", "lang", "speaker", "group", "split"):
        if not isinstance(values.get(key, ""), str | int):
            raise UserError(
                f"{where}: {key!r} must be text, not {values[key]!r}. A line looks like {EXAMPLE}"
            )
    duration = values.get("duration")
    if duration is not None and (
        isinstance(duration, bool) or not isinstance(duration, int | float) or duration < 0
    ):
        raise UserError(f"{where}: 'duration' must be a number of seconds, not {duration!r}.")
    if values.get("offset"):
        raise UserError(
            f"{where}: 'offset' (a part of a longer recording) is not supported: cut the recording into one "
            "file a line."
        )
    split = str(values.get("split", ""))
    if split and split not in SPLITS:
        raise UserError(f"{where}: 'split' is {split!r}; it must be one of {', '.join(SPLITS)}.")
    relative = str(values["audio_filepath"])
    return Line(
        number=number,
        audio=folder / relative,
        relative=relative,
        text=str(values["text"]),
        duration=duration,
        language=str(values.get("lang", "")),
        speaker=str(values.get("speaker", "")),
        group=str(values.get("group", "")),
        split=split,
    )
