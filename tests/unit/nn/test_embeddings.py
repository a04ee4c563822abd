"""Stems: shapes, scales, padding."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from magneto.errors import MagnetoError
from magneto.nn import AudioStem, BackboneConfig, Linear, PatchStem, TokenStem, VGGStem, VisionLanguageStem

CONFIG = BackboneConfig(d_model=64)


def test_tokens_and_logits_have_unit_variance() -> None:
    torch.manual_seed(0)
    stem = TokenStem(1000, CONFIG, padding_id=3)
    tokens = torch.randint(4, 1000, (8, 50))
    x = stem(tokens)
    assert x.shape == (8, 50, 64)
    assert x.std().item() == pytest.approx(1.0, rel=0.05)
    logits = stem.logits(F.layer_norm(torch.randn(8, 64), (64,)))
    assert logits.shape == (8, 1000)
    assert logits.std().item() == pytest.approx(1.0, rel=0.1)
    assert not stem(torch.tensor([[3]])).any()
    plain = TokenStem(1000, BackboneConfig(d_model=64, embedding_scale=False))
    assert torch.equal(plain(tokens), plain.embedding.weight[tokens])


def test_patches_are_a_strided_convolution() -> None:
    torch.manual_seed(0)
    stem = PatchStem(24, 8, 3, 64, class_token=True)
    images = torch.randn(2, 3, 24, 24)
    x = stem(images)
    assert x.shape == (2, stem.num_tokens, 64) == (2, 10, 64)
    kernel = stem.projection.weight.view(64, 3, 8, 8)
    expected = F.conv2d(images, kernel, stem.projection.bias, stride=8).flatten(2).transpose(1, 2)
    torch.testing.assert_close(x[:, 1:], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(x[0, 0], stem.class_token) and torch.equal(x[1, 0], stem.class_token)
    torch.testing.assert_close(PatchStem(24, 8, 3, 64, class_token=False)(images).shape, (2, 9, 64))


def test_image_size_must_be_whole_patches() -> None:
    with pytest.raises(ValueError, match="image_size=30 does not divide by patch_size=8. Set image_size=32"):
        PatchStem(30, 8, 3, 64)


def test_masked_patches_are_the_mask_token() -> None:
    stem, images = PatchStem(24, 8, 3, 64, mask_token=True), torch.randn(2, 3, 24, 24)
    masked = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    plain, x = stem(images), stem(images, masked)
    assert masked.any() and not masked.all() and stem.mask_token is not None
    assert (x[:, 1:][masked] == stem.mask_token).all()
    assert torch.equal(x[:, 1:][~masked], plain[:, 1:][~masked]) and torch.equal(x[:, 0], plain[:, 0])
    with pytest.raises(AssertionError, match="mask_token=True"):
        PatchStem(24, 8, 3, 64)(images, masked)


def test_pairs_keep_the_positions() -> None:
    """Images and texts have the same positions alone and in pairs."""
    torch.manual_seed(0)
    config = BackboneConfig(d_model=64, max_positions=12)
    stem = VisionLanguageStem(PatchStem(24, 8, 3, 64, mask_token=True), TokenStem(100, config), config)
    images, tokens = torch.randn(2, 3, 24, 24), torch.randint(100, (2, 7))
    vision, all_of_them = stem(images)
    text, none = stem(tokens=tokens)
    pairs, count = stem(images, tokens)
    assert (all_of_them, none, count) == (10, 0, 10)
    assert torch.equal(pairs, torch.cat((vision, text), dim=1))
    torch.testing.assert_close(vision, stem.vision(images) + stem.vision_position)
    torch.testing.assert_close(text, stem.text(tokens) + stem.text_position[:7])
    masked = torch.zeros(2, 9, dtype=torch.bool)
    masked[1, 3] = True
    hidden, _ = stem(images, tokens, masked)
    assert (hidden != pairs).any(-1).nonzero().tolist() == [[1, 4]]
    assert stem.text_position.std().item() == pytest.approx(1 / 8, rel=0.1)
    with pytest.raises(
        MagnetoError, match="13 tokens is longer than max_positions=12, the limit of the positions of"
    ):
        stem(tokens=torch.zeros(1, 13, dtype=torch.int64))


audio_stems = pytest.mark.parametrize("kind", [AudioStem, VGGStem])


@audio_stems
@pytest.mark.parametrize("length", range(1, 18))
def test_audio_lengths_are_those_of_the_output(kind: type[AudioStem | VGGStem], length: int) -> None:
    stem = kind(80, CONFIG)
    x, mask = stem(torch.randn(1, length, 80))
    assert mask is None
    assert x.shape == (1, stem.output_lengths(torch.tensor(length)).item(), 64)
    assert x.size(1) == -(-length // 4)


@audio_stems
def test_padded_audio_gives_what_it_gives_alone(kind: type[AudioStem | VGGStem]) -> None:
    torch.manual_seed(0)
    stem, lengths = kind(80, CONFIG), torch.tensor([40, 17, 2, 30])
    features = torch.randn(4, 40, 80)
    for row, length in enumerate(lengths):
        features[row, length:] = 1e3
    batch, mask = stem(features, lengths)
    assert mask is not None and torch.equal(mask.sum(1), stem.output_lengths(lengths))
    for row, length in enumerate(lengths):
        alone, _ = stem(features[row : row + 1, :length])
        torch.testing.assert_close(batch[row, : alone.size(1)], alone[0], atol=1e-4, rtol=1e-4)


def test_a_head_has_xavier_scale() -> None:
    torch.manual_seed(0)
    head = Linear(64, 1000, roles=("head",), gain=7.0)  # the depth gain is not for heads
    assert head.weight.std().item() == pytest.approx((2 / 1064) ** 0.5, rel=0.03)


@audio_stems
def test_audio_flops_are_what_torch_counts(kind: type[AudioStem | VGGStem]) -> None:
    stem, features = kind(80, CONFIG), torch.randn(2, 40, 80, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        stem(features)[0].sum().backward()
    assert counter.get_total_flops() == pytest.approx(2 * 10 * stem.training_flops_per_token(), rel=1e-6)


def test_convolutions_make_tokens_of_patches():
    """A token is made of its patch and of what touches it: seven pixels more on each side with two halvings."""
    torch.manual_seed(0)
    stem = PatchStem(32, 4, 3, 64, class_token=False, convolutional=True)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    tokens = stem(images)
    assert tokens.shape == (2, 64, 64)
    (gradient,) = torch.autograd.grad(tokens[0, 8 * 4 + 4].sum(), images)
    rows, columns = gradient[0].abs().sum(0).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (13, 19, 13, 19)
    assert not gradient[1].any()
    # Two convolutions and the projection, 6 FLOPs a product, divided among the 64 tokens.
    expected = 6 * (16**2 * 9 * 3 * 32 + 8**2 * 9 * 32 * 64 + 8**2 * 64 * 64) / 64
    assert stem.training_flops_per_token() == expected


def test_convolutions_do_not_see_masked_patches():
    stem, images = PatchStem(16, 4, 1, 16, mask_token=True, convolutional=True), torch.randn(1, 1, 16, 16)
    masked = torch.zeros(1, 16, dtype=torch.bool)
    masked[0, 5] = True
    changed = images.clone()
    changed[..., 4:8, 4:8] += 1
    torch.testing.assert_close(stem(images, masked), stem(changed, masked), rtol=0, atol=0)
    assert not torch.equal(stem(images), stem(changed))
    torch.testing.assert_close(stem(images, masked)[0, 6], stem.mask_token)


@pytest.mark.parametrize("patch", [1, 7])
def test_convolutions_need_patches_that_halve(patch: int):
    with pytest.raises(MagnetoError, match=f"patch_size={patch}: backbone.image_stem=convolutional"):
        PatchStem(28, patch, 1, 16, convolutional=True)
