"""COCO (Lin et al., arXiv 1405.0312): photographs with five captions each, in the published files (docs/data.md).

Read in either of its two forms: COCO's own annotation files, one a split, or the single file with Karpathy's splits
(`dataset_coco.json`, also of Flickr30k), by which retrieval is reported.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, listed, require_splits
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, annotated, existing
from magneto.data.corpora.text.base import text_of
from magneto.data.io.text import read_json
from magneto.errors import ConfigError, DataError

KARPATHY = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class CocoCaptionsReader:
    """Photographs with captions in English.

    Args:
        annotations: a file of Karpathy's form; or split -> file of COCO's own form, of which val may also be the test.
        folder: the names of the images are relative to it; an image that is not found is looked for in its folder
            `train2014`, `val2017`..., as the name (or, of COCO's own, the annotation file) says.
    """

    def __init__(self, annotations: str | Mapping[str, str] | None = None, folder: str | None = None) -> None:
        if annotations is None or folder is None:
            raise ConfigError(
                "data: name COCO's captions and images (data.corpora.coco.annotations=dataset_coco.json, "
                "data.corpora.coco.folder=coco)."
            )
        if not isinstance(annotations, str):
            require_splits("annotations", annotations)
        files = {"": annotations} if isinstance(annotations, str) else dict(annotations)
        self.files = {split: Path(file).expanduser() for split, file in files.items()}
        self.folder = Path(folder).expanduser()

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        return annotated(self, "coco_captions", self.files, folder=str(self.folder.absolute()))

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return all images. Those that are missing are skipped when they are read."""
        read = self._own if "" not in self.files else lambda split, file: self._karpathy(file)
        examples, skipped = listed(one for split, file in self.files.items() for one in read(split, file))
        origin = {"files": {split: file.name for split, file in self.files.items()}}
        return ImageCorpus(examples=examples, skipped=skipped, origin=origin)

    def _karpathy(self, file: Path) -> Iterator[ImageExample]:
        try:
            for image in read_json(file, "annotations")["images"]:
                captions = tuple(text_of(sentence["raw"]) for sentence in image["sentences"])
                name = Path(image.get("filepath", ""), image["filename"]).as_posix()
                yield ImageExample(
                    id=name,
                    image=self._find(name),
                    split=KARPATHY[image["split"]],
                    captions={"en": captions} if captions else {},
                )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file}: not of the form of dataset_coco.json ({error!r}). Name COCO's own files by their split: "
                "annotations={train: captions_train2017.json, val: captions_val2017.json}."
            ) from error

    def _own(self, split: str, file: Path) -> Iterator[ImageExample | Skipped]:
        content = read_json(file, "annotations")
        captions: dict[Any, list[str]] = {}
        try:
            for line in content["annotations"]:
                captions.setdefault(line["image_id"], []).append(text_of(line["caption"]))
            subset = file.stem.rpartition("_")[2]  # captions_train2017.json is of train2017
            for image in content["images"]:
                name, texts = str(image["file_name"]), captions.pop(image["id"], [])
                path, given = self._find(name, subset), {"en": tuple(texts)} if texts else {}
                yield ImageExample(id=f"{split}/{name}", image=path, split=split, captions=given)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file}: not of the form of COCO's captions ({error!r}). Name captions_train2017.json or the like."
            ) from error
        for number in captions:
            yield Skipped(f"{split}/{number}", file.name, "caption without its image")

    def _find(self, name: str, subset: str = "") -> Path:
        direct = existing(self.folder / name)
        return direct if not subset or direct.exists() else existing(self.folder / subset / name)
