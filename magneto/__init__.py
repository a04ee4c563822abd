"""magneto: an experiment framework for Foundation Transformers (Lightning, Hydra, Weights & Biases)."""

__version__ = "0.1.0"
