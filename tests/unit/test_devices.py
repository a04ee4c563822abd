"""What is known of a device."""

import pytest
import torch

from magneto.training.devices import peak_flops

DENSE_BF16 = 989.4e12
"""FLOP/s of an H100 SXM and of an H200: NVIDIA's data sheets have 1,979 TFLOP/s "with sparsity"."""


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_flops_of_hopper(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning does not know the H200's name, and its values for it are those of sparse products."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == DENSE_BF16
    assert peak_flops(torch.device("cuda"), torch.float32) < 1e14, "without TF32"


def test_flops_of_a_cpu_are_not_known() -> None:
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
