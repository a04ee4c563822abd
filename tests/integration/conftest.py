"""Fixtures of the tests of runs (a small language model, killed or finished) and of the scripts in benchmarks."""

import importlib
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from magneto.data.text.module import TextDataModule

Run = Callable[..., dict[str, Any]]
Kill = Callable[..., AbstractContextManager[None]]
Script = Callable[..., Any]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """`script("generation", "--rounds", 1)`: its module, ready for `main()` with these arguments."""

    def load(name: str, *arguments: object) -> Any:
        monkeypatch.syspath_prepend(str(BENCHMARKS))  # they import what they share by its bare name
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        return importlib.import_module(f"benchmarks.{name}")

    return load


@pytest.fixture
def run_lm(run_text: Run) -> Run:
    return lambda *overrides: run_text("task=causal_lm", "trainer.max_steps=8", *overrides)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `killed` keeps the run that it copies: one serves all tests."""
    return tmp_path_factory.mktemp("killed") / "one"


@pytest.fixture
def killed(run_lm: Run, kill_after_save: Kill, kept: Path, tmp_path: Path) -> Path:
    """The folder of the run `name=one`, which was killed after its third step."""
    folder = tmp_path / "runs/causal_lm/one"
    if not kept.exists():
        with kill_after_save(3):
            run_lm("name=one")
        folder.rename(kept)
    shutil.copytree(kept, folder)
    return folder


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Preparing data is an error from the call on."""

    def prepare(self: TextDataModule) -> None:
        pytest.fail("data were prepared")

    return lambda: monkeypatch.setattr(TextDataModule, "prepare", prepare)
