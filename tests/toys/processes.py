"""Run a list of runs in several processes, as torchrun starts them: the modules are imported once for all.

    RANK=0 WORLD_SIZE=2 ... python -m tests.toys.processes jobs.json

A job is a list of overrides. `stop_at=4` among them has the run asked to stop at its fourth step; `kill_at=1:4` has the
process of rank 1 killed within the step after that. The first exception of a process ends it.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
import torch

from magneto.training import checkpointing
from magneto.training.module import Batch, TrainingModule
from tests.toys.runs import drive

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def run_jobs(count: int, jobs: Sequence[Sequence[str]], folder: Path, timeout: float = 1500) -> None:
    """Drive the jobs one after the other in `count` processes on this machine. Raises AssertionError if one fails."""
    file = folder / "jobs.json"
    file.write_text(json.dumps([list(job) for job in jobs]))
    port = free_port()
    common = {
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.toys.processes", str(file)], cwd=folder,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL, stderr=(folder / f"stderr-{rank}").open("w"),
        )
        for rank in range(count)
    ]  # fmt: skip
    deadline = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() not in (None, 0) for process in processes):
                break
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
    errors = [(folder / f"stderr-{rank}").read_text()[-3000:] for rank in range(count)]
    assert codes == [0] * count, "\n".join(errors)


@contextlib.contextmanager
def stopping(step: int | None) -> Iterator[None]:
    """Ask a run to stop when it has saved that step."""
    save = checkpointing.Checkpoints._save

    def stop(self: checkpointing.Checkpoints, trainer: L.Trainer, name: str) -> None:
        save(self, trainer, name)
        self.signals.received = step is not None and trainer.global_step >= step

    checkpointing.Checkpoints._save = stop  # type: ignore[method-assign]
    try:
        yield
    finally:
        checkpointing.Checkpoints._save = save  # type: ignore[method-assign]


@contextlib.contextmanager
def killed(place: str | None) -> Iterator[None]:
    """Kill this process within a step, if it is the one of `rank:steps done`."""
    step = TrainingModule.training_step
    rank, _, done = (place or "-1:0").partition(":")

    def fatal(self: TrainingModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = step(self, batch, batch_idx)
        if self.global_rank == int(rank) and self.global_step == int(done):
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    TrainingModule.training_step = fatal  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainingModule.training_step = step  # type: ignore[method-assign]


def main() -> None:
    """Run the jobs of the file that is named on the command line."""
    for job in json.loads(Path(sys.argv[1]).read_text()):
        ends = {one[:8]: one[8:] for one in job if one.startswith(("stop_at=", "kill_at="))}
        try:
            stop = ends.get("stop_at=")
            with stopping(None if stop is None else int(stop)), killed(ends.get("kill_at=")):
                drive([one for one in job if one[:8] not in ends])
        except BaseException:
            print(f"rank {os.environ['RANK']}, {job}", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # the others wait for it in vain, and are ended from outside
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
