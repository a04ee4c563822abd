"""Peak memory of a run."""

import contextlib
import ctypes
import gc
import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch


def reset_peak_memory() -> None:
    """Start a new measurement, so that each run of a sweep, which share a process, has its own."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    _release_memory()
    with contextlib.suppress(OSError):  # Linux only; elsewhere the maximum of the process is reported
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Return bytes: of the GPU, or the largest resident size of this process since `reset_peak_memory` (with /proc)."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        return _resident("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_of_run(peak: int) -> dict[str, Any]:
    """Return the peak memory of a run in bytes; call it once all that the run allocated is out of scope.

    `peak_memory_bytes` is the GPU's. A run on the CPU has `run_peak_memory_bytes`: the largest resident size of its process
    less what the process keeps after the run. What a sweep's first job loads for all of them (libraries, compiled
    kernels) is in both, so the order of the jobs does not count. None where it is not known (without /proc).
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return {"peak_memory_bytes": peak, "run_peak_memory_bytes": None}
    needed = None
    with contextlib.suppress(OSError):
        _release_memory()
        needed = max(0, peak - _resident("VmRSS"))
    return {"peak_memory_bytes": None, "run_peak_memory_bytes": needed}


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def _release_memory() -> None:
    """Return free memory to the system: glibc keeps most of it for later."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
