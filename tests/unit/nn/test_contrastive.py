"""The contrastive loss: against a computation by hand, with captions that fit several images, over two processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from magneto.nn.contrastive import contrastive_loss


def pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vision, text = (F.normalize(torch.randn(count, 6, generator=generator), dim=-1) for _ in range(2))
    return vision, text


def labels_of(*captions: int) -> Tensor:
    """Each image for itself, captions as given."""
    return torch.stack((torch.arange(len(captions)), 100 + torch.tensor(captions)), dim=1)


def by_hand(vision: Tensor, text: Tensor, scale: float, captions: list[int]) -> float:
    """-log of the share that the right ones have, averaged over them, pair by pair in float64."""
    total = 0.0
    for queries, gallery in ((vision, text), (text, vision)):
        for row, query in enumerate(queries.double()):
            shares = (scale * gallery.double() @ query).softmax(0)
            right = [place for place, caption in enumerate(captions) if caption == captions[row]]
            total -= float(shares[right].log().mean()) / 2
    return total


@pytest.mark.parametrize("captions", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0], [0, 0, 0, 0, 0]])
def test_loss_is_the_mean_of_both_directions(captions: list[int]) -> None:
    vision, text = pairs(5)
    loss = contrastive_loss(vision, text, torch.tensor(9.0), labels_of(*captions))
    assert float(loss) == pytest.approx(by_hand(vision, text, 9.0, captions), rel=1e-5)


def test_a_column_is_enough_to_be_alike() -> None:
    """Two captions of one image: each is right for it."""
    vision, text = pairs(3)
    labels = torch.tensor([[0, 10], [0, 11], [1, 12]])
    loss = contrastive_loss(vision, text, torch.tensor(5.0), labels)
    assert float(loss) == pytest.approx(by_hand(vision, text, 5.0, [0, 0, 1]), rel=1e-5)


def test_perfect_pairs_and_autocast() -> None:
    """Perfect pairs have no loss, and autocast changes nothing."""
    vision = torch.eye(6)[:4]
    assert float(contrastive_loss(vision, vision, torch.tensor(100.0), labels_of(0, 1, 2, 3))) < 1e-6
    vision, text = pairs(4)
    plain = contrastive_loss(vision, text, torch.tensor(50.0), labels_of(0, 1, 2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(vision, text, torch.tensor(50.0), labels_of(0, 1, 2, 3)), plain)


CAPTIONS = [0, 1, 2, 0, 3, 4, 1]


def _gradients(vision: Tensor, text: Tensor, labels: Tensor, gather: bool) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (vision, text, torch.tensor(7.0))]
    loss = contrastive_loss(leaves[0], leaves[1], leaves[2], labels, gather=gather)
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)  # a forked process must not use the threads of its parent
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    own = slice(0, 4) if rank == 0 else slice(4, 7)  # of unequal size
    vision, text = pairs(7)
    torch.save(_gradients(vision[own], text[own], labels_of(*CAPTIONS)[own], True), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compare_all_pairs(tmp_path: Path) -> None:
    """Losses add up to that of one process with all pairs, and so do the gradients: of each vector, and of the scale."""
    mp.start_processes(_on_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    loss, vision, text, scale = _gradients(*pairs(7), labels_of(*CAPTIONS), False)
    torch.testing.assert_close(parts[0][0] + parts[1][0], loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), vision)
    torch.testing.assert_close(torch.cat([part[2] for part in parts]), text)
    torch.testing.assert_close(parts[0][3] + parts[1][3], scale)
