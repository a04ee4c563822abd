"""Choose precision, devices and threads."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.fabric.utilities.throughput import _CUDA_FLOPS, get_available_flops


@contextmanager
def compute_settings(threads: int | None = None, matmul_precision: str | None = None) -> Iterator[None]:
    """Set CPU threads and the precision of fp32 products on GPUs (None: leave them), and restore them."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    if threads:
        torch.set_num_threads(threads)
    if matmul_precision:
        torch.set_float32_matmul_precision(matmul_precision)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def prediction_autocast(setting: str, device: str) -> torch.autocast:
    """Return the autocast of predictions: bf16 on a GPU that multiplies in it, or where `setting` says so; else none.

    On a CPU `auto` is fp32: predictions are those that the training's evaluation made, to the last digit of fp32.
    """
    chosen = precision(setting, device) if device == "cuda" or setting != "auto" else "32-true"
    return torch.autocast(device, torch.bfloat16, enabled=chosen == "bf16-mixed")


def precision(setting: str, accelerator: str) -> str:
    """`auto` is bf16 autocast where the hardware multiplies in bf16 (CUDA, AVX512-BF16, AMX), fp32 elsewhere."""
    if setting != "auto":
        return setting
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        # Emulated bf16 (before Ampere) is slower than fp32.
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the FLOP/s that a GPU can reach in `dtype`, as Lightning has them; None where it does not know.

    An H200 has the H100 SXM's, from which it differs in its memory: Lightning does not know the name "NVIDIA H200", and its
    values for it are those of sparse matrices (NVIDIA's data sheet: 1,979 TFLOP/s "with sparsity", half of it without).
    """
    if device.type == "cuda" and torch.cuda.get_device_name(device) == "NVIDIA H200":
        tf32 = dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest"
        return _CUDA_FLOPS["h100 sxm"].get("tfloat32" if tf32 else dtype)
    return get_available_flops(device, dtype)


def unusable_gpu() -> str:
    """Return a sentence about an NVIDIA GPU that is there and that torch cannot use; "" if there is none."""
    if torch.cuda.is_available() or not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return ""
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    return (
        f" There is an NVIDIA driver, but torch {torch.__version__} cannot use it: it {built}. Compare it with the CUDA "
        "version that nvidia-smi shows, and install a torch for that version or an earlier one (https://pytorch.org)."
    )
