"""The Python blocks of README.md and docs/python.md run as they stand."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from magneto.errors import ConfigError
from tests.toys.runs import drive

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/python.md")}
BLOCKS = [
    pytest.param(block, id=f"{name}-{index}")
    for name, page in PAGES.items()
    for index, block in enumerate(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
]
LOADS = re.compile(r'(?:magneto\.load|load_task)\("(.*?)"\)')


@pytest.mark.parametrize("block", [block for block in BLOCKS if not LOADS.search(block.values[0])])
def test_block_runs(block: str) -> None:
    """A block without a trained model defines or computes what it says."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(block, names)
    shapes = {"states": (2, 100, 256), "scores": (2, 20, 5), "tokens": (2, 13)}
    for name, shape in shapes.items():
        assert names.get(name) is None or names[name].shape == torch.Size(shape)


@pytest.mark.parametrize("block", [block for block in BLOCKS if LOADS.search(block.values[0])])
def test_prediction_block_runs(
    block: str, run_text: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A block with a trained model predicts with a small run of the task that it names."""
    result = run_text("task=causal_lm", "task.sample={max_new_tokens: 4}", "trainer.max_steps=8")
    folder = LOADS.search(block)
    assert folder is not None and Path(folder[1]).parts[:2] == ("runs", "causal_lm")
    capsys.readouterr()
    exec(block.replace(folder[1], result["folder"]), {})
    assert capsys.readouterr().out.strip()


def test_own_task_and_data_module_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_overrides: list[str]
) -> None:
    """The classes of docs/python.md, outside of the package, in a run by `_target_`."""
    (code,) = re.findall(r'```python\n(""".*?)```', PAGES["docs/python.md"], flags=re.DOTALL)
    (yaml,) = re.findall(r"```yaml\n(.*?)```", PAGES["docs/python.md"], flags=re.DOTALL)
    (tmp_path / "my_lm.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "conf/task").mkdir(parents=True)
    (tmp_path / "conf/task/my_lm.yaml").write_text(yaml)
    search = f"hydra.searchpath=[file://{tmp_path}/conf]"
    result = drive(
        [search, "task=my_lm", *text_overrides, "trainer.max_steps=3", "task.sample.max_new_tokens=4"]
    )
    assert result["status"] == "finished"
    assert result["config"]["task"]["_target_"] == "my_lm.DropoutLM"
    assert result["config"]["data"]["_target_"] == "my_lm.NoisyText"


def test_own_callback_and_logger(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text_overrides: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The classes of docs/python.md take part in a run by `callbacks.extra` and `logger.extra`."""
    (code,) = (str(block.values[0]) for block in BLOCKS if "class Table" in str(block.values[0]))
    (tmp_path / "my_extras.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    result = drive(
        [
            "task=causal_lm", *text_overrides, "trainer.max_steps=4", "trainer.val_check_interval=4",
            "task.sample.max_new_tokens=4",
            "+callbacks.extra.announce={_target_: my_extras.Announce, prefix: now}",
            f"+logger.extra.table={{_target_: my_extras.Table, save_dir: {tmp_path}/tables}}",
        ]
    )  # fmt: skip
    assert result["status"] == "finished"
    assert "'val/loss'" in capsys.readouterr().out.partition("now {")[2]
    (table,) = (tmp_path / "tables").rglob("metrics.csv")
    assert "val/loss" in table.read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+callbacks.extra.mine={_target_: my.Thing}", "callbacks.extra.mine"),
        ("+callbacks.extra.mine=5", "names no class. Set callbacks.extra.mine._target_"),
        (
            "+logger.extra.mine={_target_: collections.Counter}",
            "is no lightning.pytorch.loggers.logger.Logger",
        ),
        (
            "+callbacks.extra.mine={_target_: lightning.pytorch.callbacks.Timer, dration: 1}",
            "Did you mean 'callbacks.extra.mine.duration'",
        ),
    ],
)
def test_wrong_extras_are_refused(override: str, message: str, text_overrides: list[str]) -> None:
    """Before anything is prepared."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        drive(["task=causal_lm", *text_overrides, override])
