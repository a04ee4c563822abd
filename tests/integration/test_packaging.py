"""The wheel: all that a run needs, configuration included, usable from any folder."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_installed_wheel_runs_elsewhere(overrides: list[str], tmp_path: Path) -> None:
    """An installed wheel runs from another folder."""
    source, installed, elsewhere = (tmp_path / name for name in ("source", "installed", "elsewhere"))
    for name in ("magneto", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (elsewhere / "own/experiment").mkdir(parents=True)
    (elsewhere / "own/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults: [{override /scheduler: constant}]\n"
    )
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, source], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", installed, wheel], check=True)
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert {p.relative_to(installed / "magneto").as_posix() for p in installed.rglob("*.yaml")} == files
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "magneto").rglob("*.py")}
    assert {p.relative_to(installed).as_posix() for p in installed.rglob("*.py")} >= modules

    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "magneto", "--config-dir=own", *overrides, "experiment=mine", "name=wheel"],
        cwd=elsewhere, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/asr/wheel/export/model.safetensors").is_file()
    assert "name: constant" in (tmp_path / "runs/asr/wheel/config.yaml").read_text(), "the user's own file"
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import magneto; print(magneto.__file__)"],
        cwd=elsewhere, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.strip() == str(installed / "magneto/__init__.py")


def test_torch_is_not_pinned() -> None:
    """The package installs beside a user's own torch: ranges, which hold the versions that the suite runs with."""
    requirements = [
        Requirement(line)
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    locked = dict(
        line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line
    )
    for requirement in requirements:
        if requirement.name.startswith("torch"):
            assert "==" not in str(requirement.specifier)
            assert requirement.specifier.contains(locked[requirement.name])
