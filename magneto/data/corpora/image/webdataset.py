"""Images in WebDataset's tar shards: members KEY.jpg with KEY.cls or KEY.json (docs/data.md).

Shards are read in place: their headers once, in `prepare`, and then single members, which are slices of the file. Images can
so be read in any order, training resumes exactly, and nothing is unpacked.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, listed
from magneto.data.corpora.image.base import Captions, ImageCorpus, ImageExample
from magneto.data.corpora.tar_shards import TarShard, TarShards
from magneto.data.io.image import SUFFIXES
from magneto.data.io.tar import Members, Slice
from magneto.data.io.text import BadText, decode_text, read_lines


class WebDatasetReader:
    """Tar files (not compressed) on a local or mounted disk.

    Args:
        shards: see `TarShards`.
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
        self.tars = TarShards(shards)
        self.label, self.caption, self.language = label, caption, language
        self.labels = None if labels is None else Path(labels).expanduser()

    def fingerprint(self, contents: bool = True) -> dict[str, Any]:
        """See `Reader`; of the shards names, and with contents sizes and times."""
        names = None if self.labels is None else self._names()
        settings = [self.label, self.caption, self.language]
        files = self.tars.fingerprint(contents)
        return {"corpus": "webdataset", "recipe": 2, "shards": files, "settings": settings, "labels": names}

    def shards(self) -> list[TarShard[ImageExample]]:
        """Return the files, to be streamed. Raises `ConfigError` where there is none."""
        names = self._names()
        return [TarShard(split, path, partial(self._sample, names)) for split, path in self.tars.files()]

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return the samples of all shards, by their headers. The classes are sorted, numbers as numbers."""
        names = self._names()
        examples, skipped = listed(one for shard in self.shards() for one in shard.all())
        found = {example.label for example in examples if example.label is not None}
        labels = tuple(names) if names else tuple(sorted(found, key=_by_number))
        origin = {"shards": len({p.image.path for p in examples if isinstance(p.image, Slice)})}
        return ImageCorpus(examples=examples, labels=labels, skipped=skipped, origin=origin)

    def _names(self) -> list[str]:
        lines = [] if self.labels is None else read_lines(self.labels, "labels")
        return [line.strip() for line in lines if line.strip()]

    def _sample(
        self, names: Sequence[str], shard: TarShard[ImageExample], key: str, members: Members
    ) -> Iterator[ImageExample | Skipped]:
        """Yield the image of a sample. names: of the classes that are given as numbers."""
        own = shard.id(key)
        images = [extension for extension in members if f".{extension}".endswith(SUFFIXES)]
        images.sort(key=lambda extension: "." in extension)  # KEY.jpg before KEY.depth.png
        try:
            if not images:
                raise BadText("sample without an image")
            label, captions = self._texts(members, names)
        except BadText as bad:
            yield Skipped(own, shard.name, str(bad))
            return
        for extension in images[1:]:
            reason = "further image of a sample (a key ends at its first dot)"
            yield Skipped(f"{own}.{extension}", shard.name, reason)
        image = members[images[0]]
        yield ImageExample(id=own, image=image, label=label, group=own, split=shard.split, captions=captions)

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


def _texts(value: Any) -> list[str]:
    """Return the texts of a value of KEY.json: a text or a number, or several."""
    values = value if isinstance(value, list) else [value]
    texts = (str(text).strip() for text in values if text is not None and not isinstance(text, dict | list))
    return [text for text in texts if text]


def _by_number(label: str) -> tuple[int, int, str]:
    return (0, int(label), "") if label.isdecimal() else (1, 0, label)
