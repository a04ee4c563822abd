"""COCO (Lin et al., arXiv 1405.0312): photographs with five captions each, as they lie on disk (docs/data.md).

Read in either of its two forms: COCO's own annotation files, one a split, or the single file with Karpathy's splits
(`dataset_coco.json`, also of Flickr30k), by which retrieval is reported.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, existing, image_files_digest
from magneto.data.corpora.text.base import text_of
from magneto.data.io.digest import file_digest
from magneto.errors import ConfigError, DataError

KARPATHY = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class CocoCaptionsReader:
    """Photographs with captions in English.

    annotations: a file of Karpathy's form; or split -> file of COCO's own form, of which validation may serve as the test.
    folder: what the names of the images are relative to; an image that is not there itself is looked for in the
    folder `train2014`, `val2017`... that the name (or, of COCO's own, the annotation file) tells.
    """

    def __init__(self, annotations: str | Mapping[str, str] | None = None, folder: str | None = None) -> None:
        if annotations is None or folder is None:
            raise ConfigError(
                "data: name COCO's captions and images (data.corpora.coco.annotations=dataset_coco.json, "
                "data.corpora.coco.folder=coco)."
            )
        files = {"": annotations} if isinstance(annotations, str) else dict(annotations)
        if unknown := files.keys() - {"", *SPLITS}:
            raise ConfigError(f"data: annotations are of {', '.join(SPLITS)}, not of {sorted(unknown)[0]}.")
        self.files = {split: Path(file).expanduser() for split, file in files.items()}
        self.folder = Path(folder).expanduser()

    def fingerprint(self) -> dict[str, Any]:
        """Content of the annotations, where the images are, and their sizes and times."""
        files = {split: file_digest(file) if file.is_file() else None for split, file in self.files.items()}
        return {
            "corpus": "coco_captions",
            "recipe": 2,
            "files": files,
            "images": image_files_digest(self),
            "folder": str(self.folder.absolute()),
        }

    def load(self, data_dir: Path) -> ImageCorpus:
        """All images; those that are not on disk are skipped."""
        skipped: list[Skipped] = []
        examples = [
            example
            for split, file in self.files.items()
            for example in (self._karpathy(file) if split == "" else self._own(file, split, skipped))
        ]
        return ImageCorpus(
            examples=examples,
            skipped=skipped,
            origin={"files": {split: file.name for split, file in self.files.items()}},
        )

    def _karpathy(self, file: Path) -> Iterator[ImageExample]:
        try:
            for image in _read(file)["images"]:
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
                f"{file}: not of the form of dataset_coco.json ({error!r}). COCO's own files are named by their split: "
                "annotations={train: captions_train2017.json, val: captions_val2017.json}."
            ) from error

    def _own(self, file: Path, split: str, skipped: list[Skipped]) -> Iterator[ImageExample]:
        content = _read(file)
        captions: dict[Any, list[str]] = {}
        try:
            for line in content["annotations"]:
                captions.setdefault(line["image_id"], []).append(text_of(line["caption"]))
            place = file.stem.rpartition("_")[2]  # captions_train2017.json is of train2017
            for image in content["images"]:
                name = str(image["file_name"])
                found = captions.pop(image["id"], [])
                yield ImageExample(
                    id=f"{split}/{name}",
                    image=self._find(name, place),
                    split=split,
                    captions={"en": tuple(found)} if found else {},
                )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: not of the form of COCO's captions ({error!r}).") from error
        skipped += [
            Skipped(f"{split}/{number}", file.name, "caption without its image") for number in captions
        ]

    def _find(self, name: str, place: str = "") -> Path:
        direct = existing(self.folder / name)
        return direct if not place or direct.exists() else existing(self.folder / place / name)


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"annotations={file}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise DataError(f"annotations={file}: damaged ({error}).") from error
    return content
