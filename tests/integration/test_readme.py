"""The README's Python runs as it stands."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_backbone_block_runs() -> None:
    """The encoder of the first block keeps the shape of what it is given."""
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    assert names["states"].shape == torch.Size((2, 100, 256))


def test_prediction_block_runs(run_text: Callable[..., dict[str, Any]], capsys: Any) -> None:
    """The second block continues a prompt with a run of its own task."""
    result = run_text("task=causal_lm", "task.sample={max_new_tokens: 4}", "trainer.max_steps=8")
    folder = re.search(r'load_task\("(.*?)"\)', BLOCKS[1])
    assert folder is not None and Path(folder[1]).parts[:2] == ("runs", "causal_lm")
    capsys.readouterr()
    exec(BLOCKS[1].replace(folder[1], result["folder"]), {})
    assert capsys.readouterr().out.strip()
