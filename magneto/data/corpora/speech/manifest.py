"""The user's own recordings, listed in JSON-lines manifests by NeMo's convention (see docs/data.md).

One object a line: `audio_filepath` (absolute, or relative to the manifest) and `text`; optional `duration` in
seconds (a recording of another length is skipped as damaged), `lang`, `speaker`, and for a manifest that is
divided here `split` (train, val, test) or `group`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Corpus, Groups, Skipped, Utterance, hash_split
from magneto.data.io.audio import Audio
from magneto.data.transforms.text import normalize_text
from magneto.errors import DataError

KEYS = "data.corpora.manifest."  # as conf/data/manifest.yaml has them
EXAMPLE = '{"audio_filepath": "clips/a.wav", "duration": 2.5, "text": "hello there"}'


class ManifestReader:
    """Recordings (wav, flac, ogg, mp3 ...; any sample rate; mono or more channels) with transcripts.

    Either `manifest`, one file that is divided by each line's `split`, and where it has none by a hash
    (fractions `val_fraction` and `test_fraction`; lines with the same `group`, the same audio file or the
    same text stand on one side; a side that would stay empty gets the smallest group of another); or `train`,
    `val` and `test`, one file each; or `test` alone, to test a checkpoint. language: of the lines without `lang`.
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
            raise DataError(
                f"{'No' if manifest is None else 'More than one'} manifest is named. Set either {KEYS}manifest (one "
                f"file, divided here) or {KEYS}train, {KEYS}val and {KEYS}test (three files)."
            )
        missing = [side for side, path in separate.items() if path is None]
        if manifest is None and missing and missing != ["train", "val"]:
            raise DataError(
                f"The manifest of {' and '.join(missing)} is missing. Set "
                f"{' and '.join(KEYS + side for side in missing)}, or {KEYS}manifest to have one file divided."
            )
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise DataError(
                f"{KEYS}val_fraction={val_fraction} and test_fraction={test_fraction} must be above 0 and "
                "together below 1."
            )
        self.files = {
            side: Path(path).expanduser()
            for side, path in ({"": manifest, **separate}).items()
            if path is not None
        }
        self.fractions = (val_fraction, test_fraction)
        self.language = language

    def fingerprint(self) -> dict[str, Any]:
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
        """All lines. Raises `MagnetoError` for a missing manifest and a line that breaks the convention."""
        utterances, skipped = [], []
        advice = (
            f"Set {KEYS}train and {KEYS}val to train."
            if [*self.files] == ["test"]
            else "Check the manifests."
        )
        for side, path in self._files():
            lines = list(_lines(path))
            if side:
                splits = [side] * len(lines)
            else:
                splits, groups = self._divide(lines)
                advice = (
                    f"Give its lines a `split`, or raise {KEYS}val_fraction and test_fraction: lines with the "
                    f"same group, recording or text stand on one side, which leaves {groups} groups."
                )
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
        return Corpus(utterances, skipped, {"manifests": [path.name for _, path in self._files()]}, advice)

    def _files(self) -> Iterator[tuple[str, Path]]:
        for side, path in self.files.items():
            if not path.is_file():
                raise DataError(f"The manifest {path} is not there. Check {KEYS}{side or 'manifest'}.")
            yield side, path

    def _divide(self, lines: list["Line"]) -> tuple[list[str], int]:
        """The side of each line, and the number of groups that cannot be divided."""
        groups = Groups()
        texts = [normalize_text(line.text) for line in lines]
        for line, text in zip(lines, texts, strict=True):
            groups.union(f"line {line.relative}", ("audio", line.audio), ("text", text))
            if line.group:
                groups.union(f"line {line.relative}", ("group", line.group))
        names = groups.names()
        val, test = self.fractions
        own = [names[f"line {line.relative}"] for line in lines]
        side_of = {name: hash_split(name, val=val, test=test) for name in own}
        # The hash may leave a side of a small set empty: it gets the smallest group of what can be used.
        given, sizes = set(), Counter[str]()
        for line, text, name in zip(lines, texts, own, strict=True):
            if text and line.audio.is_file():
                given.add(line.split)
                sizes[name] += not line.split
        for side in SPLITS:
            held = Counter(side_of[name] for name, size in sizes.items() if size)
            donor = max(SPLITS, key=lambda one: held[one])
            if side not in given and not held[side] and held[donor] > 1:
                _, smallest = min((n, name) for name, n in sizes.items() if n and side_of[name] == donor)
                side_of[smallest] = side
        splits = [line.split or side_of[name] for line, name in zip(lines, own, strict=True)]
        return splits, len(side_of)


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
                raise DataError(
                    f"{where}: not UTF-8 ({error.reason} at byte {error.start}). Save the manifest as UTF-8."
                ) from error
            if text.strip():
                yield _line(text, number, where, manifest.parent)


def _line(raw: str, number: int, where: str, folder: Path) -> Line:
    try:
        values = json.loads(raw)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}). A line looks like {EXAMPLE}"
        ) from error
    if not isinstance(values, dict):
        raise DataError(f"{where}: a line must be a JSON object, such as {EXAMPLE}")
    for key in ("audio_filepath", "text"):
        if key not in values:
            raise DataError(f"{where}: the key {key!r} is missing. A line looks like {EXAMPLE}")
    for key in ("audio_filepath", "text", "lang", "speaker", "group", "split"):
        if not isinstance(values.get(key, ""), str | int):
            raise DataError(
                f"{where}: {key!r} must be text, not {values[key]!r}. A line looks like {EXAMPLE}"
            )
    duration = values.get("duration")
    if duration is not None and (
        isinstance(duration, bool) or not isinstance(duration, int | float) or duration < 0
    ):
        raise DataError(f"{where}: 'duration' must be a number of seconds, not {duration!r}.")
    if values.get("offset"):
        raise DataError(
            f"{where}: 'offset' (a part of a longer recording) is not supported: cut the recording into one "
            "file a line."
        )
    split = str(values.get("split", ""))
    if split and split not in SPLITS:
        raise DataError(f"{where}: 'split' is {split!r}; it must be one of {', '.join(SPLITS)}.")
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
