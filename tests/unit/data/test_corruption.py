"""Corruptions of test images: their strength, and that they are the same each time."""

import numpy as np
import pytest
import torch

from magneto.data.transforms.corruption import STRENGTHS, Corruption
from magneto.data.transforms.image import Draws
from tests.toys.images import image_settings, write_patterns
from tests.toys.runs import SHORT, SMALL, drive, folders

KINDS = pytest.mark.parametrize("kind", STRENGTHS)


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth ones and a random one, (6, 3, 32, 32)."""
    torch.manual_seed(0)
    waves = torch.sin(torch.arange(32) / torch.arange(1, 6)[:, None])  # (5, 32)
    smooth = 127 + 100 * waves[:, None, :, None] * waves[:, None, None, :].roll(3, -1)
    return torch.cat((smooth.expand(-1, 3, -1, -1), 255 * torch.rand(1, 3, 32, 32))).to(torch.uint8)


@KINDS
def test_severity_grows_and_repeats(kind: str, images: torch.Tensor) -> None:
    """An image is spoilt alike whatever batch it is in, and more with each severity; pixels stay pixels."""
    draws = Draws(0, 0, np.arange(6))
    distances = []
    for severity in range(1, 6):
        spoil = Corruption(kind=kind, severity=severity)  # type: ignore[arg-type]
        spoilt = spoil(images, draws)
        assert spoilt.shape == images.shape and spoilt.min() >= 0 and spoilt.max() <= 255
        torch.testing.assert_close(spoil(images[3:4], Draws(0, 0, np.array([3]))), spoilt[3:4])
        distances.append(float((spoilt - images).square().mean()))
    assert distances == sorted(distances) and distances[0] > 1


def test_strengths_are_those_of_the_table(images: torch.Tensor) -> None:
    """Noise by its deviation, contrast by its factor; a blur keeps the mean; half the images turn to either side."""
    draws = Draws(0, 0, np.arange(40))
    grey = torch.full((40, 1, 32, 32), 127, dtype=torch.uint8)
    noise = Corruption(kind="noise", severity=5)(grey, draws)
    assert float(noise.std() / 255) == pytest.approx(0.10, rel=0.02)
    flat = Corruption(kind="contrast", severity=1)(images, draws)
    torch.testing.assert_close(flat.std((2, 3)), 0.75 * images.float().std((2, 3)), rtol=1e-3, atol=1e-3)
    blurred = Corruption(kind="blur", severity=5)(images, draws)
    assert float(blurred.mean()) == pytest.approx(float(images.float().mean()), rel=0.02)
    bar = torch.zeros(40, 1, 33, 33, dtype=torch.uint8)
    bar[:, :, :16, 16] = 255
    turned = Corruption(kind="rotation", severity=5)(bar, draws)
    right = (turned[..., 20:].sum((1, 2, 3)) > turned[..., :13].sum((1, 2, 3))).sum()
    assert 8 <= int(right) <= 32


def test_only_the_test_split_is_spoilt(tmp_path) -> None:
    """A model trained on clean images is tested on others by one override."""
    settings = [
        "task=image_classification", *image_settings(write_patterns(tmp_path / "images")),
        *folders(tmp_path / "data", tmp_path), *SMALL, *SHORT,
    ]  # fmt: skip
    clean = drive(settings, "name=clean")
    spoilt = drive(settings, "name=spoilt", "data.corruption={kind: noise, severity: 5}")
    names = [name for name in clean["metrics"] if name.startswith("val/")]
    assert {name: spoilt["metrics"][name] for name in names} == {
        name: clean["metrics"][name] for name in names
    }
    assert spoilt["metrics"]["test/loss"] != clean["metrics"]["test/loss"]
    tested = drive(
        settings, "mode=test", f"checkpoint={clean['folder']}", "data.corruption={kind: noise, severity: 5}"
    )
    assert tested["metrics"]["test/loss"] == pytest.approx(spoilt["metrics"]["test/loss"], rel=1e-4)
