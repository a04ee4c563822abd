"""How many processes load batches where nobody says it."""

import pytest
import torch

from magneto.data.module import loader_workers


@pytest.mark.parametrize(
    ("cores", "gpus", "workers"), [(2, 0, 0), (64, 0, 0), (16, 1, 8), (16, 4, 3), (2, 4, 1)]
)
def test_workers_of_a_loader(monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, workers: int) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert loader_workers() == workers
