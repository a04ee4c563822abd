"""Vector quantisation with a codebook of moving averages (van den Oord et al., arXiv 1711.00937, appendix A.1)."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 8192
"""Number of vectors whose distances to all codes are in memory at once."""


class Quantized(NamedTuple):
    """Output of `VectorQuantizer` for z (B, N, width).

    Attributes:
        vectors: (B, N, width), the vectors of the codes; z gets their gradient unchanged (straight-through).
        codes: (B, N) int64.
        commitment_loss: scalar, mean squared distance of z from its codes, which pulls z towards them. The caller weights
            it (0.25 in VQ-VAE, 1 in BEiT v2).
        perplexity: exponential of the entropy of the codes of this batch, in training of all processes; no gradient.
        usage: share of the codebook that occurs in this batch, in training of all processes; no gradient.
    """

    vectors: Tensor
    codes: Tensor
    commitment_loss: Tensor
    perplexity: Tensor
    usage: Tensor


def perplexity(counts: Tensor) -> Tensor:
    """Return the exponential of the entropy of a histogram (codes,): the number of equally frequent codes it equals."""
    shares = counts / counts.sum().clamp(min=1)
    return torch.xlogy(shares, shares).sum().neg().exp()


def usage(counts: Tensor) -> Tensor:
    """Return the share of the entries of a histogram (codes,) that are not zero."""
    return (counts > 0).float().mean()


class VectorQuantizer(nn.Module):
    """Quantisation of vectors to the nearest of the codes of a codebook.

    The codebook has no gradient. In training mode each code is the mean of the vectors assigned to it: an exponential
    moving average of their sum and number, over all processes. It starts as the k-means centres of the first batch in
    training mode. A code whose number falls below `revive_below` times the average is replaced by a random vector of the
    batch, with the number of an average code.

    With `normalize` vectors and codes have length 1, so that the nearest has the largest cosine (BEiT v2, arXiv
    2208.06366, 2.2). BEiT v2 averages the directions of the batches' means; here all vectors have equal weight.

    All state is in buffers, and random numbers are from torch's global generator. Everything is fp32, also under autocast.

    Args:
        codes: size of the codebook.
        width: channels of a vector.
        decay: decay of the moving averages per batch.
        normalize: whether vectors and codes have length 1.
        revive_below: see above; 0 keeps all codes. With a decay of 0.99, 0.05 means that a code of average number was not
            assigned for 300 batches.
        kmeans_iterations: iterations of k-means at the start.

    Shape:
        Input: (B, N, width). Output: `Quantized`.
    """

    codebook: Tensor
    sums: Tensor
    counts: Tensor
    started: Tensor

    def __init__(
        self,
        codes: int,
        width: int,
        *,
        decay: float = 0.99,
        normalize: bool = True,
        revive_below: float = 0.05,
        kmeans_iterations: int = 10,
    ) -> None:
        super().__init__()
        self.decay, self.normalize = decay, normalize
        self.revive_below, self.kmeans_iterations = revive_below, kmeans_iterations
        self.register_buffer("codebook", torch.empty(codes, width))
        self.register_buffer("sums", torch.empty(codes, width))
        self.register_buffer("counts", torch.empty(codes))
        self.register_buffer("started", torch.tensor(False))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set a random codebook, which the first batch in training mode replaces."""
        nn.init.normal_(self.codebook, std=self.codebook.size(1) ** -0.5)
        self.codebook.copy_(self._on_sphere(self.codebook))
        self.sums.copy_(self.codebook)
        self.counts.fill_(1.0)
        self.started.fill_(False)

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            z = self._on_sphere(z.float())
            flat = z.detach().flatten(0, 1)
            if self.training and not self.started:
                self._start(flat)
            flat_codes = self._nearest(flat)
            vectors = F.embedding(flat_codes, self.codebook).view_as(z)
            if self.training:
                sums, counts = self._statistics(flat, flat_codes)
                self._update(sums, counts, flat)
            else:
                counts = torch.bincount(flat_codes, minlength=len(self.codebook)).float()
            return Quantized(
                vectors=z + (vectors - z).detach(),
                codes=flat_codes.view(z.shape[:2]),
                commitment_loss=F.mse_loss(z, vectors),
                perplexity=perplexity(counts),
                usage=usage(counts),
            )

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Return the codes of z (B, N, width), (B, N) int64, and change no state, in training mode too."""
        with torch.autocast(z.device.type, enabled=False):
            return self._nearest(self._on_sphere(z.float()).flatten(0, 1)).view(z.shape[:2])

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors of codes (...) int64: (..., width)."""
        return F.embedding(codes, self.codebook)

    def extra_repr(self) -> str:
        codes, width = self.codebook.shape
        return f"codes={codes}, width={width}, decay={self.decay}, normalize={self.normalize}"

    # Methods of flat vectors (M, width), without gradient.

    def _on_sphere(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def _nearest(self, flat: Tensor) -> Tensor:
        # |z - e|^2 without |z|^2, which is the same for all codes
        squares = self.codebook.square().sum(1) / 2
        parts = [
            torch.addmm(squares, part, self.codebook.T, beta=-1).argmax(1)
            for part in torch.split(flat, _ROWS)
        ]
        return torch.cat(parts)

    def _statistics(self, flat: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return sum (codes, width) and number (codes,) of the vectors assigned to each code, over all processes."""
        sums = torch.zeros_like(self.sums).index_add_(0, codes, flat)
        counts = torch.bincount(codes, minlength=len(sums)).to(flat.dtype)
        if _distributed():
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        return sums, counts

    def _sample(self, flat: Tensor) -> Tensor:
        """Return a random vector for each code, none twice before all are used; all processes get those of the first."""
        order = torch.randperm(len(flat), device=flat.device)
        samples = flat[order[torch.arange(len(self.codebook), device=flat.device) % len(flat)]]
        if _distributed():
            dist.broadcast(samples, src=0)
        return samples

    def _start(self, flat: Tensor) -> None:
        """Set the codebook by k-means on the first batch."""
        self.codebook.copy_(self._sample(flat))
        for _ in range(self.kmeans_iterations):
            sums, counts = self._statistics(flat, self._nearest(flat))
            self._set_means(sums, counts)
        sums, counts = self._statistics(flat, self._nearest(flat))
        # An empty centre counts as one vector.
        self.counts.copy_(counts.clamp(min=1))
        self.sums.copy_(torch.where(counts[:, None] > 0, sums, self.codebook))
        self.started.fill_(True)

    def _update(self, sums: Tensor, counts: Tensor, flat: Tensor) -> None:
        """Update the moving averages and replace unused codes."""
        self.sums.lerp_(sums, 1 - self.decay)
        self.counts.lerp_(counts, 1 - self.decay)
        self._set_means(self.sums, self.counts)
        if self.revive_below:
            average = self.counts.mean()
            dead = self.counts < self.revive_below * average
            samples = self._sample(flat)
            self.codebook.copy_(torch.where(dead[:, None], samples, self.codebook))
            self.sums.copy_(torch.where(dead[:, None], samples * average, self.sums))
            self.counts.copy_(torch.where(dead, average, self.counts))

    def _set_means(self, sums: Tensor, counts: Tensor) -> None:
        """Set each code to the mean of its vectors; codes without vectors stay as they are."""
        means = self._on_sphere(sums / counts.clamp(min=1e-6)[:, None])
        self.codebook.copy_(torch.where(counts[:, None] > 1e-6, means, self.codebook))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
