"""`benchmarks/gpu.py` in small, on a CPU: what it finds, what it calls a failure, and how it keeps its time."""

import importlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from magneto.nn.placement import PLACEMENTS
from tests.integration.conftest import Script


def rows_of(file: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of the JSON file, by part and name."""
    rows = json.loads(file.read_text())["rows"]
    found = {(row["part"], row["name"]): row for row in rows}
    assert len(found) == len(rows), "names repeat"
    return found


@pytest.mark.slow
def test_gpu_in_small(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parts give rows with numbers, in the table as in the file."""
    for name in ("transformers", "timm", "torchscale"):
        pytest.importorskip(name)
    file = tmp_path / "gpu.json"
    gpu = script(
        "gpu", "--small", "--device", "cpu", "--tasks", "causal_lm", "beit", "--rounds", 2, "--out", file
    )
    monkeypatch.setattr(importlib.import_module("gpu_contest"), "peak_flops", lambda device, dtype: 1e12)
    assert gpu.main() == 0
    rows = rows_of(file)
    assert not [row for row in rows.values() if row["outcome"] == "failed"]

    for task in ("causal_lm", "beit"):
        for check in ("fp32", "bf16", "resume", "export"):
            row = rows.pop(("correctness", f"{task}, {check}"))
            assert row["outcome"] == "ok" and row["values"]["deviation"] <= row["values"]["tolerance"]
            assert check != "resume" or row["note"].endswith(" bit for bit")
            assert (check == "bf16") == (row["values"]["deviation"] > 0)

    peers = {
        "causal_lm": ("Pre-LN", "plain (nanoGPT style)", "torchscale, Sub-LN", "transformers GPT-2"),
        "beit": ("transformers BEiT",),
        "image_classification": ("timm VisionTransformer",),
    }
    for task, others in peers.items():
        assert rows["speed", f"{task}: Magneto"]["values"]["relative"] == 1
        for name in ("Magneto", *others):
            values = rows.pop(("speed", f"{task}: {name}"))["values"]
            assert {"ms", "rate", "memory_mib", "relative", "mfu"} <= values.keys()
            assert min(values.values()) >= 0 < values["mfu"] < 1
    assert rows.pop(("speed", "causal_lm: run.py"))["values"]["rate"] > 0
    for name in PLACEMENTS:
        assert rows.pop(("placements", name))["values"]["relative"] > 0
    for count in (1, 4):
        assert rows.pop(("generation", f"ours, batch {count}"))["values"]["relative"] == 1
        assert rows.pop(("generation", f"transformers, batch {count}"))["values"]["rate"] > 0
    assert sum(part == "goals" and "H200" in row["note"] for (part, _), row in rows.items()) == 4
    assert {part for part, _ in rows} == {"goals"}, "nothing else was found"

    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(json.loads(file.read_text())["rows"])


def test_a_wrong_result_is_a_failure(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 % more learning rate on the device: the losses differ, the resumed run does, and the exit code says so."""
    file = tmp_path / "gpu.json"
    gpu = script(
        "gpu", "--small", "--device", "cpu", "--only", "correctness", "--tasks", "causal_lm", "--out", file
    )
    checks = importlib.import_module("gpu_correctness").TaskChecks
    train = checks.train

    def wrong(self: Any, name: str, *others: str) -> dict[str, Any]:
        right = self.settings
        if name == "whole":
            self.settings = [*right, "optimizer.lr=2.1e-3"]
        result: dict[str, Any] = train(self, name, *others)
        self.settings = right
        return result

    monkeypatch.setattr(checks, "train", wrong)
    assert gpu.main() == 1
    found = {name: row["outcome"] for (part, name), row in rows_of(file).items() if part == "correctness"}
    expected = {"fp32": "failed", "bf16": "ok", "resume": "failed", "export": "ok"}
    assert found == {f"causal_lm, {check}": outcome for check, outcome in expected.items()}


def test_each_check_stands_for_itself(script: Script) -> None:
    """Errors, missing libraries and checks that take too long are rows; what an outer timer was set to goes on."""
    script("gpu")
    report = importlib.import_module("gpu_report").Report(minutes=0.005)

    def fail() -> None:
        raise RuntimeError("out | of memory\nand more")

    def miss() -> None:
        raise ImportError("no such library")

    before = signal.setitimer(signal.ITIMER_REAL, 500)
    report.run("correctness", "error", fail)
    report.run("speed", "library", miss)
    report.run("speed", "too long", lambda: report.run("speed", "inner", lambda: time.sleep(60)))
    report.run("speed", "late", fail)
    assert 490 < signal.setitimer(signal.ITIMER_REAL, *before)[0] < 500
    found = {row.name: (row.outcome, row.note) for row in report.rows}
    assert found["error"] == ("failed", "RuntimeError: out / of memory")
    assert found["library"] == ("left out", "ImportError: no such library")
    assert found["inner"] == ("left out", "cut off when the 0.005 minutes were over")
    assert found["late"] == ("left out", "the 0.005 minutes were over")
    assert report.seconds < 30 and not report.correct


def test_goals_are_judged_on_their_devices(script: Script) -> None:
    script("gpu")
    module = importlib.import_module("gpu_report")
    report = module.Report(minutes=1)
    report.add("speed", "a", mfu=0.4)
    goals = [module.Goal(f"MFU {least}", ("speed", "a", "mfu"), least=least) for least in (0.3, 0.5)]
    goals.append(module.Goal("other", ("speed", "b", "mfu"), 1))
    module.judge(goals, report, "NVIDIA H200; 16 threads")
    assert [row.outcome for row in report.rows[1:]] == ["ok", "failed", "left out"]
    assert report.correct, "a goal that is missed is no error"
