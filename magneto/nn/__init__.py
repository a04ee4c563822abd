"""Magneto and its baselines in plain PyTorch: stacks, stems, losses and the table of norm placements.

    from magneto.nn import BackboneConfig, Encoder

    encoder = Encoder(BackboneConfig(placement="magneto", num_layers=12, d_model=256))
    states = encoder(torch.randn(2, 100, 256))  # (B, T, d_model) -> the same

The names in `__all__` are the public interface; docs/python.md shows how to use them in a model of your own. They need
torch only, neither Lightning nor Hydra.
"""

from magneto.nn.config import BackboneConfig
from magneto.nn.contrastive import contrastive_loss
from magneto.nn.embeddings import AudioStem, PatchStem, TokenStem, VGGStem, VisionLanguageStem
from magneto.nn.flops import training_flops_per_token
from magneto.nn.init import Linear, initialize
from magneto.nn.kv_cache import KVCache, StaticKVCache
from magneto.nn.loss import CrossEntropy, chunked_cross_entropy
from magneto.nn.norm import build_norm
from magneto.nn.placement import PLACEMENTS, Depth, Placement, find_placement
from magneto.nn.transformer import Decoder, Encoder, EncoderDecoder, build_backbone
from magneto.nn.vision.pooling import PatchPooling
from magneto.nn.vision.random_projection import RandomProjection
from magneto.nn.vision.vector_quantizer import Quantized, VectorQuantizer
from magneto.nn.vision.visual_tokenizer import VisualTokenizer, VisualTokenizerConfig

__all__ = [
    "PLACEMENTS",
    "AudioStem",
    "BackboneConfig",
    "CrossEntropy",
    "Decoder",
    "Depth",
    "Encoder",
    "EncoderDecoder",
    "KVCache",
    "Linear",
    "PatchPooling",
    "PatchStem",
    "Placement",
    "Quantized",
    "RandomProjection",
    "StaticKVCache",
    "TokenStem",
    "VGGStem",
    "VectorQuantizer",
    "VisionLanguageStem",
    "VisualTokenizer",
    "VisualTokenizerConfig",
    "build_backbone",
    "build_norm",
    "chunked_cross_entropy",
    "contrastive_loss",
    "find_placement",
    "initialize",
    "training_flops_per_token",
]
