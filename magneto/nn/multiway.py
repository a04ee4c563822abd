"""Multiway Transformers: modalities that share a stack, each with weights of its own (BEiT-3, arXiv 2208.10442, 2.1).

A batch is of images, of texts, or of pairs of the two: its first `num_vision_tokens` tokens are vision, the others text.
An expert is a whole residual sub-layer with its norms, as in the code of VLMo (arXiv 2111.02358) and of torchscale. Width
and cost of a token are those of a stack without experts.

| multiway     | shared                         | of each modality                             |
|--------------|--------------------------------|----------------------------------------------|
| none         | everything                     |                                              |
| feed_forward | attention, input and final norm| the feed-forward sub-layer                   |
| full         | the softmax of attention       | all linear maps, all norms                   |

The paper of BEiT-3 describes the second; torchscale and the released weights have the third. In the top `fusion_layers`,
pairs go through a third feed-forward instead of these two.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from magneto.nn.attention import Context, SelfAttention
from magneto.nn.kv_cache import LayerCache
from magneto.nn.residual import Residual


class Experts(nn.Module):
    """One module for each modality, which acts on each token alone: (B, T, d_model) -> the same.

    Stochastic depth acts on each modality of a pair separately.

    Args:
        build: builds one of the modules.
        fusion: whether there is a third, for pairs as a whole.
    """

    def __init__(self, build: Callable[[], nn.Module], *, fusion: bool = False) -> None:
        super().__init__()
        self.vision = build()
        self.text = build()
        self.fusion = build() if fusion else None

    def forward(self, x: Tensor, num_vision_tokens: int | None) -> Tensor:
        assert num_vision_tokens is not None
        out: Tensor
        if num_vision_tokens == 0:
            out = self.text(x)
        elif num_vision_tokens == x.size(1):
            out = self.vision(x)
        elif self.fusion is not None:
            out = self.fusion(x)
        else:
            vision, text = x.tensor_split((num_vision_tokens,), dim=1)
            out = torch.cat((self.vision(vision), self.text(text)), dim=1)
        return out


def apply_experts(module: nn.Module, x: Tensor, num_vision_tokens: int | None) -> Tensor:
    """Apply a module that acts on each token alone, by modality if it is `Experts`: (B, T, d_model) -> the same."""
    return module(x, num_vision_tokens) if isinstance(module, Experts) else module(x)


class SharedAttention(nn.Module):
    """Self-attention over all tokens, with norms and projections of each modality.

    Args:
        build: builds the self-attention sub-layer of one modality.
    """

    def __init__(self, build: Callable[[], Residual]) -> None:
        super().__init__()
        self.vision = build()
        self.text = build()

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        """Apply the sub-layer: (B, T, d_model) -> the same; an encoder has no `cache`."""
        n = context.num_vision_tokens
        assert n is not None and cache is None
        if n in (0, x.size(1)):
            return (self.text if n == 0 else self.vision)(x, context)
        vision, text = self.vision.branch, self.text.branch
        assert isinstance(vision, SelfAttention) and isinstance(text, SelfAttention)
        images, texts = x.tensor_split((n,), dim=1)  # (B, n, d_model), (B, T - n, d_model)
        read_images, images = self.vision.pre(images)
        read_texts, texts = self.text.pre(texts)
        both = zip(vision.split_qkv(read_images), text.split_qkv(read_texts), strict=True)
        q, k, v = (torch.cat(parts, dim=1) for parts in both)  # (B, T, heads, head_dim)
        q, k, v = vision.apply_rotary(q, k, v, context)  # (B, heads, T, head_dim)
        h = vision.attention(q, k, v, context.bias, context.causal, context.sparse)  # (B, T, heads, head_dim)
        images = self.vision.post(vision.output(h[:, :n], read_images), images)  # (B, n, d_model)
        texts = self.text.post(text.output(h[:, n:], read_texts), texts)  # (B, T - n, d_model)
        return torch.cat((images, texts), dim=1)  # (B, T, d_model)
