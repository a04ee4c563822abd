"""Everything that is claimed of a GPU, in one script of at most eight minutes: one table and a JSON file.

    python benchmarks/gpu.py                              # on a GPU; without one as with --small
    python benchmarks/gpu.py --small                      # toy shapes, to see that it runs
    python benchmarks/gpu.py --only speed --tasks causal_lm mlm --minutes 3

correctness: each task trains ten steps on the CPU in fp32, and on the device in fp32 (without TF32) and bf16, whose losses
are compared; a run that is killed halfway goes on; the export is read back. speed: a training step of each task beside its
peer (transformers, timm, torchscale, a plain model in nanoGPT's style), and `run.py` with a causal LM of 350M and 2,048
tokens; "GiB" is what a contestant needs at its peak, "waits" counts the operations of a step at which the host waits for
the GPU, "relative" is the time over that of Magneto. placements: over that of Pre-LN. generation: over ours with as many
prompts. MFU counts model FLOPs (PaLM's appendix B). The causal LM alone is compiled: ours by layers, the plain
one whole.

Everything is made up on the spot: neither network nor prepared data is needed. Each check stands for itself: one that fails,
runs out of memory or finds no library is a row with its message, and what the minutes do not suffice for is left out and
listed. The exit code is 1 if a check of correctness failed.

Goals, on an H100 or H200: the compiled causal LM at 45 % MFU or more, at least as fast as the plain compiled model, twice as
fast as torchscale's; Magneto's step at most 1.04 times Pre-LN's.
"""

import argparse
import gc
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

# Of deterministic products (cuBLAS), before torch starts it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # magneto and tests, wherever it is called

import torch
from gpu_contest import Setting
from gpu_correctness import check_tasks
from gpu_report import Goal, Report, judge
from gpu_speed import OURS, command, generate, placements, task_contest
from gpu_tasks import TASKS
from rich.console import Console
from timing import machine

PARTS = ("correctness", "speed", "placements", "generation")
GOALS = tuple(
    Goal(f"causal LM, {words}, at least {least:.2f}", ("speed", f"causal_lm: {name}", key), least)
    for words, name, key, least in (
        ("MFU", OURS, "mfu", 0.45),
        ("time of the plain model / Magneto's", "plain (nanoGPT style)", "relative", 1.0),
        ("time of torchscale / Magneto's", "torchscale, Sub-LN", "relative", 2.0),
        ("time of Pre-LN / Magneto's", "Pre-LN", "relative", 1 / 1.04),
    )
)


def run(options: argparse.Namespace, report: Report, folder: Path) -> None:
    """Make all checks that were asked for, what the goals need before the rest."""
    setting = Setting(options.device, options.small, options.compile, options.rounds, folder)
    if "correctness" in options.only:
        check_tasks(report, options.tasks, options.device, folder)
        torch.use_deterministic_algorithms(False)  # as those runs set it
    if "speed" in options.only:
        tasks = [*options.tasks, *(["image_classification"] if "beit" in options.tasks else [])]
        for task in tasks:
            report.run("speed", f"{task}: contest", partial(task_contest, report, setting, task))
            if task == "causal_lm":
                report.run("speed", "causal_lm: run.py", partial(command, report, setting))
    if "placements" in options.only:
        placements(report, setting)
    if "generation" in options.only:
        report.run("generation", "all", partial(generate, report, setting))


def main() -> int:
    """Print the table, write the JSON file, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--device", default=devices[0], choices=devices)
    parser.add_argument(
        "--small", action=argparse.BooleanOptionalAction, help="toy shapes; without a GPU the default"
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="the causal LM; unless --small the default"
    )
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, help="turns of each contestant; 20, or 3 with --small")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    options.small = options.device == "cpu" if options.small is None else options.small
    options.compile = not options.small if options.compile is None else options.compile
    options.rounds = options.rounds or (3 if options.small else 20)

    report = Report(options.minutes)
    gc.collect()
    gc.freeze()  # each run collects garbage, and need not look through the libraries for it
    place = machine(options.device)
    print(place, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run(options, report, Path(folder))
    judge(GOALS, report, place)
    console = Console(width=400, highlight=False)
    console.print()
    report.print_table(console)
    console.print(f"\n{place}; {report.seconds:.0f} s")
    shown = {
        key: getattr(options, key)
        for key in ("device", "small", "compile", "rounds", "minutes", "only", "tasks")
    }
    report.write(options.out, {"machine": place, **shown})
    return 0 if report.correct else 1


if __name__ == "__main__":
    sys.exit(main())
