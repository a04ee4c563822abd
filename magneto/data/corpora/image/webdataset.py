"""Images in WebDataset's tar shards: members KEY.jpg with KEY.cls or KEY.json (docs/data.md).

Shards are read in place by the standard library: their headers once, in `prepare`, and then single members, which are
slices of the file. Images can so be read in any order, training resumes exactly, and nothing is unpacked.
"""

import json
import logging
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, listed, require_splits
from magneto.data.corpora.image.base import Captions, ImageCorpus, ImageExample
from magneto.data.io.image import SUFFIXES, Slice
from magneto.data.io.text import BadText, decode_text, read_lines
from magneto.errors import ConfigError

log = logging.getLogger(__name__)

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard
BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


Members = Mapping[str, bytes | Slice]
"""Of a sample, by their endings."""


class WebDatasetReader:
    """Tar files (not compressed) on a local or mounted disk.

    Args:
        shards: a glob, a range `{00000..00099}.tar` or a list of them, divided by a hash of the keys; or split -> the same
            (with train alone, the others are held out from it by a hash).
        label: key of the class in KEY.json, where there is no KEY.cls.
        caption: key of a text or of a list of texts in KEY.json; each line of KEY.txt is one too.
        language: of these texts.
        labels: a file with the names of the classes that are given as numbers, one name a line.
    """

    def __init__(
        self,
        shards: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        label: str = "label",
        caption: str = "caption",
        language: str = "en",
        labels: str | None = None,
    ) -> None:
        if not shards:
            raise ConfigError(
                "data: name the tar files: data.corpora.NAME.shards=folder/*.tar, or {train: ..., val: ..., test: ...}."
            )
        sides = shards if isinstance(shards, Mapping) else {"": shards}
        require_splits("shards", {side: value for side, value in sides.items() if side})
        self.shards = {
            side: [one for each in ([value] if isinstance(value, str) else value) for one in _expand(each)]
            for side, value in sides.items()
        }
        self.label, self.caption, self.language = label, caption, language
        self.labels = None if labels is None else Path(labels).expanduser()

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of the shards names, sizes and times."""
        files = {
            side: [
                [str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns]
                for pattern in patterns
                for path in _find(pattern)
            ]
            for side, patterns in self.shards.items()
        }
        names = None if self.labels is None else self._names()
        settings = [self.label, self.caption, self.language]
        return {"corpus": "webdataset", "recipe": 2, "shards": files, "settings": settings, "labels": names}

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return the samples of all shards, by their headers. The classes are sorted, numbers as numbers."""
        names = self._names()
        examples, skipped = listed(self._examples(names))
        found = {example.label for example in examples if example.label is not None}
        labels = tuple(names) if names else tuple(sorted(found, key=_by_number))
        origin = {"shards": len({p.image.path for p in examples if isinstance(p.image, Slice)})}
        return ImageCorpus(examples=examples, labels=labels, skipped=skipped, origin=origin)

    def _names(self) -> list[str]:
        lines = [] if self.labels is None else read_lines(self.labels, "labels")
        return [line.strip() for line in lines if line.strip()]

    def _examples(self, names: Sequence[str]) -> Iterator[ImageExample | Skipped]:
        """Yield the images of all shards. names: of the classes that are given as numbers."""
        paths = {pattern: _find(pattern) for patterns in self.shards.values() for pattern in patterns}
        if missing := [pattern for pattern, found in paths.items() if not found]:
            raise ConfigError(
                f"data: no file fits shards={missing[0]}. Name tar files, by a glob (folder/*.tar) or a range "
                "(folder/{00000..00099}.tar)."
            )
        for side, patterns in self.shards.items():
            # A training set alone is divided like one without stated splits.
            split = None if side == "" or set(self.shards) == {"train"} else side
            for path in [path for pattern in patterns for path in paths[pattern]]:
                for key, members in _samples(path):
                    own = f"{path.name}/{key}" if key else path.name
                    if isinstance(members, str):
                        yield Skipped(own, str(path), members)
                        continue
                    images = [extension for extension in members if f".{extension}".endswith(SUFFIXES)]
                    images.sort(key=lambda extension: "." in extension)  # KEY.jpg before KEY.depth.png
                    try:
                        if not images:
                            raise BadText("sample without an image")
                        label, captions = self._texts(members, names)
                    except BadText as bad:
                        yield Skipped(own, str(path), str(bad))
                        continue
                    for extension in images[1:]:
                        reason = "further image of a sample (a key ends at its first dot)"
                        yield Skipped(f"{own}.{extension}", str(path), reason)
                    image = members[images[0]]
                    yield ImageExample(
                        id=own, image=image, label=label, group=own, split=split, captions=captions
                    )

    def _texts(self, members: Members, names: Sequence[str]) -> tuple[str | None, Captions]:
        """Return class and captions of a sample. Raises `BadText` with the reason why it is not used."""
        texts = {kind: data for kind, data in members.items() if isinstance(data, bytes)}
        try:
            values = json.loads(decode_text(texts.get("json", b"{}")))
            class_, text = (decode_text(texts.get(kind, b"")).strip() for kind in ("cls", "txt"))
        except ValueError:  # BadText too
            values = None
        if not isinstance(values, dict):
            raise BadText("damaged .json, .cls or .txt")
        captions = _texts(text.splitlines() or values.get(self.caption))
        labels = _texts(class_ or values.get(self.label))
        if len(labels) > 1 and not captions:
            raise BadText("several classes")
        label = labels[0] if len(labels) == 1 else None
        if label is not None and names and label not in names:
            if not label.isdecimal() or int(label) >= len(names):
                raise BadText(f"unknown class {label[:20]!r}")
            label = names[int(label)]
        return label, {self.language: captions[0] if len(captions) == 1 else captions} if captions else {}


def _samples(path: Path) -> Iterator[tuple[str, Members | str]]:
    """Yield the key and the members of each sample of a shard, which may be anywhere in it; "" and a fault of the shard."""
    samples: dict[str, dict[str, bytes | Slice]] = {}
    key = ""
    try:
        with path.open("rb") as file:
            if file.read(6).startswith(COMPRESSED):
                yield "", "compressed shard: unpack it, as with gunzip"
                return
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key, extension, copy = folder + slash + stem, extension.lower(), 1
                while extension in samples.setdefault(key, {}):  # another sample of that name
                    copy += 1
                    key = f"{folder}{slash}{stem} ({copy})"
                data: bytes | Slice = Slice(path, member.offset_data, member.size)
                if extension in ("cls", "json", "txt") and (stream := tar.extractfile(member)) is not None:
                    data = stream.read()
                samples[key][extension] = data
    except (tarfile.TarError, OSError, EOFError) as error:
        log.warning("%s breaks off: %s", path, error)
        yield "", "shard breaks off"
        samples.pop(key, None)  # its other members are not known
    yield from samples.items()


def _texts(value: Any) -> list[str]:
    """Return the texts of a value of KEY.json: a text or a number, or several."""
    values = value if isinstance(value, list) else [value]
    texts = (str(text).strip() for text in values if text is not None and not isinstance(text, dict | list))
    return [text for text in texts if text]


def _find(pattern: str) -> list[Path]:
    """Return the files that a glob fits. Its folders, and the whole name, may contain brackets or stars themselves."""
    path = Path(pattern).expanduser().absolute()
    parts = path.parts
    folder, count = Path(path.anchor), 1
    while count < len(parts) and (folder / parts[count]).exists():
        folder, count = folder / parts[count], count + 1
    if count == len(parts):
        return [path] if path.is_file() else []
    found = sorted(folder.glob("/".join(parts[count:])))
    return [file for file in found if file.is_file() and not file.name.startswith("._")]  # those of macOS


def _expand(pattern: str) -> list[str]:
    """Expand `a-{00..02}.tar` to a-00.tar, a-01.tar, a-02.tar; `{a,b}` to a, b."""
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last, listed = found.groups()
    width = len(first or "") if (first or "").startswith("0") else 0
    values = listed.split(",") if listed else [f"{n:0{width}}" for n in range(int(first), int(last) + 1)]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [head + value + rest for value in values for rest in _expand(tail)]


def _by_number(label: str) -> tuple[int, int, str]:
    return (0, int(label), "") if label.isdecimal() else (1, 0, label)
