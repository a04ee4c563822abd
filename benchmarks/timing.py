"""What the benchmarks share: contestants that take turns, ratios within a round, and the line that names the machine."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

WARM_UP = 2

Step = Callable[[], object]


def turns(names: Sequence[str], number: int) -> list[str]:
    """Who comes when in a round: the order shifts by one each round, so that nobody always follows the same."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def rounds_of(
    steps: Mapping[str, Step], rounds: int, device: str, warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """Seconds of each step in each round; everybody has one turn a round, warm-up rounds are dropped."""
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        for name in turns(names, number):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            steps[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], a: str, b: str) -> float:
    """Time of a over time of b: the median of what the rounds say, whatever slowed the machine for a while."""
    return median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))


def machine(device: str) -> str:
    """What the numbers were measured on."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        native = "with" if torch.cpu._is_avx512_bf16_supported() else "without"
        name = f"{names[0] if names else platform.processor()}, {native} AVX512-BF16"
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name}; {torch.get_num_threads()} of {os.cpu_count()} threads{load}; torch {torch.__version__}"
