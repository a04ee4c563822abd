"""The memory that a run reports: its own, whatever ran before it in the same process."""

from pathlib import Path

import pytest

from tests.conftest import Run


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_memory_is_that_of_the_run_alone(run: Run) -> None:
    """A run needs the same first, after a large one and after itself: what the process keeps is nobody's need."""
    short = ("trainer.max_steps=3", "trainer.val_check_interval=3")
    small = (*short, "backbone.d_model=256", "backbone.num_heads=4", "backbone.ffn_dim=1024")
    large = (*short, "backbone.d_model=512", "backbone.num_heads=8", "backbone.ffn_dim=4096")
    results = [run(f"name={number}", *size) for number, size in enumerate((small, large, small, small))]
    assert all(result["peak_memory_bytes"] is None for result in results)
    first, other, second, third = (result["run_peak_memory_bytes"] / 2**20 for result in results)
    for measured, result in zip((first, other), results, strict=False):
        assert measured > result["parameters"] * 16 / 2**20  # weights, gradients and AdamW's two moments
    assert (first, third) == pytest.approx((second, second), rel=0.2)
    assert other > 2 * second
