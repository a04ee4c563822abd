"""docs/add_a_task.md: its files are a task, as they stand there."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import magneto
from tests.toys.runs import drive

PAGE = Path(__file__).parents[2] / "docs/add_a_task.md"


def blocks(language: str) -> list[str]:
    """The blocks of code in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def page_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's files in place; what the command line has to say for the YAML to be found."""
    module = ModuleType("magneto.tasks.next_token")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(blocks("python")[0], str(PAGE), "exec"), module.__dict__)
    for group, text in zip(("task", "predict"), blocks("yaml"), strict=True):
        file = tmp_path / f"conf/{group}/next_token.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    return f"hydra.searchpath=[file://{tmp_path}/conf]"


def test_page_task_trains_and_predicts(
    page_task: str, text_overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # The corpus is chosen first, so that the YAML's own is there to be replaced.
    run: Callable[..., dict[str, Any]] = lambda *more: drive(
        [page_task, "task=next_token", "optimizer.lr=1e-2", *text_overrides], *more
    )
    results = [run(f"backbone={name}", f"name={name}") for name in ("post_ln", "pre_ln", "magneto")]
    for result in results:
        assert result["status"] == "finished" and result["primary_metric"] == "test/accuracy"
        # In a language where a word of four letters is followed by one of two, a fifth is learnt at once.
        assert result["metrics"]["test/accuracy"] > 0.2
        assert "guesses" in Path(result["folder"], "samples.jsonl").read_text()
    capsys.readouterr()
    folder = Path(results[-1]["folder"])
    for checkpoint in (folder / "checkpoints/best.ckpt", folder / "export"):
        drive(
            [page_task, "predict=next_token"],
            "mode=predict",
            f"checkpoint={checkpoint}",
            "prompt=baku cedo",
            "predict.tokens=3",
        )
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and first.startswith("baku cedo") and len(first) > len("baku cedo")
    model = magneto.load(folder)
    assert "baku cedo" + model.predict("baku cedo", tokens=3)["continuation"] == first
