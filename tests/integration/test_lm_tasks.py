"""Questions that are made of held-out speeches, and what a model answers under the harness."""

import json
from pathlib import Path

import pytest

from magneto.errors import DataError
from tests.toys.language_models import export_untrained

pytest.importorskip("lm_eval")
from magneto.commands import lm_eval, lm_tasks
from magneto.commands.chain import Outcome, asked
from magneto.commands.chain_spec import Harness
from magneto.training.result import RunResult

WORDS = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(400)]


@pytest.fixture(scope="module")
def speeches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A speech a year, of five paragraphs: the words of each are its own, but for the name of a country."""
    folder = tmp_path_factory.mktemp("sotu") / "speeches"
    folder.mkdir()
    for year in range(1790, 1850):
        paragraphs = []
        for number in range(5):
            own = [f"{word}{year}{number}" for word in WORDS[:40]]
            country = lm_tasks.COUNTRIES[(year + number) % len(lm_tasks.COUNTRIES)]
            paragraphs.append(
                " ".join([*own, "we agreed with", country, f"on this in {year}. Another sentence."])
            )
        (folder / f"{year}-Somebody-1.txt").write_text("\n\n".join(paragraphs))
    return folder.parent


@pytest.fixture(scope="module")
def tasks(speeches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    assert lm_tasks.write_tasks(folder, folder, str(speeches), most=12) == ["sotu_continuation", "sotu_name"]
    return folder


def questions(tasks: Path, name: str, split: str) -> list[dict]:
    return [json.loads(line) for line in (tasks / f"{name}-{split}.jsonl").read_text().splitlines()]


def test_the_right_answer_is_the_paragraphs_own(tasks: Path) -> None:
    """The others are of other paragraphs, or another country; no speech is in both splits; the same files each time."""
    years: dict[str, set[str]] = {}
    for split in ("train", "test"):
        asked_of = questions(tasks, "sotu_continuation", split)
        assert 0 < len(asked_of) <= 12
        for one in asked_of:
            of_paragraph = [
                choice.split()[0][3:] == one["context"].split()[0][3:] for choice in one["choices"]
            ]
            assert len(one["choices"]) == 4 and of_paragraph == [n == one["answer"] for n in range(4)]
            years.setdefault(split, set()).add(one["context"].split()[0][3:7])
        for one in questions(tasks, "sotu_name", split):
            year = one["choices"][0].split()[-1].rstrip(".")
            right, wrong = one["choices"][one["answer"]], one["choices"][1 - one["answer"]]
            assert right.endswith(f"on this in {year}.") and wrong.endswith(f"on this in {year}.")
            assert one["context"].endswith("we agreed with")
            own = {lm_tasks.COUNTRIES[(int(year) + n) % len(lm_tasks.COUNTRIES)] for n in range(5)}
            assert any(right.startswith(name) for name in own)
            assert right.split(" on this")[0] != wrong.split(" on this")[0]
    assert not years["train"] & years["test"]
    assert {one["answer"] for one in questions(tasks, "sotu_continuation", "test")} > {0, 1}


def test_files_are_the_same_each_time(speeches: Path, tasks: Path, tmp_path: Path) -> None:
    lm_tasks.write_tasks(tmp_path, tmp_path, str(speeches), most=12)
    for file in tasks.glob("*.jsonl"):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_corpus_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "speeches").mkdir()
    for year in (1790, 1791, 1792):
        (tmp_path / f"speeches/{year}-Somebody-1.txt").write_text("Too short.")
    with pytest.raises(DataError, match="sotu_continuation: .* Use the whole corpus"):
        lm_tasks.write_tasks(tmp_path / "tasks", tmp_path, str(tmp_path))


def test_accuracies_are_those_of_the_likeliest(tasks: Path, tmp_path: Path) -> None:
    """Of all choices; solved examples before a question change what a model says of it."""
    names, exported = ["sotu_continuation", "sotu_name"], export_untrained(tmp_path, 1024)
    found = lm_eval.accuracies(exported, names, 0, tasks)
    model = lm_eval.MagnetoLM(checkpoint=str(exported), device="cpu")
    for name, accuracy in found.items():
        right = []
        for one in questions(tasks, name, "test"):
            pairs = [model._encode_pair(one["context"], f" {choice}") for choice in one["choices"]]
            scores = model._loglikelihood_tokens([(("", ""), *pair) for pair in pairs])
            right.append(max(range(len(scores)), key=lambda n: scores[n][0]) == one["answer"])
        assert accuracy == pytest.approx(sum(right) / len(right))
    assert lm_eval.accuracies(exported, names, 1, tasks).keys() == found.keys()


def test_answers_are_kept_with_the_run(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked once, and an extra that is not installed is a failed run with its message."""
    result = RunResult(task="causal_lm", name="a", seed=1, config={}, metrics={"test/loss": 1.0})
    outcome = Outcome(status="finished", folder=tmp_path, result=result)
    calls = []

    def accuracies(*arguments: object) -> dict[str, float]:
        calls.append(arguments)
        return {"sotu_name": 0.25}

    monkeypatch.setattr(lm_eval, "accuracies", accuracies)
    for _ in range(2):
        answered = asked(outcome, Harness(shots=[0, 4]), tasks, tmp_path)
        assert answered.result is not None
        assert answered.result.metrics == {"test/loss": 1.0, "sotu_name:0": 0.25, "sotu_name:4": 0.25}
    assert [call[2] for call in calls] == [0, 4]

    def absent(*arguments: object) -> None:
        raise ImportError("No module named 'lm_eval': the harness is an optional extra")

    monkeypatch.setattr(lm_eval, "accuracies", absent)
    failed = asked(outcome, Harness(shots=[2]), tasks, tmp_path)
    assert failed.status == "failed" and "optional extra" in str(failed.message)
