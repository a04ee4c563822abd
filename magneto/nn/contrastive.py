"""Contrastive loss of pairs against all other combinations of a batch (CLIP, arXiv 2103.00020)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def contrastive_loss(
    vision: Tensor, text: Tensor, scale: Tensor, labels: Tensor, *, gather: bool = False
) -> Tensor:
    """Compute the cross-entropy of retrieving texts by images and images by texts, the mean of both directions.

    Pairs that share a label are correct for one another, as two images with the same caption.

    Args:
        vision: (B, E), vectors of length 1.
        text: (B, E), vectors of length 1.
        scale: scalar factor of the similarities, 1 / temperature.
        labels: (B, L) int64; two pairs match if one of the L columns is equal.
        gather: compare with the pairs of all processes, all of which must call this together. The gradient is that of
            one process with all pairs.

    Returns:
        Scalar fp32, summed over the B pairs.
    """
    with torch.autocast(vision.device.type, enabled=False):
        vision, text = vision.float(), text.float()
        every_vision, every_text, every_label = vision, text, labels
        if gather and dist.is_available() and dist.is_initialized():
            every_vision, every_text, every_label = (of_all_processes(x) for x in (vision, text, labels))
        same = (labels[:, None] == every_label[None]).any(-1).float()
        targets = same / same.sum(1, keepdim=True)  # (B, pairs of all processes)
        of_images = F.cross_entropy(scale * vision @ every_text.T, targets, reduction="sum")
        return (of_images + F.cross_entropy(scale * text @ every_vision.T, targets, reduction="sum")) / 2


def of_all_processes(x: Tensor) -> Tensor:
    """Concatenate (B, ...) of all processes in the order of the ranks, with gradients; B may differ."""
    own = torch.tensor([len(x)], device=x.device)
    sizes = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    counts = [int(size) for size in sizes]
    padded = torch.cat((x, x.new_zeros(max(counts) - len(x), *x.shape[1:])))
    if x.is_floating_point():
        parts = list(all_gather(padded))  # type: ignore[no-untyped-call]
    else:
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
