"""Floating-point operations of a training step, as model FLOP/s count them."""

from magneto.nn.config import BackboneConfig
from magneto.nn.placement import Side


def training_flops_per_token(
    config: BackboneConfig, length: int, *, side: Side | None = None, memory_length: float = 0
) -> float:
    """Return the model FLOPs of a forward and a backward pass through a stack, per token of a sequence.

    They are counted as in PaLM (arXiv 2204.02311, appendix B): 6 for each weight of a matrix product, and
    12 * layers * d_model * length for scores and weighted sums, causal or not; with an attention window its size in
    place of the length. Norms, biases, embeddings, stem and head
    are not counted, and neither is what activation checkpointing computes twice: model FLOPs compare models, not kernels.
    In a multiway stack each token goes through one expert, and only that one is counted.

    Args:
        config: description of the backbone.
        length: number of tokens T of the sequence.
        side: stack of an encoder-decoder; None for a model of one stack.
        memory_length: number of tokens S that the decoder of an encoder-decoder attends to. The products that compute
            their keys and values are divided among the T tokens of the decoder.

    Returns:
        FLOPs per token.
    """
    if side is None:
        assert config.architecture in ("encoder", "decoder"), "an encoder-decoder needs side="
        side = "encoder" if config.architecture == "encoder" else "decoder"
    d = config.d_model
    ffn_products = 3 if config.activation == "swiglu" else 2
    shared = config.kv_heads / config.num_heads  # of keys and values
    attention_products = 2 + 2 * shared + config.attention_gate
    weights = attention_products * d * d + ffn_products * d * config.ffn_width
    window = config.attention_window or length
    attended: float = min(length, window if side == "decoder" else 2 * window)
    if side == "decoder" and config.architecture == "encoder_decoder":
        weights_memory = 2 * shared * d * d * memory_length / length
        weights += (attention_products - 2 * shared) * d * d
        attended += memory_length
    else:
        weights_memory = 0.0
    layers = config.depth(side).own_layers
    return layers * (6 * (weights + weights_memory) + 12 * d * attended)
