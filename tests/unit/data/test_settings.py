"""Settings of the kinds of data that are refused: the message names the key."""

from typing import Any

import pytest

from magneto.errors import MagnetoError
from tests.toys.kinds import KINDS

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("image", {"augment": {"crop_scale": [0.5, 1.5]}}, "crop_scale"),
    ("image", {"augment": {"crop_scale": [0.9, 0.5]}}, "crop_scale"),
    ("image", {"augment": {"crop_ratio": [0, 1]}}, "crop_ratio"),
    ("image", {"augment": {"erase": 2}}, "erase"),
    ("image", {"augment": {"flips": True}}, "Did you mean 'data.augment.flip'"),
    ("image", {"augment": {"randaugment": {"magnitude": 99}}}, "data.augment.randaugment.magnitude=99"),
    ("image", {"augment": {"randaugment": {"ops": 2}}}, "data.augment.randaugment.ops"),
    ("image", {"masking": {}, "patch_size": None}, "set patch_size"),
    ("image", {"masking": {"ratio": 2}}, "data.masking.ratio=2"),
    ("image", {"masking": {"min_patches": 0}}, "min_patches"),
    ("image", {"masking": {"min_patches": 9, "max_patches": 4}}, "max_patches"),
    ("image", {"masking": {"aspect": [2, 1]}}, "aspect"),
    ("image", {"masking": {"aspect": [1]}}, "aspect"),
    ("image", {"patch_size": 3}, "image_size=9"),
    ("image", {"channels": 4}, "data.channels=4"),
    ("image", {"fit": "squeeze"}, "data.fit=squeeze: must be one of crop, pad"),
    ("image", {"store": "disk"}, "data.store=disk"),
    ("image", {"batch_size": 0}, "data.batch_size=0"),
    ("image", {"eval_crop": 0}, "data.eval_crop=0"),
    ("image", {"val_fraction": 0.6, "test_fraction": 0.6}, "val_fraction"),
    ("image_text", {"languages": []}, "data.languages"),
    ("image_text", {"max_tokens": 2}, "data.max_tokens=2"),
    ("image_text", {"imagesize": 9}, "data.imagesize.*Did you mean 'data.image_size'"),
    ("image_text", {"masking": {"words": {}}}, "data.masking.words"),
    ("image_text", {"masking": {"texts": {"probability": 2}}}, "data.masking.texts.probability=2"),
    ("image_text", {"masking": {"pictures": {}}}, "It is now data.masking.images"),
    ("image_text", {"tokenizer": {"kind": "bpe"}}, "data.tokenizer"),
    ("vqa", {"num_answers": 1}, "data.num_answers=1"),
    ("speech", {"digits": "spell"}, "data.digits=spell"),
    ("speech", {"min_seconds": 3.0, "max_seconds": 2.0}, "data.min_seconds=3.0"),
    ("speech", {"num_workers": -1}, "data.num_workers=-1"),
    ("speech", {"features": {"mels": 80}}, "data.features.mels"),
    ("speech", {"features": {"sample_rate": 100}}, "data.features.sample_rate=100"),
    ("speech", {"features": {"hop_ms": 30.0}}, "data.features.hop_ms=30.0"),
    ("speech", {"tokenizer": {"type": "bpe"}}, "data.tokenizer.type"),
    ("speech", {"tokenizer": {"kind": "words"}}, "data.tokenizer.kind=words"),
    ("speech", {"augment": {"time_ratio": 1.5}}, "data.augment.time_ratio=1.5"),
    ("speech", {"augment": {"speed": [1.1, 0.9]}}, "data.augment.speed"),
    ("text", {"documents": "both"}, "data.documents=both"),
    ("text", {"block_size": 1}, "data.block_size=1"),
    ("text", {"eval_stride": 65}, "data.eval_stride=65"),
    ("text", {"masking": {"share": 0.1}}, "data.masking.share: there is no such key"),
    ("text", {"masking": {"eval_probability": 1.0}}, "data.masking.eval_probability"),
    ("text", {"masking": {"mask": 0.95}}, "together at most 1"),
    ("text", {"masking": {"span": 11}}, "data.masking.span=11"),
    ("text", {"tokenizer": {"sample_mb": 0}}, "data.tokenizer.sample_mb=0"),
    ("text_classification", {"max_tokens": 3}, "data.max_tokens=3"),
    ("text_classification", {"tokenizer": {}}, "vocab_size"),
    ("translation", {"max_ratio": 1}, "data.max_ratio=1"),
    ("translation", {"val_fraction": 0}, "data.val_fraction=0"),
    ("translation", {"test_fraction": 0.99}, "test_fraction"),
    ("translation", {"clean": {"duplicate": True}}, "Did you mean 'data.clean.duplicates'"),
    ("translation", {"tokenizer": {"shared": False, "file": "a.json"}}, "two tokenizer.json files"),
]


class Reader:
    """A corpus that is not read."""

    name = "given"


@pytest.mark.parametrize(("kind", "settings", "message"), REFUSED)
def test_settings_that_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    corpora: Any = Reader() if kind == "text_classification" else {"given": Reader()}
    with pytest.raises(MagnetoError, match=message):
        KINDS[kind].module(corpora, **{**KINDS[kind].settings, **settings})
