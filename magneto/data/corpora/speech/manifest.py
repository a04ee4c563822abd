"""The user's own recordings, listed in JSON-lines manifests by NeMo's convention (see docs/data.md).

One object a line: `audio_filepath` (absolute, or relative to the manifest) and `text`; optional `duration` in
seconds (a recording of another length is skipped as damaged), `lang`, `speaker`, and for a manifest that is
divided here `split` (train, val, test) or `group`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, Lt

from magneto.data.corpora.base import SPLITS, Groups, Skipped, hash_split, listed, stated_splits
from magneto.data.corpora.speech.base import SpeechCorpus, Utterance
from magneto.data.io.audio import Audio
from magneto.data.io.digest import file_digest, files_digest
from magneto.data.io.text import BadText, json_lines
from magneto.data.transforms.text import normalize_text
from magneto.errors import ConfigError, DataError

KEYS = "data.corpora.manifest."  # as conf/data/manifest.yaml has them
EXAMPLE = '{"audio_filepath": "clips/a.wav", "duration": 2.5, "text": "hello there"}'


class ManifestReader:
    """Recordings (wav, flac, ogg, mp3 ...; any sample rate; mono or more channels) with transcripts.

    Args:
        manifest: one file, divided by each line's `split`, and where it has none by a hash: lines with the same `group`,
            the same audio file or the same text have one split; a split that would be empty gets the smallest group of
            another.
        train: in place of `manifest`, one file for each split.
        val: likewise.
        test: likewise; alone, to test a checkpoint.
        val_fraction: share of the groups that the hash gives to val.
        test_fraction: to test.
        language: of the lines without `lang`.
    """

    def __init__(
        self,
        manifest: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        val_fraction: Annotated[float, Gt(0), Lt(1)] = 0.05,
        test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.05,
        language: str = "und",
    ) -> None:
        named = stated_splits("manifest", manifest, {"train": train, "val": val, "test": test})
        if val_fraction + test_fraction >= 1:
            raise ConfigError(
                f"{KEYS}val_fraction and test_fraction are {val_fraction} and {test_fraction}; they must be "
                "together below 1. Lower one."
            )
        self.files = {split: Path(path).expanduser() for split, path in named.items()}
        self.fractions = (val_fraction, test_fraction)
        self.language = language

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of the audio files names, sizes and times, so that a replaced one is prepared again."""
        return {
            "corpus": "manifest",
            "recipe": 1,
            "manifests": {split or "": file_digest(path) for split, path in self._files()},
            "audio": files_digest(
                path.parent / line.audio for _, path in self._files() for line in _lines(path)
            ),
            "fractions": list(self.fractions),
            "language": self.language,
        }

    def load(self, data_dir: Path) -> SpeechCorpus:
        """Return all lines. Raises `DataError` for a missing manifest and a line that breaks the convention."""
        testing = [*self.files] == ["test"]
        advice = f"Set {KEYS}train and {KEYS}val to train." if testing else "Check the manifests."
        found: list[Utterance | Skipped] = []
        for split, path in self._files():
            lines = list(_lines(path))
            splits = [split] * len(lines) if split else []
            if not split:
                splits, groups = self._divide(lines, path.parent)
                advice = (
                    f"Give its lines a `split`, or raise {KEYS}val_fraction and test_fraction: lines with the "
                    f"same group, recording or text have one split, which leaves {groups} groups."
                )
            for line, own in zip(lines, splits, strict=True):
                name, audio = (
                    f"{split}:{line.number}" if split else str(line.number),
                    path.parent / line.audio,
                )
                if not audio.is_file():
                    found.append(Skipped(name, str(audio), f"missing file (named in {path.name})"))
                    continue
                found.append(
                    Utterance(
                        id=name,
                        audio=Audio(audio),
                        text=line.text,
                        language=line.lang or self.language,
                        speaker=line.speaker,
                        group=line.group or str(audio),
                        split=own,
                        duration=line.duration,
                    )
                )
        return SpeechCorpus(
            *listed(found), {"manifests": [path.name for path in self.files.values()]}, advice
        )

    def _files(self) -> Iterator[tuple[str | None, Path]]:
        for split, path in self.files.items():
            if not path.is_file():
                raise DataError(
                    f"The manifest {path} is missing. Set {KEYS}{split or 'manifest'} to an existing file."
                )
            yield split, path

    def _divide(self, lines: list["Line"], folder: Path) -> tuple[list[str], int]:
        """Return the split of each line, and the number of groups that cannot be divided."""
        groups = Groups()
        texts = [normalize_text(line.text) for line in lines]
        for line, text in zip(lines, texts, strict=True):
            keys = [
                ("audio", folder / line.audio),
                ("text", text),
                *([("group", line.group)] if line.group else []),
            ]
            groups.union(f"line {line.audio}", *keys)
        names = groups.names()
        val, test = self.fractions
        own = [names[f"line {line.audio}"] for line in lines]
        split_of = {name: hash_split(name, val=val, test=test) for name in own}
        # The hash may leave a split of a small set empty: it gets the smallest group with usable lines.
        given, sizes = set(), Counter[str]()
        for line, text, name in zip(lines, texts, own, strict=True):
            if text and (folder / line.audio).is_file():
                given.add(line.split)
                sizes[name] += not line.split
        for split in SPLITS:
            held = Counter(split_of[name] for name, size in sizes.items() if size)
            donor = max(SPLITS, key=lambda one: held[one])
            if split not in given and not held[split] and held[donor] > 1:
                _, smallest = min((n, name) for name, n in sizes.items() if n and split_of[name] == donor)
                split_of[smallest] = split
        return [line.split or split_of[name] for line, name in zip(lines, own, strict=True)], len(split_of)


@dataclass(frozen=True)
class Line:
    """A line of a manifest, checked."""

    number: int  # from 1
    duration: float | None
    audio: str  # as the manifest names it: the same on every machine when it is relative
    text: str
    lang: str
    speaker: str
    group: str
    split: str


def _lines(manifest: Path) -> Iterator[Line]:
    with manifest.open("rb") as file:
        for number, values in json_lines(file):
            try:
                yield _line(values, number)
            except BadText as bad:
                raise DataError(f"{manifest}:{number}: {bad}. A line looks like {EXAMPLE}") from bad


def _line(values: Any, number: int) -> Line:
    """Check the value of a line. Raises `BadText`."""
    if isinstance(values, BadText):
        raise BadText(f"{values} ({values.__cause__})")
    if not isinstance(values, dict):
        raise BadText("not a JSON object")
    texts = []
    for key in ("audio_filepath", "text", "lang", "speaker", "group", "split"):
        if key not in values and key in ("audio_filepath", "text"):
            raise BadText(f"the key {key!r} is missing")
        if not isinstance(values.get(key, ""), str | int):
            raise BadText(f"{key!r} must be text, not {values[key]!r}")
        texts.append(str(values.get(key, "")))
    duration, split = values.get("duration"), texts[-1]
    if duration is not None and (type(duration) not in (int, float) or duration < 0):
        raise BadText(f"'duration' must be a number of seconds, not {duration!r}")
    if values.get("offset"):
        raise BadText("'offset' (a part of a longer recording) is not supported: cut it into one file a line")
    if split and split not in SPLITS:
        raise BadText(f"'split' is {split!r}; it must be one of {', '.join(SPLITS)}")
    return Line(number, duration, *texts)
