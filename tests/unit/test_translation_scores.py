"""Corpus scores of translations against sacrebleu's own functions, whatever the batches and the processes."""

from pathlib import Path

import pytest
import sacrebleu
import torch
import torch.multiprocessing as mp

from magneto.errors import UserError
from magneto.translation_scores import TranslationScores, one_line

REFERENCES = [
    "Le chat est assis sur le tapis.",
    "Cliquez sur le bouton « Appliquer » pour continuer.",
    "Ouvre le menu Format.",
    "Der Hund schläft heute unter dem alten Baum.",
    "Eine Datei.",
    "Die Katze sitzt auf der alten Matte neben dem Ofen.",
]
HYPOTHESES = [
    "Le chat est sur le tapis .",
    "Cliquez sur le bouton Appliquer pour terminer.",
    "",
    "Der Hund schläft unter dem alten Baum heute.",
    "Eine Datei.",
    "Eine Katze sitzt auf der Matte.",
]
DIRECTIONS = torch.tensor([0, 0, 0, 1, 1, 1])


def corpus(rows: list[int]) -> dict[str, float]:
    """What sacrebleu says of these rows."""
    hypotheses, references = [HYPOTHESES[row] for row in rows], [[REFERENCES[row] for row in rows]]
    return {
        "bleu": sacrebleu.corpus_bleu(hypotheses, references, force=True).score,
        "chrf": sacrebleu.corpus_chrf(hypotheses, references).score,
        "ter": sacrebleu.corpus_ter(hypotheses, references).score,
    }


def update(metric: TranslationScores, rows: list[int], **more) -> None:
    metric.update(
        [HYPOTHESES[row] for row in rows], [REFERENCES[row] for row in rows],
        torch.tensor(rows), DIRECTIONS[rows], **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "batches", [[[0, 1, 2, 3, 4, 5]], [[5, 0], [3], [1, 2, 4]], [[0, 1, 2], [2, 3, 4, 5, 0]]]
)
def test_scores_are_those_of_sacrebleu_for_any_batches(batches: list[list[int]]) -> None:
    """Also where an example comes twice."""
    metric = TranslationScores(["en-fr", "en-de"])
    for rows in batches:
        update(metric, rows)
    scores = metric.compute()
    whole, french, german = corpus(list(range(6))), corpus([0, 1, 2]), corpus([3, 4, 5])
    for name in ("bleu", "chrf", "ter"):
        assert scores[name] == pytest.approx(whole[name], abs=1e-9)
        assert scores[f"{name}/en-fr"] == pytest.approx(french[name], abs=1e-9)
        assert scores[f"{name}/en-de"] == pytest.approx(german[name], abs=1e-9)
        assert scores[f"{name}_mean"] == pytest.approx((french[name] + german[name]) / 2)
    assert 0 < scores["bleu"] < 100


def test_one_direction_has_no_parts_and_only_what_was_asked_for_is_computed() -> None:
    metric = TranslationScores(["en-fr"])
    metric.update(HYPOTHESES[:2], REFERENCES[:2], torch.arange(2), torch.zeros(2), scores=("bleu",))
    assert set(metric.compute()) == {"bleu"}
    metric.reset()
    assert metric.compute() == {}


def test_signatures_name_settings_and_version() -> None:
    metric = TranslationScores(["en-fr"], tokenize="intl")
    update(metric, [0, 1])
    signatures = metric.signatures()
    assert "tok:intl" in signatures["bleu"] and f"version:{sacrebleu.__version__}" in signatures["bleu"]
    assert set(signatures) == {"bleu", "chrf", "ter"}


def test_an_unknown_tokenizer_is_named() -> None:
    with pytest.raises(UserError, match=r"bleu_tokenize=13.*Did you mean '13a'"):
        TranslationScores(["en-fr"], tokenize="13")


def test_texts_are_lines() -> None:
    assert one_line("a\r\nb\n\nc\rd") == "a b c d"


def _score_on_rank(rank: int, folder: Path) -> None:
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    shared, lonely = TranslationScores(["en-fr", "en-de"]), TranslationScores(["en-fr", "en-de"])
    update(shared, [[0, 1, 2, 3], [4, 5, 0]][rank])  # sample 0 is on both ranks
    update(lonely, [[], [0, 1, 2, 3, 4, 5]][rank])
    torch.save([shared.compute(), lonely.compute()], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    mp.spawn(_score_on_rank, args=(tmp_path,), nprocs=2)
    metric = TranslationScores(["en-fr", "en-de"])
    update(metric, [0, 1, 2, 3, 4, 5])
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == [pytest.approx(metric.compute())] * 2
