"""The quantizer: nearest codes, moving averages, revival, several processes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from magneto.nn import VectorQuantizer, initialize
from magneto.nn.vision.vector_quantizer import perplexity, usage

CENTRES = F.one_hot(torch.arange(8), 8).float() * 3


def clusters(seed: int = 0, batch: int = 6, tokens: int = 20, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Vectors (batch, tokens, 8) around eight centres, and which centre each is from."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(8, (batch, tokens), generator=generator)
    return CENTRES[label] + noise * torch.randn(batch, tokens, 8, generator=generator), label


def started(codes: int = 5, width: int = 3, **more: Any) -> VectorQuantizer:
    """A quantizer with a random codebook that no first batch replaces."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codes, width, **more)
    quantizer.started.fill_(True)
    return quantizer


@pytest.mark.parametrize("normalize", [False, True])
def test_the_nearest_code_is_taken(normalize: bool) -> None:
    quantizer, z = started(normalize=normalize).eval(), torch.randn(4, 7, 3)
    quantized = quantizer(z)
    point = F.normalize(z, dim=-1) if normalize else z
    distance = (point[:, :, None] - quantizer.codebook).square().sum(-1)
    assert torch.equal(quantized.codes, distance.argmin(-1))
    torch.testing.assert_close(quantized.vectors, quantizer.lookup(quantized.codes))
    torch.testing.assert_close(quantized.commitment_loss, distance.amin(-1).mean() / 3)
    assert torch.equal(quantizer.nearest(z), quantized.codes)
    if normalize:
        torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(5))
    many = torch.randn(3, 5000, 3)
    assert torch.equal(quantizer.nearest(many)[1], quantizer.nearest(many[1:2])[0]), "parts of a large batch"


def test_the_gradient_goes_straight_through() -> None:
    quantizer, z = started(normalize=False), torch.randn(4, 7, 3, requires_grad=True)
    direction = torch.randn(4, 7, 3)
    (quantizer(z).vectors * direction).sum().backward()
    torch.testing.assert_close(z.grad, direction)
    assert not list(quantizer.parameters())


def test_commitment_gradient() -> None:
    """The commitment loss pulls vectors towards their codes."""
    quantizer, z = started(normalize=False).eval(), torch.randn(4, 7, 3, requires_grad=True)
    quantized = quantizer(z)
    (gradient,) = torch.autograd.grad(quantized.commitment_loss, z)
    torch.testing.assert_close(gradient, 2 * (z - quantizer.lookup(quantized.codes)) / z.numel())


@pytest.mark.parametrize("normalize", [False, True])
def test_codes_are_moving_averages(normalize: bool) -> None:
    """The averages of VQ-VAE's appendix A.1, code by code."""
    quantizer = started(decay=0.9, normalize=normalize, revive_below=0.0)
    sums, counts = quantizer.sums.clone(), quantizer.counts.clone()
    for seed in range(3):
        z = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(seed))
        chosen = quantizer.nearest(z)
        quantizer(z)
        z = F.normalize(z, dim=-1) if normalize else z
        for code in range(5):
            own = z[chosen == code]
            sums[code] = 0.9 * sums[code] + 0.1 * own.sum(0)
            counts[code] = 0.9 * counts[code] + 0.1 * len(own)
        expected = sums / counts[:, None]
        expected = F.normalize(expected, dim=-1) if normalize else expected
        torch.testing.assert_close(quantizer.codebook, expected)
        torch.testing.assert_close(quantizer.counts, counts)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_first_batch_gives_the_codebook(normalize: bool) -> None:
    """k-means finds well separated clusters, given twice as many codes."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 8, normalize=normalize)
    z, label = clusters()
    loss = quantizer(z).commitment_loss
    assert quantizer.started and loss < 0.02
    codes = quantizer.nearest(z)
    for code in codes.unique():
        assert len(label[codes == code].unique()) == 1, "a code stands for one cluster"


def test_evaluation_and_lookups_change_nothing() -> None:
    quantizer = VectorQuantizer(5, 3)
    before = copy.deepcopy(quantizer.state_dict())
    z = torch.randn(4, 7, 3)
    quantizer.nearest(z)  # in training mode
    quantizer.eval()(z)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_a_collapsed_codebook_is_revived() -> None:
    """All codes but one lie where no vector is; with revival the data spread over them all, without it they do not."""
    spread = {}
    for revive_below in (0.0, 0.05):
        torch.manual_seed(0)
        quantizer = started(8, 8, decay=0.9, normalize=False, revive_below=revive_below)
        quantizer.codebook.fill_(100.0)
        quantizer.codebook[0] = 0.0
        quantizer.sums.copy_(quantizer.codebook)
        first = quantizer(clusters(0)[0])
        assert first.usage == 1 / 8 and first.perplexity == pytest.approx(1.0)
        for seed in range(1, 100):
            last = quantizer(clusters(seed)[0])
        spread[revive_below] = last.perplexity.item(), last.usage.item()
    assert spread[0.0] == (pytest.approx(1.0), 1 / 8)
    assert spread[0.05][0] > 6 and spread[0.05][1] >= 7 / 8


def test_codes_of_rare_vectors_live() -> None:
    """Revival spares a code that is chosen a tenth as often as the average one."""
    quantizer = started(2, 8, normalize=False, revive_below=0.05)
    quantizer.codebook.copy_(CENTRES[:2])
    quantizer.sums.copy_(CENTRES[:2])
    z = CENTRES[:1].repeat(1, 20, 1)
    z[:, 0] = CENTRES[1]
    for _ in range(500):
        quantizer(z)
    torch.testing.assert_close(quantizer.codebook, CENTRES[:2])


def test_measures_of_a_histogram() -> None:
    assert perplexity(torch.tensor([5.0, 5.0, 0.0, 5.0])) == pytest.approx(3.0)
    assert perplexity(torch.tensor([9.0, 0.0])) == pytest.approx(1.0)
    assert usage(torch.tensor([5.0, 5.0, 0.0, 5.0])) == 0.75


def test_state_dict_continues_bit_by_bit() -> None:
    """A copy from the state dict goes on bit by bit as the original does; another seed starts otherwise."""

    def run(quantizer: VectorQuantizer, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            quantizer(clusters(seed, noise=1.0)[0])

    whole, parts, resumed = (VectorQuantizer(32, 8) for _ in range(3))
    run(whole, range(6))
    run(parts, range(3))
    resumed.load_state_dict(parts.state_dict())
    run(resumed, range(3, 6))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    other = VectorQuantizer(32, 8)
    run(other, range(1, 2))
    assert not torch.equal(other.codebook, parts.codebook)
    initialize(resumed)
    assert not resumed.started


def test_autocast_changes_nothing() -> None:
    quantizer, z = started(), torch.randn(4, 7, 3).bfloat16()
    plain = copy.deepcopy(quantizer)(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        rough = quantizer(z)
    assert rough.vectors.dtype == torch.float32
    assert torch.equal(plain.codes, rough.codes) and torch.equal(plain.vectors, rough.vectors)


# ------------------------------------------------------------------ two processes


def _follow(rank: int, folder: str) -> None:
    torch.set_num_threads(1)  # a forked process must not use the threads of its parent
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    averaged, begun = started(16, 8, decay=0.9, revive_below=0.0), VectorQuantizer(16, 8, decay=0.5)
    for step in range(4):
        z = clusters(step, noise=1.0)[0].chunk(2)[rank]
        shown = averaged(z)
        torch.manual_seed(10 * step + rank)
        begun(z)
    torch.save((averaged.state_dict(), begun.state_dict(), shown.perplexity), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_keep_one_codebook(tmp_path: Path) -> None:
    """The averages of two half batches are those of the whole; start and revival agree whatever the seeds."""
    mp.start_processes(_follow, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for ours, theirs in zip(first[:2], second[:2], strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    whole = started(16, 8, decay=0.9, revive_below=0.0)
    for step in range(4):
        shown = whole(clusters(step, noise=1.0)[0])
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(first[0][name], value, atol=1e-5, rtol=1e-5)
    assert first[2] == second[2] == pytest.approx(shown.perplexity.item(), rel=1e-5)
