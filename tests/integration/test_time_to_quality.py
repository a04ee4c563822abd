"""The leaderboard's peers, on small data: each learns from our batches and is scored as our task is; table and figure."""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import magneto
from magneto.commands.build import prepared_data
from tests.integration.test_golden_curves import CASES
from tests.toys.runs import drive

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("time_to_quality")


@pytest.mark.parametrize("case", ["causal_lm", "mlm", "mt", "beit", "asr", "vl"])
def test_peers_learn_from_our_batches(
    case: str, board: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings = CASES[case](request, tmp_path)
    ours = drive(settings, f"runs_dir={tmp_path / 'runs'}", "trainer.max_steps=2")
    data = prepared_data(settings)
    peer = board.PEERS[case](magneto.load(ours["folder"]), data)
    data.configure_run(1)
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    model = peer.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model(**peer.inputs(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    result = board.theirs(peer, case, 1, 1e-3, 0.01, tmp_path)
    assert result.steps >= board.EVALUATIONS == len(result.curve)
    assert all(math.isfinite(value) for _, value in result.curve) and math.isfinite(result.test)
    assert result.parameters == sum(p.numel() for p in model.parameters())


def test_scores_of_a_peer_are_ours(board: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Our own model behind the peer's interface has the score that our run logged."""
    settings = CASES["causal_lm"](request, tmp_path)
    ours = drive(
        settings, f"runs_dir={tmp_path / 'runs'}", "trainer.max_steps=2", "trainer.precision=32-true"
    )
    task, data = magneto.load(ours["folder"]), prepared_data(settings)

    class Logits(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> Any:
            hidden = task(input_ids)
            return type("Output", (), {"logits": torch.nn.functional.linear(hidden, task.output_weight)})

    score = board.score(board.PEERS["causal_lm"](task, data), Logits(), data.test_dataloader(), bf16=False)
    assert score == pytest.approx(ours["metrics"]["test/bits_per_byte"], rel=1e-5)


def test_board_of_two_systems(board: Any, tmp_path: Path) -> None:
    def result(system: str, lr: float | None, values: list[float], test: float) -> Any:
        curve = [(float(minute + 1), value) for minute, value in enumerate(values)]
        return board.Result(
            system=system, task="causal_lm", seed=1, lr=lr, minutes=float(len(values)), steps=10, parameters=1_000_000,
            curve=curve, test=test,
        )  # fmt: skip

    runs = [
        result("magneto", None, [2.0, 1.5, 1.3], 1.31),
        result("GPT-2, Hugging Face Trainer", 1e-3, [2.2, 1.9, 1.75], 1.8),
        result("GPT-2, Hugging Face Trainer", 2e-3, [2.2, 2.0, 1.9], 1.95),
    ]
    lines = {"causal_lm": {"val": {"trigram": 1.4}, "test": {"trigram": 1.42}}}
    table = board.table({"causal_lm": runs}, lines)
    assert "1.5 of 3.0: x2.00" in table, "1.75 is half way from 2.0 to 1.5, in the second minute"
    assert "| 0.001 |" in table and "| 0.002 |" not in table and "| trigram |" in table
    minutes_to = importlib.import_module("leaderboard").minutes_to
    assert minutes_to(runs[1].curve, 1.3, board.GOALS["causal_lm"]) is None
    board.draw({"causal_lm": runs}, lines, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
