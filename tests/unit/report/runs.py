"""Run folders as a training leaves them, and short ways to read their report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf

from magneto.report.comparison import Section, compare
from magneto.report.loading import Run, load_runs
from magneto.report.tables import Table


def make_run(
    root: Path,
    backbone: str = "magneto",
    seed: int = 1,
    *,
    task: str = "asr",
    name: str | None = None,
    size: str = "tiny",
    data: str = "stamps",
    monitor: str | dict[str, Any] | None = "val/cer",
    mode: str | None = "min",
    config: dict[str, Any] | None = None,
    samples: list[dict[str, Any]] | None = None,
    curves: dict[str, list[tuple[int, float]]] | None = None,
    **result: Any,
) -> Path:
    """A run folder as the engine leaves it; `config` by dotted keys, `result` are further values of result.json."""
    name = name or f"{backbone}-{size}-seed{seed}"
    folder = root / task / name
    (folder / "checkpoints").mkdir(parents=True)
    resolved = OmegaConf.create({
        "seed": seed, "name": name, "runs_dir": str(root), "size_name": size, "task": {"name": task},
        "backbone": {"placement": backbone, "num_layers": 6, "d_model": 256},
        "data": {"name": data, "seed": seed, "data_dir": str(root / f"data{seed}"), "num_workers": seed},
        "optimizer": {"name": "adamw", "lr": 1e-3}, "logger": {"tags": [name]},
        "trainer": {"max_steps": 300, "accelerator": f"kind{seed}", "devices": 1},
    })  # fmt: skip
    for key, value in (config or {}).items():
        OmegaConf.update(resolved, key, value)
    whole = OmegaConf.to_container(resolved)
    if not isinstance(monitor, dict):
        monitor = {"metric": monitor, "mode": mode, "best": 0.5, "best_step": 200}
    content = {
        "schema": 1, "status": "finished", "message": None, "task": task, "name": name, "backbone": backbone, "size": size,
        "data": data, "seed": seed, "overrides": [], "monitor": monitor,
        "metrics": {"test/cer": 0.5, "test/wer": 0.9, "test/loss": 1.5}, "steps": 300, "parameters": 5_200_000,
        "time": {"wall_s": 120.0 * seed, "fit_s": 100.0, "data_wait_fraction": 0.012},
        "throughput": {"examples_per_s": 40.0, "audio_seconds_per_s": 200.0}, "peak_memory_bytes": 2**30 * seed,
        "git": "abc1234", "versions": {"torch": "2.11.0"}, "config": whole,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(content | result))
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    rows = [
        f"{step},{metric},{value}\n" for metric, points in (curves or {}).items() for step, value in points
    ]
    (folder / "metrics.csv").write_text("step,metric,value\n" + "".join(rows))
    if samples is not None:
        (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder


def falling(
    seed: int, steps: int = 300, every: int = 10, start: float = 4.0, end: float = 1.0
) -> list[tuple[int, float]]:
    """A plausible learning curve."""
    noise = np.random.default_rng(seed)
    return [
        (step, end + (start - end) * float(np.exp(-4 * step / steps)) + 0.03 * float(noise.normal()))
        for step in range(every, steps + 1, every)
    ]


def section_of(root: Path, metric: str | None = None) -> Section:
    """The only section of the runs below `root`."""
    (section,) = compare(*load_runs([root]), metric=metric).sections
    return section


def column(table: Table, start: str) -> list[str]:
    """The texts of the column whose name starts with `start`; bold ones in asterisks."""
    (index,) = [i for i, name in enumerate(table.header) if name.startswith(start)]
    return [f"**{row[index].text}**" if row[index].bold else row[index].text for row in table.rows]


def run_with(tmp_path: Path, **options: Any) -> Run:
    """The run that `make_run` with these options leaves, read back."""
    (run,), _ = load_runs([make_run(tmp_path, **options)])
    return run


def three_by_two(root: Path, **diverged: Any) -> None:
    """Three backbones, two seeds; the second Post-LN seed diverged."""
    values = {"post_ln": (0.38, None), "pre_ln": (0.47, 0.45), "magneto": (0.40, 0.42)}
    for backbone, pair in values.items():
        for seed, value in enumerate(pair, start=1):
            curves = {
                "train/loss": falling(seed),
                "val/cer": falling(seed, every=50),
                "probe/grad_norm": falling(seed),
            }
            for layer in range(1, 4):
                curves[f"probe/activation_rms/layer_{layer:02d}"] = falling(layer, every=50)
            if value is None:
                curves = {name: [(s, v) for s, v in points if s <= 120] for name, points in curves.items()}
                curves["train/loss"].append((130, float("nan")))
                result = {"status": "diverged", "metrics": {}, "steps": 130, **diverged}
            else:
                parts = {"test/cer/es": value, "test/cer/fr": value + 0.1}
                result = {"metrics": {"test/cer": value, "test/wer": value + 0.4} | parts}
            make_run(root, backbone, seed, curves=curves, **result)
