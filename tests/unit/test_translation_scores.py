"""Corpus scores of translations against sacrebleu's own functions, whatever the batches and the processes."""

import importlib
import json
from pathlib import Path

import pytest
import sacrebleu
import torch
import torch.multiprocessing as mp
from sacrebleu.tokenizers.tokenizer_char import TokenizerChar

from magneto.errors import MagnetoError
from magneto.metrics.translation import TranslationScores, bleu_tokenizer, one_line, write_scores

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
def test_scores_are_those_of_sacrebleu(batches: list[list[int]]) -> None:
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


def test_one_direction_has_no_parts() -> None:
    """One direction has no parts and only what was asked for is computed."""
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


CHINESE = (
    ["我今天去学校了。", "他喜欢吃苹果和香蕉。", "会议在2019年结束，共有3个议题。"],
    ["我今天去了学校。", "他喜欢吃苹果和香蕉。", "会议于2019年结束，共有3个议题。"],
)


def bleu(sides: tuple[list[str], list[str]], tokenize: str) -> float:
    return sacrebleu.corpus_bleu(sides[0], [sides[1]], tokenize=tokenize, force=True).score


def test_bleu_of_chinese_splits_characters() -> None:
    """As sacrebleu's command line does for a target language zh; for others 13a, to the last digit."""
    metric = TranslationScores(["en-fr", "en-zh_CN", "zh-en"])
    ids, columns = torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1])
    french = (HYPOTHESES[:3], REFERENCES[:3])
    metric.update(french[0] + CHINESE[0], french[1] + CHINESE[1], ids, columns)
    metric.update(HYPOTHESES[3:], REFERENCES[3:], ids[:3] + 6, torch.full((3,), 2), scores=("bleu",))
    scores = metric.compute()
    assert 50 < scores["bleu/en-zh_CN"] == pytest.approx(bleu(CHINESE, "zh"), abs=1e-9)
    assert scores["bleu/en-fr"] == bleu(french, "13a") and bleu(CHINESE, "13a") < 20
    assert scores["bleu/zh-en"] == bleu((HYPOTHESES[3:], REFERENCES[3:]), "13a")
    parts = [scores[f"bleu/{name}"] for name in metric.directions]
    assert scores["bleu_mean"] == pytest.approx(sum(parts) / 3)
    assert metric.remarks == []


def test_signatures_of_several_tokenizers(tmp_path: Path) -> None:
    """One for each direction, in the log and in the file; chrF and TER have one each."""
    metric = TranslationScores(["en-fr", "en-zh"])
    signatures = metric.signatures()
    assert set(signatures) == {"bleu/en-fr", "bleu/en-zh", "chrf", "ter"}
    values = {"bleu": 1.0, "bleu/en-zh": 2.0, "bleu_mean": 3.0, "chrf": 4.0, "loss": 5.0}
    write_scores(tmp_path / "scores.json", values, signatures)
    report = json.loads((tmp_path / "scores.json").read_text())
    assert "tok:zh" in report["bleu"].pop("signature")["en-zh"]
    assert report["bleu"] == {"bleu": 1.0, "bleu/en-zh": 2.0, "bleu_mean": 3.0}
    assert report["chrf"] == {"signature": signatures["chrf"], "chrf": 4.0}


@pytest.mark.parametrize(
    ("language", "chosen", "tokenizer", "remark"),
    [
        ("fr", None, "13a", None),
        ("pt_BR", None, "13a", None),
        ("zho_Hant", None, "zh", None),
        ("th", None, "13a", "task.bleu_tokenize=char"),
        ("zh", "13a", "13a", "Set it to null"),
        ("th", "char", "char", None),
        ("fr", "intl", "intl", None),
    ],
)
def test_the_tokenizer_of_a_language(
    language: str, chosen: str | None, tokenizer: str, remark: str | None
) -> None:
    found, told = bleu_tokenizer(language, chosen)
    assert found == tokenizer and (told is None if remark is None else remark in str(told))


@pytest.mark.parametrize(("language", "instead"), [("ja", "char"), ("jpn_Jpan", "char"), ("ko", "13a")])
def test_a_tokenizer_that_is_not_installed(
    language: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one with a remark, or an error where it was asked for; sacrebleu's own where it is there."""
    name = f"{language[:2]}-mecab".replace("jp", "ja")
    module = importlib.import_module(f"sacrebleu.tokenizers.tokenizer_{name.replace('-', '_')}")
    monkeypatch.setattr(module, "MeCab", None)
    tokenizer, remark = bleu_tokenizer(language)
    assert tokenizer == instead and f"pip install sacrebleu[{name[:2]}]" in str(remark)
    with pytest.raises(MagnetoError, match=rf"bleu_tokenize={name}: is not installed"):
        TranslationScores([f"en-{language}"], name)
    kind = "TokenizerJaMecab" if name == "ja-mecab" else "TokenizerKoMecab"
    monkeypatch.setattr(module, kind, lambda: TokenizerChar())
    assert bleu_tokenizer(language) == (name, None)


def test_an_unknown_tokenizer_is_named() -> None:
    with pytest.raises(MagnetoError, match=r"bleu_tokenize=13.*Did you mean '13a'"):
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
