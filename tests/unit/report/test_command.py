"""The command line of the report."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from magneto.report import folder_name
from magneto.report.__main__ import main
from tests.unit.report.runs import make_run, three_by_two


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three_by_two(tmp_path / "runs")
    broken = tmp_path / "runs" / "asr" / "broken"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    assert main([str(tmp_path / "runs"), "--metric", "test/wer"]) == 0
    output = capsys.readouterr()
    assert f"report: {tmp_path / 'runs' / 'report' / 'report.html'}" in output.out.splitlines()
    assert re.search(r"magneto +│ +2 │ 0\.810 ± 0\.014 │ 0\.410 ± 0\.014 │ +3\.0 min", output.out), output.out
    assert "Lowest test/wer among rows without a diverged seed: magneto" in " ".join(output.out.split())
    assert "warning: left out" in output.err and "broken" in output.err
    assert "Lowest test/wer" in (tmp_path / "runs" / "report" / "report.md").read_text()
    assert main([str(tmp_path / "runs")]) == 0  # its own files do not disturb it


def test_default_folder_is_beside_the_run(tmp_path: Path) -> None:
    assert main([str(make_run(tmp_path))]) == 0
    assert (tmp_path / "asr" / "report" / "report.md").is_file()


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["."], ["run", "--metric", "test/x"], ["run", "--out", "file"]]
)
def test_mistakes_exit_with_2(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path).rename(tmp_path / "elsewhere")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    if "run" in arguments:
        Path("run").symlink_to(tmp_path / "elsewhere")
        Path("file").write_text("in the way")
    before = list(Path().iterdir())
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and arguments[-1] in error
    assert list(Path().iterdir()) == before


def test_report_needs_no_torch() -> None:
    code = "import sys, magneto.report.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_folder_name_of_a_sweep() -> None:
    overrides = ["task=asr", "backbone=post_ln,pre_ln,magneto", "seed=1,2"]
    name = folder_name(overrides)
    assert re.fullmatch(r"post_ln-pre_ln-magneto-[0-9a-f]{8}", name)
    assert folder_name([*overrides, "optimizer.lr=1"]) not in (name, "")
    assert re.fullmatch(r"[\w.-]{1,50}", folder_name(["data.x={a: 1, b: 'ü'}", "y=" + "1," * 99 + "/"]))


def test_wandb_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc: no key, so offline without being told
    three_by_two(tmp_path / "runs")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--wandb", "placements"]) == 0
    run = Path(capsys.readouterr().out.splitlines()[-1])
    assert run.is_relative_to(tmp_path / "out") and run.name.startswith("offline-run-")
    assert list(run.glob("run-*.wandb"))
    (table,) = (json.loads(file.read_text()) for file in run.rglob("*.table.json"))
    cells = {row[table["columns"].index("configuration")]: row for row in table["data"]}
    assert cells["magneto"][table["columns"].index("test/cer mean")] == pytest.approx(0.41)
    assert len(list(run.rglob("*.png"))) == 4
