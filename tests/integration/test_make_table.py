"""`make table`: every task by one command, from nothing to one table."""

import csv
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from magneto.report.axes import COLOURS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_table_from_nothing(text_overrides: list[str], tmp_path: Path) -> None:
    """Make table goes from nothing to one table."""
    arguments = [text for text in text_overrides if not text.startswith("runs_dir=")]
    arguments += ["trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.samples=1"]
    table = tmp_path / "table"
    done = subprocess.run(
        [
            "make", "--assume-old=.venv/.installed", f"BIN={Path(sys.executable).parent}", "table", f"TABLE={table}",
            "TASKS=mlm no_such_task causal_lm", "SEEDS=1", f"ARGS={shlex.join(arguments)}",
        ],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    # The unknown task is told, and keeps no other from being run and shown.
    assert done.returncode == 2, done.stderr
    assert "task=no_such_task" in done.stderr
    incomplete = "not all runs of these tasks were made, see above: no_such_task"
    assert incomplete in done.stderr.splitlines(), done.stdout + done.stderr
    names = {path.parent.name.split("-tiny")[0] for path in table.glob("*/*/result.json")}
    assert names == {"post_ln", "pre_ln", "magneto"} <= COLOURS.keys()
    overview = (table / "report/report.md").read_text().split("## Overview")[1].split("\n## ")[0]
    header, _, *rows = (
        [cell.strip(" *") for cell in line.split("|")[1:-1]]
        for line in overview.splitlines()
        if line.startswith("|")
    )
    assert header == ["task", "corpus", "metric", "post_ln", "pre_ln", "magneto", "seeds", "time a run"]
    assert [row[:3] for row in rows] == [
        ["causal_lm", "text_files", "test/bits_per_byte ↓"],
        ["mlm", "text_files", "test/accuracy ↑"],
    ]
    with (table / "report/table.csv").open() as file:
        means = {(line["task"], line["backbone"]): line for line in csv.DictReader(file)}
    for row in rows:
        for name, cell in zip(header[3:6], row[3:6], strict=True):
            assert float(cell) == pytest.approx(float(means[row[0], name][f"{row[2][:-2]} mean"]), abs=1e-3)
    assert (table / "report/overview.png").stat().st_size > 10_000


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_lists_every_target() -> None:
    """`make help` shows each target of .PHONY, those with a hyphen too."""
    targets = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY"))
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[1] for line in shown.splitlines()} == set(targets.split()[1:])
