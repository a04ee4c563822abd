"""Fixtures of the whole suite: tiny corpora that can be learnt, and runs through the real entry point."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.babble import toy_text, write_babble
from tests.toys.runs import Killed, drive, killed_after_save, values
from tests.toys.tones import toy_speech, write_manifest_of_tones
from tests.toys.translation import toy_translation, write_translation


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_manifest_of_tones`."""
    return write_manifest_of_tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data folder for all runs of a worker: the corpus is prepared once."""
    return tmp_path_factory.mktemp("data")


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def overrides(tones: Path, prepared_dir: Path, tmp_path: Path) -> list[str]:
    """A small, deterministic ASR run on the tones, as overrides of the real configuration."""
    return toy_speech(tones, prepared_dir, tmp_path)


@pytest.fixture(scope="session")
def toy_translation_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_translation`."""
    return write_translation(tmp_path_factory.mktemp("parallel"))


@pytest.fixture
def translation_overrides(toy_translation_files: Path, prepared_dir: Path, tmp_path: Path) -> list[str]:
    """See `toy_translation`."""
    return toy_translation(toy_translation_files, prepared_dir, tmp_path / "runs")


@pytest.fixture
def run(overrides: list[str]) -> Run:
    """`run("seed=2", ...)` composes the real configuration with further overrides and drives `magneto.commands.run`."""
    return partial(drive, overrides)


@pytest.fixture(scope="session")
def babble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_babble`."""
    return write_babble(tmp_path_factory.mktemp("babble"))


@pytest.fixture
def text_overrides(babble: Path, prepared_dir: Path, tmp_path: Path) -> list[str]:
    """See `toy_text`."""
    return toy_text(babble, prepared_dir, tmp_path)


@pytest.fixture
def run_text(text_overrides: list[str]) -> Run:
    """`run_text("task=causal_lm", "seed=2", ...)`: as `run`, on texts."""
    return partial(drive, text_overrides)


@pytest.fixture
def kill_after_save() -> Callable[[int], AbstractContextManager[None]]:
    """`with kill_after_save(12): run(...)`: the run dies right after it has written last.ckpt at step 12 or later."""

    @contextmanager
    def killing(step: int = 0) -> Iterator[None]:
        with pytest.raises(Killed), killed_after_save(step):
            yield

    return killing


@pytest.fixture
def rows_of() -> Callable[..., list[tuple[str, ...]]]:
    """See `toys.runs.values`."""
    return values


@pytest.fixture
def resumes_identically(
    kill_after_save: Callable[[int], AbstractContextManager[None]],
) -> Callable[..., dict[str, Any]]:
    """`resumes_identically(run, "seed=2", stop_at=8)`: a run killed there and repeated gives what an unbroken one gives:
    metrics, curves and weights, bit by bit. Returns its result.
    """

    def check(run: Run, *overrides: str, stop_at: int) -> dict[str, Any]:
        whole = run("name=whole", *overrides)
        with kill_after_save(stop_at):
            run("name=parts", *overrides)
        parts = run("name=parts", *overrides)
        assert parts["status"] == whole["status"] == "finished"
        assert parts["metrics"] == whole["metrics"]
        assert values(parts["folder"]) == values(whole["folder"])
        last = [
            torch.load(Path(result["folder"]) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for result in (whole, parts)
        ]
        assert last[0].keys() == last[1].keys()
        for name, weight in last[0].items():
            assert torch.equal(weight, last[1][name]), name
        return parts

    return check
