"""Choose precision, devices and threads."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Run with `count` CPU threads (None: leave it), and restore."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def precision(setting: str, accelerator: str) -> str:
    """`auto` is bf16 autocast where the hardware multiplies in bf16 (CUDA, AVX512-BF16, AMX), fp32 elsewhere."""
    if setting != "auto":
        return setting
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        # Emulated bf16 (before Ampere) is slower than fp32.
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def unusable_gpu() -> str:
    """Return a sentence about an NVIDIA GPU that is there and that torch cannot use; "" if there is none."""
    if torch.cuda.is_available() or not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return ""
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    return (
        f" There is an NVIDIA driver, but torch {torch.__version__} cannot use it: it {built}. Compare it with the CUDA "
        "version that nvidia-smi shows, and install a torch for that version or an earlier one (https://pytorch.org)."
    )
