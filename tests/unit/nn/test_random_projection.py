"""Targets of a random projection: the same for all runs, and blind to brightness and contrast."""

import torch

from magneto.nn.vision.random_projection import RandomProjection


def test_codes_do_not_depend_on_the_seed() -> None:
    """Codes are the same in every run, in the order of the patches."""
    images = torch.rand(3, 2, 12, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    one = RandomProjection(4, 2, 64).codes(images)
    torch.manual_seed(6)
    assert torch.equal(one, RandomProjection(4, 2, 64).codes(images))
    assert one.shape == (3, 6) and one.dtype == torch.int64 and len(one.unique()) > 5
    # Patches in rows: the second row of patches alone has the last two codes of the first two rows.
    assert torch.equal(RandomProjection(4, 2, 64).codes(images[:, :, 4:8]), one[:, 2:4])


def test_brightness_and_contrast_do_not_matter() -> None:
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    target = RandomProjection(4, 1, 128)
    assert torch.equal(target.codes(images), target.codes(3 * images + 2))
    assert not torch.equal(target.codes(images), target.codes(-images))
