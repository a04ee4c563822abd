"""Magneto and its baselines in plain PyTorch: stacks, stems and the table of norm placements."""

from magneto.nn.attention import KVCache
from magneto.nn.config import BackboneConfig
from magneto.nn.embeddings import AudioStem, PatchStem, TokenStem, VisionLanguageStem
from magneto.nn.flops import training_flops_per_token
from magneto.nn.init import Linear, initialize
from magneto.nn.loss import CrossEntropy, chunked_cross_entropy
from magneto.nn.norm import build_norm
from magneto.nn.placement import PLACEMENTS, Depth, Placement
from magneto.nn.transformer import Decoder, Encoder, EncoderDecoder, build_backbone
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
    "PatchStem",
    "Placement",
    "Quantized",
    "TokenStem",
    "VectorQuantizer",
    "VisionLanguageStem",
    "VisualTokenizer",
    "VisualTokenizerConfig",
    "build_backbone",
    "build_norm",
    "chunked_cross_entropy",
    "initialize",
    "training_flops_per_token",
]
