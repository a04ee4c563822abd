"""The papers' central claim, measured: how far one step of SGD moves a fresh network, over its depth."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "bounded_update.py"
info = importlib.util.spec_from_file_location("bounded_update", SCRIPT)
assert info is not None and info.loader is not None
bounded_update = importlib.util.module_from_spec(info)
info.loader.exec_module(bounded_update)


@pytest.fixture(scope="module")
def sizes() -> dict[str, tuple[float, float]]:
    """Change of the output at 6 and at 48 layers, by placement."""
    return {
        name: tuple(
            bounded_update.geometric_mean(bounded_update.update_sizes(variant, depth, seeds=3))
            for depth in (6, 48)
        )
        for name, variant in bounded_update.VARIANTS.items()
        if name != "NormFormer"  # no theory speaks of it
    }


def test_growth_with_depth_has_the_papers_order(sizes: dict[str, tuple[float, float]]) -> None:
    growth = {name: deep / shallow for name, (shallow, deep) in sizes.items()}
    assert growth["Magneto"] < 3
    assert 1.2 * growth["Magneto"] < growth["Magneto, no gain"] < growth["Pre-LN"]
    assert growth["Post-LN"] > 4 * growth["Pre-LN"]


def test_deepnorm_starts_far_lower(sizes: dict[str, tuple[float, float]]) -> None:
    assert sizes["DeepNorm"][0] < sizes["Magneto"][0] / 5
    assert sizes["DeepNorm"][1] < sizes["Magneto"][1]
