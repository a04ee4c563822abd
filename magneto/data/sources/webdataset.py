"""Pictures in WebDataset's tar shards: members KEY.jpg with KEY.cls or KEY.json (docs/data.md).

Shards are read in place by the standard library: their headers once, in `prepare`, and then single members, wherever
they are. So any order of the pictures is a matter of seeking, training resumes exactly, and nothing is unpacked.
"""

import json
import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from magneto.data.pictures import SUFFIXES, Slice
from magneto.data.sources import SPLITS, Skipped
from magneto.data.sources.pictures import ImageCorpus, Picture
from magneto.errors import UserError

log = logging.getLogger(__name__)


class WebDatasetSource:
    """Tar files (not compressed) on a local or mounted disk.

    shards: a glob or a list of globs, divided by a hash of the keys; or a dict of them: train, val, test (one that is
    missing is taken from train by `data.val_fraction`... only when none but train is given). label: key of the class
    in KEY.json, where there is no KEY.cls. caption: key of a text in KEY.json (KEY.txt is read too); language: of that
    text. labels: names of the classes that the files give as numbers: a file, one name a line.
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
            raise UserError(
                "data: name the tar files: shards=folder/*.tar, or shards={train: ..., val: ..., test: ...}."
            )
        sides = shards if isinstance(shards, Mapping) else {"": shards}
        if unknown := sides.keys() - {"", *SPLITS}:
            raise UserError(
                f"data: shards has {', '.join(sorted(unknown))}; its splits are train, val and test."
            )
        self.shards = {
            side: [value] if isinstance(value, str) else list(value) for side, value in sides.items()
        }
        self.label, self.caption, self.language = label, caption, language
        self.labels = None if labels is None else Path(labels).expanduser()

    def identity(self) -> dict[str, Any]:
        """Settings, and names, sizes and times of the shards."""
        files = {
            side: [[str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] for p in _find(patterns)]
            for side, patterns in self.shards.items()
        }
        names = None if self.labels is None else self._names()
        settings = [self.label, self.caption, self.language]
        return {"corpus": "webdataset", "recipe": 1, "shards": files, "settings": settings, "labels": names}

    def load(self, data_dir: Path) -> ImageCorpus:
        """The headers of all shards. The classes are sorted, numbers as numbers."""
        skipped: list[Skipped] = []
        names = self._names()
        pictures: list[Picture] = []
        for side, patterns in self.shards.items():
            paths = _find(patterns)
            if not paths:
                raise UserError(f"data: no file fits shards={', '.join(patterns)}.")
            # A lone training set is divided as one without any stated split.
            split = None if side == "" or set(self.shards) == {"train"} else side
            for path in paths:
                pictures += self._read(path, split, names, skipped)
        found = {picture.label for picture in pictures if picture.label is not None}
        labels = tuple(names) if names else tuple(sorted(found, key=_by_number))
        return ImageCorpus(
            examples=pictures,
            labels=labels,
            skipped=skipped,
            origin={"shards": len({p.image.path for p in pictures if isinstance(p.image, Slice)})},
        )

    def _names(self) -> list[str]:
        if self.labels is None:
            return []
        try:
            return [line.strip() for line in self.labels.read_text("utf-8-sig").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"labels={self.labels}: cannot be read ({error}).") from error

    def _read(
        self, path: Path, split: str | None, names: Sequence[str], skipped: list[Skipped]
    ) -> Iterator[Picture]:
        """The pictures of a shard; members of one sample stand side by side in it, as WebDataset has it."""
        key = ""
        members: dict[str, bytes | Slice] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    if folder + slash + stem != key:
                        yield from self._picture(path, key, members, split, names, skipped)
                        key, members = folder + slash + stem, {}
                    data = Slice(path, member.offset_data, member.size)
                    small = extension.lower() in ("cls", "json", "txt")
                    members[extension.lower()] = _content(tar, member) if small else data
        except (tarfile.TarError, OSError, EOFError) as error:
            log.warning("%s breaks off: %s", path, error)
            skipped.append(Skipped(path.name, str(path), "shard breaks off"))
            return
        yield from self._picture(path, key, members, split, names, skipped)

    def _picture(
        self,
        path: Path,
        key: str,
        members: Mapping[str, bytes | Slice],
        split: str | None,
        names: Sequence[str],
        skipped: list[Skipped],
    ) -> Iterator[Picture]:
        own = f"{path.name}/{key}"
        images = [data for extension, data in members.items() if f".{extension}".endswith(SUFFIXES)]
        texts = {kind: data for kind, data in members.items() if isinstance(data, bytes)}
        if not images:
            if members:
                skipped.append(Skipped(own, str(path), "sample without a picture"))
            return
        try:
            facts = json.loads(texts.get("json", b"{}"))
            if not isinstance(facts, dict):
                raise ValueError
            class_, text = (texts.get(kind, b"").decode("utf-8").strip() for kind in ("cls", "txt"))
        except ValueError:  # bytes that are no UTF-8 too
            skipped.append(Skipped(own, str(path), "damaged .json, .cls or .txt"))
            return
        label = class_ or facts.get(self.label)
        if label is not None and names:
            number = int(label) if str(label).isdecimal() else -1
            if str(label) not in names and not 0 <= number < len(names):
                skipped.append(Skipped(own, str(path), f"unknown class {str(label)[:20]!r}"))
                return
            label = str(label) if str(label) in names else names[number]
        caption = text or facts.get(self.caption)
        yield Picture(
            id=own,
            image=images[0],
            label=None if label is None else str(label),
            group=own,
            split=split,
            captions={self.language: str(caption)} if caption else {},
        )


def _find(patterns: Sequence[str]) -> list[Path]:
    found = []
    for pattern in map(Path, patterns):
        path = pattern.expanduser().absolute()
        # A name may hold the characters of a glob.
        named = [path] if path.is_file() else Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        found += sorted(named)
    return found


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _by_number(label: str) -> tuple[int, int, str]:
    return (0, int(label), "") if label.isdecimal() else (1, 0, label)
