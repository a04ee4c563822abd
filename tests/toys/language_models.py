"""A causal language model with random weights, as an export."""

from pathlib import Path

import torch

from magneto.data.text.dataset import TextInfo
from magneto.data.tokenizers.text import TextTokenizer
from magneto.tasks.causal_lm import CausalLM
from magneto.training.checkpoint_io import export
from tests.toys.runs import info_of

TEXT = "the cat sat on the mat. the dog sat on the cat. the mat is on the dog."


def export_untrained(folder: Path, context: int) -> Path:
    """Return the export of a small model whose context has `context` tokens; its vocabulary has all bytes."""
    torch.manual_seed(0)
    tokenizer = TextTokenizer.train([TEXT], kind="byte_bpe", vocab_size=275)
    task = CausalLM(
        backbone={
            "architecture": "decoder", "num_layers": 2, "d_model": 32, "num_heads": 4, "position": "rotary",
            "max_positions": context,
        },
        info=info_of(TextInfo, tokenizer=tokenizer.to_json(), vocab_size=275, block_size=context),
        optimizer={"lr": 1e-3}, scheduler={"name": "constant"}, total_steps=1,
    )  # fmt: skip
    return export(task, folder / "export")
