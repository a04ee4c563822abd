"""The tokenizers of images: shapes, configurations, and that they learn."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from magneto.errors import MagnetoError
from magneto.nn import BackboneConfig, PatchStem, VisualTokenizer, VisualTokenizerConfig

BACKBONE = BackboneConfig(num_layers=2, d_model=32, num_heads=2, max_positions=50)


def distilled(**more: Any) -> VisualTokenizerConfig:
    return VisualTokenizerConfig(**{"backbone": BACKBONE, "teacher_width": 24, "code_width": 8, **more})


def shapes(count: int, seed: int = 0) -> Tensor:
    """Grey images (count, 1, 16, 16) of a bright rectangle on a dark ground, of mean near 0."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((count, 1, 16, 16), -0.5)
    for image in images:
        top, left = torch.randint(0, 10, (2,), generator=generator).tolist()
        height, width = torch.randint(3, 7, (2,), generator=generator).tolist()
        image[0, top : top + height, left : left + width] = 2.0
    return images


def train(
    tokenizer: VisualTokenizer, images: Tensor, targets: Tensor, steps: int, lr: float = 3e-3
) -> tuple[float, float]:
    """Loss on all images and the share of codes in use after some steps."""
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=lr)
    for step in range(steps):
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))[:32]
        output, quantized = tokenizer(images[rows])
        loss = tokenizer.reconstruction_loss(output, targets[rows]) + 0.25 * quantized.commitment_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.eval()
    with torch.no_grad():
        output, quantized = tokenizer(images)
    return tokenizer.reconstruction_loss(output, targets).item(), quantized.usage.item()


@pytest.mark.parametrize(
    ("size", "patch", "channels"), [(28, 4, 1), (32, 4, 3), (224, 16, 3)], ids=["28", "32", "224"]
)
def test_the_grid_is_that_of_the_patches(size: int, patch: int, channels: int) -> None:
    config = VisualTokenizerConfig(image_size=size, patch_size=patch, channels=channels, codes=16)
    tokenizer, images = VisualTokenizer(config), torch.randn(2, channels, size, size)
    patches = PatchStem(size, patch, channels, 8, class_token=False).num_tokens
    output, quantized = tokenizer(images)
    assert output.shape == images.shape and quantized.codes.shape == (2, patches)
    assert tokenizer.encode(images).shape == (2, patches, config.code_width)
    codes = tokenizer.codes(images)
    assert codes.shape == (2, patches) and codes.dtype == torch.int64
    assert tokenizer.decode(codes).shape == images.shape


def test_a_code_stands_where_its_patch_is() -> None:
    """A change in one corner changes the code there, not in the far corner."""
    torch.manual_seed(0)
    tokenizer = VisualTokenizer(VisualTokenizerConfig(codes=64, blocks=1))
    images = torch.randn(2, 1, 28, 28)
    changed = images.clone()
    changed[..., 24:, :4] += 2.0  # row 6, column 0 of the grid of 7 x 7
    reached = (tokenizer.encode(images) != tokenizer.encode(changed)).any(-1).any(0).view(7, 7)
    assert reached[6, 0] and not reached[:5].any() and not reached[:, 2:].any()


def test_what_is_decoded_is_what_was_shown() -> None:
    torch.manual_seed(0)
    tokenizer, images = VisualTokenizer(VisualTokenizerConfig(codes=16)), torch.randn(4, 1, 28, 28)
    tokenizer(images)
    tokenizer.eval()
    output, quantized = tokenizer(images)
    codes = tokenizer.codes(images)
    assert torch.equal(codes, quantized.codes)
    torch.testing.assert_close(tokenizer.decode(codes), output, atol=1e-5, rtol=1e-5)


def test_codes_do_not_teach_the_codebook() -> None:
    tokenizer = VisualTokenizer(VisualTokenizerConfig(codes=16))
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    assert tokenizer.training and not tokenizer.codes(torch.randn(4, 1, 28, 28)).requires_grad
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


def test_pixels_are_reconstructed() -> None:
    """A small set is reconstructed, from most of the codes."""
    torch.manual_seed(0)
    images = shapes(256)
    config = VisualTokenizerConfig(
        image_size=16, patch_size=4, codes=64, code_width=8, width=32, blocks=1, decay=0.95
    )
    tokenizer = VisualTokenizer(config)
    error, used = train(tokenizer, images, images, steps=200)
    baseline = (images - images.mean(0)).square().mean().item()
    assert error < 0.15 * baseline and used > 0.7
    others = shapes(64, seed=1)  # not by heart
    assert tokenizer.reconstruction_loss(tokenizer(others)[0], others).item() < 0.2 * baseline


def test_features_of_a_teacher_are_predicted() -> None:
    """The teacher here is a fixed map of each patch; the mean of its features is what can be said without codes."""
    torch.manual_seed(0)
    images = shapes(256)
    patches = PatchStem(16, 4, 1, 24, class_token=False)
    with torch.no_grad():
        features = torch.tanh(patches(images))
    backbone = replace(BACKBONE, num_layers=1)
    config = distilled(image_size=16, patch_size=4, codes=32, decay=0.95, backbone=backbone)
    tokenizer = VisualTokenizer(config)
    blind = tokenizer.reconstruction_loss(features.mean(0).expand_as(features), features).item()
    error, used = train(tokenizer, images, features, steps=150)
    assert error < 0.4 * blind and used > 0.6
    assert tokenizer.decode(tokenizer.codes(images[:2])).shape == (2, 16, 24)


@pytest.mark.parametrize("position", ["learned", "relative_2d"])
def test_distilled_parameters_get_a_gradient(position: str) -> None:
    backbone = BackboneConfig(**{**BACKBONE.to_dict(), "position": position, "grid": 7})
    tokenizer = VisualTokenizer(distilled(backbone=backbone, decoder_layers=3, codes=16))
    assert len(tokenizer.decoder.backbone.layers) == 3  # type: ignore[union-attr]
    output, quantized = tokenizer(torch.randn(4, 1, 28, 28))
    (tokenizer.reconstruction_loss(output, torch.randn(4, 49, 24)) + quantized.commitment_loss).backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("config", [VisualTokenizerConfig(codes=99, normalize=False), distilled()])
def test_round_trip_through_plain_values(config: VisualTokenizerConfig) -> None:
    assert VisualTokenizerConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 30}, "image_size=30 does not divide by patch_size=4"),
        ({"codes": 1}, "codes=1: input should be greater than or equal to 2"),
        ({"teacher_width": 768}, "teacher_width and backbone go together"),
        ({"backbone": BACKBONE}, "teacher_width and backbone go together"),
        (
            {"backbone": {"architecture": "decoder"}, "teacher_width": 8},
            "must be an encoder of images only",
        ),
        ({"backbone": {"multiway": "full"}, "teacher_width": 8}, "architecture=encoder and multiway=none"),
        ({"code": 512}, "visual_tokenizer.code: there is no such key. Did you mean 'visual_tokenizer.codes'"),
    ],
)
def test_bad_values_raise_with_the_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MagnetoError) as error:
        VisualTokenizerConfig.from_dict(values)
    assert message in str(error.value)
