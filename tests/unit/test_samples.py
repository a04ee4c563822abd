"""Examples with images: what is written into the run's folder, and what loggers get."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from magneto.training.samples import log_samples, save_images

PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20


def test_image_file_has_a_portable_name(tmp_path: Path) -> None:
    """A image becomes a file under a name that every system takes."""
    row = {"id": "a/b: c", "step": 3, "image": PIXELS}
    saved = save_images(row, tmp_path, "val-a/b: c")
    assert saved == {"id": "a/b: c", "step": 3, "image": "samples/val-a_b_c.png"}
    assert np.array_equal(np.asarray(Image.open(tmp_path / saved["image"])), PIXELS)
    assert row["image"] is PIXELS, "the loggers still need it"


def test_wandb_gets_images_with_captions() -> None:
    """Images go to W&B's media, which have a slider over the steps, with what else is known as their captions."""
    calls = []
    logger = SimpleNamespace(log_table=None, log_image=lambda **image: calls.append(image))
    rows = [
        {"step": 5, "split": "val", "id": "1", "found": ["é"], "image": PIXELS},
        {"step": 5, "split": "val", "id": "2", "found": [], "image": PIXELS[..., 0]},
    ]
    log_samples(logger, "val/samples", rows, 5)
    (call,) = calls
    assert call["key"] == "val/samples" and call["step"] == 5
    assert call["caption"] == ['id: 1\nfound: ["é"]', "id: 2\nfound: []"]
    assert call["images"][0] is PIXELS
    log_samples(SimpleNamespace(), "val/samples", rows, 5)
