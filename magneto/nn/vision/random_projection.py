"""Random targets without training: the nearest of random codes to a random projection (BEST-RQ)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEED = 0  # of projection and codes: the same targets in every run


class RandomProjection(nn.Module):
    """Discrete codes of patches (Chiu et al., arXiv 2202.01855, there of speech).

    Each patch is normalised by its mean and standard deviation, projected to `width` dimensions, and gets the code of the
    nearest direction. All patches of constant brightness have the same code.

    Args:
        patch_size: side of a patch in pixels.
        channels: channels of the images.
        codes: size of the codebook.
        width: dimensions of a code.
    """

    projection: Tensor
    codebook: Tensor

    def __init__(self, patch_size: int, channels: int, codes: int, width: int = 16) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(SEED)
        self.patch_size = patch_size
        self.register_buffer("projection", torch.randn(channels * patch_size**2, width, generator=random))
        self.register_buffer("codebook", F.normalize(torch.randn(codes, width, generator=random), dim=-1))

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """Return the codes of images (B, channels, H, W): (B, N) int64, patches in rows."""
        with torch.autocast(images.device.type, enabled=False):
            patches = F.pixel_unshuffle(images.float(), self.patch_size).flatten(2).transpose(1, 2)
            patches = F.layer_norm(patches, patches.shape[-1:])
            return (patches @ self.projection @ self.codebook.T).argmax(-1)
