"""What a few minutes of training reach: magneto's defaults beside the Hugging Face Trainer, on the same data.

    python benchmarks/time_to_quality.py                                   # six tasks, both systems, hours; repeat to go on
    python benchmarks/time_to_quality.py --tasks causal_lm mlm --seeds 1 2 3
    python benchmarks/time_to_quality.py budget=4min                       # less time for each, an hour and a half in all
    python benchmarks/time_to_quality.py --tasks causal_lm --steps 20 --out runs/smoke    # to see that it runs

For each task magneto's default run comes first. The peer (benchmarks/peers.py) then tries three learning rates, each for a
part of these minutes with a schedule of that length (--trial), and has all of them with the rate that was best on validation
data. Minutes are those of training: evaluations, preparation and set-up do not count, for neither. The number of the peer's
steps follows from the seconds of its first ones. Everything runs on this machine, one after the other, with torch's own
number of threads.

Each run leaves a file in --out and is not made again; at the end there are results.md, a table, and curves.png: the
validation metric over minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import text_baselines
import torch
from leaderboard import GOALS, Result, draw, table
from lightning.pytorch.callbacks import Callback
from peers import PEERS, Peer
from timing import machine
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

import magneto
from magneto.commands.build import prepared_data

HERE = Path(__file__).resolve().parent
EVALUATIONS = 6
"""Points of a curve."""
CALIBRATION = 12
"""Steps that the speed of a peer is read from; the first third of them is not counted."""


class Clock(Callback):
    """Write the seconds of training, without evaluations, and the validation's metric at each evaluation of our run.

    Args:
        file: JSON lines.
        metric: as it is logged, such as `val/cer`.
    """

    def __init__(self, file: str, metric: str) -> None:
        self.file, self.metric = Path(file), metric
        self.seconds, self.since = 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.file.unlink(missing_ok=True)
        self.since = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds += time.perf_counter() - self.since

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        point = {"minutes": self.seconds / 60, "value": float(trainer.callback_metrics[self.metric])}
        with self.file.open("a") as file:
            file.write(json.dumps(point) + "\n")
        self.since = time.perf_counter()


def ours(task: str, seed: int, out: Path, overrides: list[str], max_steps: int | None) -> Result:
    """Train magneto's default as its users do, on the command line."""
    goal, name = GOALS[task], f"ours-seed{seed}"
    clock = (out / f"{task}-{name}.clock").resolve()
    command = [
        sys.executable, "-m", "magneto", f"task={task}", f"seed={seed}", f"name={name}", "logger.wandb=disabled",
        f"runs_dir={out / 'runs'}", "+callbacks.extra.clock._target_=time_to_quality.Clock",
        f"+callbacks.extra.clock.file={clock}", f"+callbacks.extra.clock.metric=val/{goal.metric}", *overrides,
    ]  # fmt: skip
    if max_steps is not None:
        command += [f"trainer.max_steps={max_steps}", f"trainer.val_check_interval={max(1, max_steps // 2)}"]
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    folder = out / "runs" / task / name
    result = json.loads((folder / "result.json").read_text())
    points = [json.loads(line) for line in clock.read_text().splitlines()]
    curve = [(point["minutes"], goal.factor * point["value"]) for point in points]
    return Result(
        system="magneto",
        task=task,
        seed=seed,
        lr=None,
        minutes=curve[-1][0],
        steps=result["steps"],
        parameters=result["parameters"],
        curve=curve,
        test=goal.factor * result["metrics"][f"test/{goal.metric}"],
    )


class PeerTrainer(Trainer):
    """The Trainer, whose batches are magneto's."""

    peer: Peer
    batches: DataLoader[Any]

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.batches

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        outputs = model(**self.peer.inputs(inputs))
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class PeerClock(TrainerCallback):
    """Measure training without evaluations; evaluate at equal distances.

    Args:
        evaluate: returns the metric on validation data; None: no evaluation.
    """

    def __init__(self, evaluate: Any = None) -> None:
        self.evaluate = evaluate
        self.seconds: list[float] = []
        self.curve: list[tuple[float, float]] = []
        self._since = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = self._since or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._since)
        self._since = now
        points = [
            step * EVALUATIONS // state.max_steps for step in (state.global_step - 1, state.global_step)
        ]
        if self.evaluate and points[1] > points[0]:
            self.curve.append((sum(self.seconds) / 60, self.evaluate()))
            self._since = time.perf_counter()


def theirs(peer: Peer, task: str, seed: int, lr: float, minutes: float, out: Path) -> Result:
    """Train a peer for as many minutes."""

    def train(steps: int, clock: PeerClock, model: nn.Module) -> None:
        peer.data.configure_run(steps)
        arguments = TrainingArguments(
            output_dir=str(out / "trainer"), max_steps=steps, learning_rate=lr, warmup_steps=round(0.05 * steps),
            weight_decay=0.01, lr_scheduler_type="linear", bf16=bf16, use_cpu=not torch.cuda.is_available(),
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=seed,
            remove_unused_columns=False,
        )  # fmt: skip
        trainer = PeerTrainer(model=model, args=arguments, callbacks=[clock])
        trainer.peer, trainer.batches = peer, peer.data.train_dataloader()
        trainer.train()

    bf16 = magneto_precision() == "bf16-mixed"
    torch.manual_seed(seed)
    calibration = PeerClock()
    train(CALIBRATION, calibration, peer.model())
    per_step = mean(calibration.seconds[CALIBRATION // 3 :])
    steps = max(EVALUATIONS, round(minutes * 60 / per_step))
    torch.manual_seed(seed)
    model = peer.model()
    clock = PeerClock(lambda: score(peer, model, peer.data.val_dataloader(), bf16))
    train(steps, clock, model)
    return Result(
        system=f"{peer.name}, Hugging Face Trainer",
        task=task,
        seed=seed,
        lr=lr,
        minutes=clock.curve[-1][0],
        steps=steps,
        parameters=sum(p.numel() for p in model.parameters()),
        curve=clock.curve,
        test=score(peer, model, peer.data.test_dataloader(), bf16),
    )


def magneto_precision() -> str:
    """Return what trainer.precision=auto means on this machine."""
    from magneto.training.devices import precision

    return precision("auto", "auto")


@torch.no_grad()
def score(peer: Peer, model: nn.Module, batches: DataLoader[Any], bf16: bool) -> float:
    """Return the peer's metric over a split."""
    model.eval()
    with torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16, enabled=bf16):
        value = peer.score(model, batches)
    model.train()
    return value


def baselines(task: str, split: str) -> dict[str, float]:
    """Return what a simple method reaches on a split of the task's data, where there is one for its metric."""
    if task not in ("causal_lm", "mlm"):
        return {}
    data: Any = prepared_data([f"task={task}"])
    if task == "causal_lm":
        return {"trigram": text_baselines.bits_per_byte(data, split)["trigram"]}
    counts = text_baselines.Trigram(text_baselines.training_row(data), data.info.vocab_size)
    shares = text_baselines.masked_accuracy(data, getattr(data, f"{split}_set"), counts)
    return {"two-sided trigram": 100 * shares["trigram, two-sided"][0]}


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """Return the plain values in a file; where it is missing, make them and write it."""
    if not path.exists():
        values = make()
        path.with_suffix(".part").write_text(json.dumps(values))
        path.with_suffix(".part").replace(path)
    return json.loads(path.read_text())


def compare(
    task: str, seeds: list[int], out: Path, max_steps: int | None, trial: float, overrides: list[str]
) -> list[Result]:
    """Make the runs of a task, or read them: ours, the peer's trials of each rate, and those of the best one.

    Args:
        task: one of GOALS.
        seeds: of our runs and the peer's; the first one's is that of the trials.
        out: folder of the results.
        max_steps: of our runs; None: the default's.
        trial: share of the minutes in which the peer tries a rate; 1: those runs are the results.
        overrides: of our configuration.
    """

    def own(seed: int) -> Result:
        file = out / f"{task}-ours-seed{seed}.json"
        return Result(**kept(file, lambda: asdict(ours(task, seed, out, overrides, max_steps))))

    results = [own(seed) for seed in seeds]
    minutes = mean(result.minutes for result in results)
    model = magneto.load(out / "runs" / task / f"ours-seed{seeds[0]}")
    data = prepared_data([f"task={task}", *overrides])
    peer = PEERS[task](model, data)

    def run(seed: int, lr: float, share: float) -> Result:
        file = out / f"{task}-peer-lr{lr:g}-seed{seed}-{share:g}.json"
        return Result(**kept(file, lambda: asdict(theirs(peer, task, seed, lr, share * minutes, out))))

    tried = [run(seeds[0], lr, trial) for lr in peer.rates]
    lr = GOALS[task].best(tried, key=lambda result: result.curve[-1][1]).lr
    whole = [run(seed, lr, 1.0) for seed in seeds]
    return [*results, *whole, *(result for result in tried if result not in whole)]


def main() -> None:
    """Make what is missing of the runs, then table and figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="of magneto's configuration, such as data_dir=PATH")
    parser.add_argument("--tasks", nargs="+", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument(
        "--steps", type=int, help="of our runs, instead of the default's: to see that it runs"
    )
    parser.add_argument(
        "--trial", type=float, default=0.25, help="share of the minutes in which a peer tries a learning rate"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_quality"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    out: Path = arguments.out.resolve()
    results, lines = {}, {}
    for task in arguments.tasks:
        results[task] = compare(
            task, arguments.seeds, out, arguments.steps, arguments.trial, arguments.overrides
        )
        lines[task] = kept(
            out / f"{task}-baselines.json",
            lambda task=task: {split: baselines(task, split) for split in ("val", "test")},
        )
    text = f"{table(results, lines)}\n\n{machine('cpu')}\n"
    (out / "results.md").write_text(text)
    draw(results, lines, out / "curves.png")
    print(text)


if __name__ == "__main__":
    main()
