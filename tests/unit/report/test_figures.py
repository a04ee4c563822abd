"""Figures of a comparison, and the curves that they show."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from magneto.report import figures as report_figures
from magneto.report import write_report
from magneto.report.axes import COLOURS, row_styles
from magneto.report.curves import Curve, aggregate, thin
from magneto.report.figures import draw
from tests.unit.report.runs import falling, make_run, section_of, three_by_two


def curve(steps: list[int], values: list[float]) -> Curve:
    """A curve from lists."""
    return Curve(np.array(steps), np.array(values))


def test_band_is_interpolated() -> None:
    """Seeds on different steps are interpolated and never extrapolated."""
    band = aggregate([curve([0, 10, 20], [0.0, 1.0, 2.0]), curve([5, 15, 25], [10.0, 20.0, 30.0])])
    assert band is not None
    assert band.steps.tolist() == [5, 10, 15, 20]
    assert band.mean.tolist() == [5.25, 8.0, 10.75, 13.5]
    assert band.low.tolist() == [0.5, 1.0, 1.5, 2.0] and band.high.tolist() == [10.0, 15.0, 20.0, 25.0]
    assert aggregate([curve([0, 1], [1.0, 1.0]), curve([5, 6], [1.0, 1.0])]) is None
    assert aggregate([curve([0], [float("nan")])]) is None


def test_long_curves_are_averaged() -> None:
    thinned = thin(curve(list(range(1, 302)), [1.0, 3.0] * 150 + [2.0]), points=150)
    assert thinned.steps.size <= 150 and thinned.steps[-1] == 301
    assert thinned.values[1:].min() > 1.2 and thinned.values[1:].max() < 2.8
    short = curve([1, 2], [1.0, 2.0])
    assert thin(short) is short


def test_row_styles(tmp_path: Path) -> None:
    """A backbone has its colour, and two rows never look the same."""
    for backbone in ("pre_ln", "magneto"):
        for rate in (1e-3, 1e-4):
            make_run(tmp_path, backbone, config={"optimizer.lr": rate}, name=f"{backbone}{rate}")
    section = section_of(tmp_path)
    styles = row_styles(section.rows)
    assert {styles[row.label].colour for row in section.rows if row.backbone == "magneto"} == {
        COLOURS["magneto"]
    }
    assert len({(style.colour, style.dash) for style in styles.values()}) == 4
    same = row_styles([row for row in section.rows if row.backbone == "magneto"])
    assert len({style.colour for style in same.values()}) == 2


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    three_by_two(tmp_path)
    images = draw(section_of(tmp_path), tmp_path)
    names = ("result", "learning_curves", "stability", "activation_rms")
    assert [image.path.name for image in images] == [f"asr-stamps_{name}.png" for name in names]
    for image in images:
        header = image.path.read_bytes()[:24]
        assert header.startswith(b"\x89PNG") and int.from_bytes(header[16:20], "big") == 1440
        assert "magneto" in image.alt


def test_figure_of_a_swept_number(tmp_path: Path) -> None:
    """A line a backbone; what diverged has no value there. Two values, or a second key, are no sweep."""

    def made(backbone: str, rate: float, **options: Any) -> None:
        make_run(tmp_path, backbone, config={"optimizer.lr": rate}, name=f"{backbone}{rate}", **options)

    for rate in (1e-3, 2e-3):
        made("magneto", rate, metrics={"test/cer": rate * 100})
        made("pre_ln", rate, metrics={"test/cer": rate * 200})
    assert section_of(tmp_path).sweep is None
    made("magneto", 4e-3, metrics={"test/cer": 0.3})
    made("pre_ln", 4e-3, metrics={}, status="diverged")
    section = section_of(tmp_path)
    assert section.sweep is not None
    key, rows = section.sweep
    assert key == "optimizer.lr" and list(rows) == ["pre_ln", "magneto"]
    assert {rate: row.values("test/cer") for rate, row in rows["magneto"].items()} == {
        1e-3: {1: 0.1}, 2e-3: {1: 0.2}, 4e-3: {1: 0.3}
    }  # fmt: skip
    image = next(p for p in draw(section, tmp_path) if p.path.name == "asr-stamps_by_optimizer_lr.png")
    assert image.title == "test/cer by optimizer.lr" and "pre_ln, magneto" in image.alt
    make_run(tmp_path, config={"optimizer.lr": 8e-3, "optimizer.eps": 9}, name="another key")
    assert section_of(tmp_path).sweep is None


@pytest.mark.slow
def test_figures_of_many_long_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Panels keep their size, no title runs into its neighbour or out of the figure, and matplotlib does not warn."""
    figures: list[Figure] = []
    save = report_figures.save_figure
    monkeypatch.setattr(
        report_figures, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path))
    )
    for number in range(30):
        curves = {"train/loss": falling(number), "val/cer": falling(number, every=50)}
        curves |= {f"probe/activation_rms/layer_{layer:02d}": falling(layer, every=50) for layer in (1, 2)}
        changed = {f"optimizer.a_long_name_of_a_key{key}": (number >> key) % 2 for key in range(5)}
        make_run(
            tmp_path, ("pre_ln", "magneto")[number % 2], name=str(number), config=changed, curves=curves,
            metrics={"test/cer": 0.5 + number / 100},
        )  # fmt: skip
    for number in range(7):
        task = f"a_task_with_quite_a_long_name_{number}"
        make_run(tmp_path, "pre_ln", task=task, data="日本語", status="diverged", metrics={})
        make_run(tmp_path, "magneto", task=task, data="日本語", metrics={"test/cer": number})
    write_report([tmp_path], tmp_path / "out")
    assert not [str(warning.message) for warning in recwarn.list]
    assert len(figures) > 10
    for figure in figures:
        figure.draw_without_rendering()
        width = figure.get_figwidth() * figure.dpi
        panels = [ax.get_window_extent() for ax in figure.axes]
        assert min(panel.width for panel in panels) > 1.2 * figure.dpi
        assert min(panel.height for panel in panels) > 0.4 * figure.dpi
        titles = [ax._left_title.get_window_extent() for ax in figure.axes]  # type: ignore[attr-defined]
        assert max(title.x1 for title in titles) <= width
        for index, title in enumerate(titles):
            assert not any(title.overlaps(other) for other in (*titles[index + 1 :], *panels) if other.width)


def test_degenerate_curves_are_drawn(tmp_path: Path) -> None:
    everything = {
        "train/loss": [(10, float("inf"))],
        "val/cer": [(10, float("nan")), (20, float("nan"))],
        "val/wer": [(10, 0.0), (20, 0.0)],
        "probe/grad_norm": [(10, 1.0), (20, 1e30)],
        "probe/rms/encoder/layer_01": [(10, float("nan"))],
    }
    make_run(tmp_path, "pre_ln", status="diverged", metrics={}, curves=everything, monitor=None, mode=None)
    make_run(
        tmp_path, "a$_{b}", status="failed", metrics={}, curves={"val/wer": [(10, -1.0)]}
    )  # no mathematics
    assert len(draw(section_of(tmp_path), tmp_path)) == 3
