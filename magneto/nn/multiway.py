"""Multiway Transformers: modalities that share a stack, each with weights of its own (BEiT-3, arXiv 2208.10442, 2.1).

A batch is of images, of texts, or of pairs of the two. `split` tells which: its first `split` tokens are vision, the
others text. An expert is a whole residual sub-layer with its norms, as in the code of VLMo (arXiv 2111.02358) and of
torchscale; what a token goes through is as wide as without experts, and costs as much.

| multiway     | shared                         | of each modality                             |
|--------------|--------------------------------|----------------------------------------------|
| none         | everything                     |                                              |
| feed_forward | attention, input and final norm| the feed-forward sub-layer                   |
| full         | the softmax of attention       | all linear maps, all norms                   |

BEiT-3's paper draws the second; torchscale, and the weights that were released, have the third. In the top
`fusion_layers` pairs leave both feed-forwards alone and take a third one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from magneto.nn.attention import Context, LayerCache, SelfAttention
from magneto.nn.residual import Residual


class Experts(nn.Module):
    """One module for each modality, of a kind that treats every token by itself: (B, T, d_model) -> the same.

    Stochastic depth is drawn for each modality of a pair.

    Args:
        build: makes one of them.
        fusion: whether there is a third, which pairs go through as a whole.
    """

    def __init__(self, build: Callable[[], nn.Module], *, fusion: bool = False) -> None:
        super().__init__()
        self.vision = build()
        self.text = build()
        self.fusion = build() if fusion else None

    def forward(self, x: Tensor, split: int | None) -> Tensor:
        assert split is not None
        out: Tensor
        if split == 0:
            out = self.text(x)
        elif split == x.size(1):
            out = self.vision(x)
        elif self.fusion is not None:
            out = self.fusion(x)
        else:
            vision, text = x.split_with_sizes((split, x.size(1) - split), dim=1)
            out = torch.cat((self.vision(vision), self.text(text)), dim=1)
        return out


class SharedAttention(nn.Module):
    """Self-attention over all tokens, to which each modality brings its own norms and projections.

    Args:
        build: makes the self-attention sub-layer of one modality.
    """

    def __init__(self, build: Callable[[], Residual]) -> None:
        super().__init__()
        self.vision = build()
        self.text = build()

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        """One step of the stream, (B, T, d_model) -> the same; encoders know no `cache`."""
        split = context.split
        assert split is not None and cache is None
        out: Tensor
        if split == 0:
            out = self.text(x, context)
            return out
        if split == x.size(1):
            out = self.vision(x, context)
            return out
        parts = x.split_with_sizes((split, x.size(1) - split), dim=1)
        vision, text = self.vision.branch, self.text.branch
        assert isinstance(vision, SelfAttention) and isinstance(text, SelfAttention)
        both = zip(
            vision.project(self.vision.enter(parts[0])),
            text.project(self.text.enter(parts[1])),
            strict=True,
        )
        q, k, v = (torch.cat(pair, dim=1) for pair in both)
        h = vision.mix(*vision.place(q, k, v, context), context.bias, context.causal)
        return torch.cat(
            (
                self.vision.leave(vision.merge(h[:, :split]), parts[0]),
                self.text.leave(text.merge(h[:, split:]), parts[1]),
            ),
            dim=1,
        )
