"""Tables of a comparison: results, costs and the overview of several tasks."""

from pathlib import Path
from typing import Any

import pytest

from magneto.report import write_report
from magneto.report.markup import to_markdown
from magneto.report.tables import (
    cost_table,
    diagnostics_table,
    duration,
    main_table,
    seeds_text,
    unfinished,
    verdict,
)
from tests.unit.report.runs import column, make_run, section_of, three_by_two


def test_main_table(tmp_path: Path) -> None:
    three_by_two(tmp_path, message="loss is nan")
    section = section_of(tmp_path)
    table = main_table(section)
    assert column(table, "configuration") == ["post_ln", "pre_ln", "magneto"]
    assert column(table, "seeds") == ["1 of 2 (1 diverged) †", "2", "2"]
    # Post-LN's survivor is better than both, but a mean over survivors does not win.
    assert column(table, "test/cer ↓") == ["0.380 †", "0.460 ± 0.014", "**0.410 ± 0.014**"]
    assert column(table, "Δ to pre_ln") == ["–", "reference", "−0.050 [−0.304, 0.204]"]
    assert column(table, "test/wer ↓") == ["0.780 †", "0.860 ± 0.014", "**0.810 ± 0.014**"]
    assert unfinished(section) == ["post_ln-tiny-seed2: diverged at step 130 of 300 (loss is nan)"]
    sentence = verdict(section)
    assert sentence is not None
    assert sentence.startswith(
        "Lowest test/cer among rows without a diverged seed: magneto, 0.410 ± 0.014 (2 seeds)."
    )
    assert "includes zero" in sentence
    assert section.breakdowns == {"test/cer": ("es", "fr")}


def test_direction_of_each_metric(tmp_path: Path) -> None:
    """Higher is better as the monitor says, or by the name of a metric."""
    for backbone, value in (("pre_ln", 14.0), ("magneto", 15.0)):
        metrics = {"test/bleu": value, "test/chrf": -value, "test/loss": value, "test/oddity": value}
        make_run(tmp_path, backbone, task="mt", monitor="val/bleu", mode="max", metrics=metrics)
    section = section_of(tmp_path)
    table = main_table(section)
    assert column(table, "test/bleu ↑") == ["14.00", "**15.00**"]
    assert column(table, "test/chrf ↑") == ["**−14.00**", "−15.00"]
    assert column(table, "test/loss ↓") == ["**14.00**", "15.00"]
    further = diagnostics_table(section)
    assert further is not None and "test/oddity" not in table.header
    assert column(further, "test/oddity") == ["14.00", "15.00"]  # neither direction is known: nothing is best


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    make_run(tmp_path, "pre_ln", metrics={"test/cer": 0.5})
    make_run(tmp_path, "magneto", metrics={"test/cer": 0.4})
    section = section_of(tmp_path)
    text = to_markdown(main_table(section))
    assert "±" not in text and "Δ" not in text and "single finished seed" in text
    assert verdict(section) == "Lowest test/cer: magneto, 0.400 (1 seed)."


def test_ties_are_bold_without_a_winner(tmp_path: Path) -> None:
    make_run(tmp_path, "pre_ln", metrics={"test/cer": 0.4001})
    make_run(tmp_path, "magneto", metrics={"test/cer": 0.4})
    section = section_of(tmp_path)
    assert column(main_table(section), "test/cer") == ["**0.400**", "**0.400**"]
    assert verdict(section) == "Lowest test/cer: pre_ln and magneto, equal in the digits shown."


def test_unfinished_runs_are_not_averaged(tmp_path: Path) -> None:
    make_run(tmp_path, "pre_ln", 1, status="diverged", metrics={"test/cer": 0.1})
    make_run(tmp_path, "magneto", 1, metrics={"test/cer": 0.4})
    make_run(tmp_path, "magneto", 2, status="interrupted", metrics={"test/cer": 9.0})
    make_run(tmp_path, "magneto", 3, status="failed", metrics={})
    section = section_of(tmp_path)
    assert column(main_table(section), "test/cer") == ["diverged", "**0.400 †**"]
    assert seeds_text(section.rows[1]) == "1 of 3 (1 failed, 1 interrupted) †"


def test_run_without_the_metric_is_marked(tmp_path: Path) -> None:
    make_run(tmp_path, seed=1, metrics={"test/cer": 0.4})
    make_run(tmp_path, seed=2, metrics={"test/cer": float("nan")})
    table = main_table(section_of(tmp_path))
    assert column(table, "test/cer") == ["0.400 †"]
    assert any("finished seeds only" in note for note in table.notes)


def test_two_kinds_of_memory_are_two_columns(tmp_path: Path) -> None:
    make_run(tmp_path, "pre_ln", run_peak_memory_bytes=None)
    make_run(tmp_path, peak_memory_bytes=None, run_peak_memory_bytes=2**29)
    table = cost_table(section_of(tmp_path))
    assert column(table, "peak memory of the run") == ["–", "0.50 GiB"]
    (index,) = [i for i, name in enumerate(table.header) if name == "peak memory"]
    assert [row[index].text for row in table.rows] == ["1.00 GiB", "–"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.21, "0.2 s"), (12.4, "12 s"), (59.6, "1.0 min"), (5399, "90.0 min"), (7200, "2.0 h"), (None, "–")],
)
def test_duration_has_a_unit_that_fits(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def overview_rows(report: Path) -> list[list[str]]:
    """The cells of the table of all tasks, header first, without the line below it."""
    lines = report.read_text().split("## Overview")[1].split("\n## ")[0].splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    return [table[0], *table[2:]]


def test_overview_of_two_tasks(tmp_path: Path) -> None:
    three_by_two(tmp_path)
    assert write_report([tmp_path], tmp_path / "report").overview is None, "of a single task"
    options: dict[str, Any] = {
        "task": "mt",
        "data": "help",
        "monitor": "val/loss",
        "primary_metric": "test/bleu",
    }
    for backbone, scores in (("pre_ln", (20.0, 22.0)), ("magneto", (24.0, 25.0))):
        for seed, bleu in enumerate(scores, 1):
            make_run(tmp_path, backbone, seed, metrics={"test/bleu": bleu}, **options)
    make_run(tmp_path, "post_ln", 1, status="diverged", metrics={}, **options)
    files = write_report([tmp_path], tmp_path / "report")
    header, asr, mt = overview_rows(files.markdown)
    assert header == ["task", "corpus", "metric", "post_ln", "pre_ln", "magneto", "seeds", "time a run"]
    assert asr[2:6] == ["test/cer ↓", "0.380 †", "0.460 ± 0.014", "**0.410 ± 0.014**"]
    # Means and deviations by hand; minutes are those of the finished runs, 2 for seed 1 and 4 for seed 2.
    assert mt == [
        "mt", "help", "test/bleu ↑", "diverged", "21.00 ± 1.41", "**24.50 ± 0.71**", "0 to 2", "3.0 min"
    ]  # fmt: skip
    assert "<h2>Overview</h2>" in files.html.read_text()
    assert files.latex.read_text().count(r"\caption{Overview.") == 1
    assert files.saved_figures[0].path.name == "overview.png"
    assert "asr on stamps, mt on help" in files.saved_figures[0].alt
    assert "](overview.png)" in files.markdown.read_text()


def test_budgets_have_rows_of_their_own(tmp_path: Path) -> None:
    """Bold is the best of a row, a dash a missing backbone; of several configurations, the best in validation is shown."""
    make_run(tmp_path, task="mlm")
    for steps, cer in ((300, 0.3), (20, 0.9)):
        for number, backbone in enumerate(("pre_ln", "magneto")):
            metrics, config = {"test/cer": cer + 0.01 * number}, {"trainer.max_steps": steps}
            make_run(
                tmp_path, backbone, name=f"{backbone}-{steps}", metrics=metrics, config=config, steps=steps
            )
    files = write_report([tmp_path], tmp_path / "report")
    _, *rows = overview_rows(files.markdown)
    assert {row[0]: row[3:5] for row in rows} == {
        "asr, 20 steps": ["**0.900**", "0.910"],
        "asr, 300 steps": ["**0.300**", "0.310"],
        "mlm": ["–", "0.500"],
    }
    # The best in the test, but not in validation.
    monitor = {"metric": "val/cer", "mode": "min", "best": 0.6, "best_step": 200}
    make_run(tmp_path, name="other", config={"optimizer.lr": 1.0}, metrics={"test/cer": 0.1}, monitor=monitor)
    _, *rows = overview_rows(write_report([tmp_path], tmp_path / "report").markdown)
    assert rows[1][0] == "asr, 300 steps ‡" and rows[1][3:5] == ["**0.300**", "0.310"]


def test_no_result_has_no_overview_figure(tmp_path: Path) -> None:
    for task in ("asr", "mlm"):
        make_run(tmp_path, task=task, status="diverged", metrics={})
    files = write_report([tmp_path], tmp_path / "report")
    _, *rows = overview_rows(files.markdown)
    assert [row[3] for row in rows] == ["diverged", "diverged"]
    assert not (tmp_path / "report" / "overview.png").exists()
