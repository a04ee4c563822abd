"""From pairs to batches: cleaning, split, preparation, batches, other tokenizers, damaged input."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magneto.data.collate import IGNORE
from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.translation.base import Pair, TranslationCorpus, parse_directions
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.translation.cleaning import (
    Cleaning,
    tidy,
    unusable,
)
from magneto.data.translation.dataset import Marks, TranslationInfo
from magneto.data.translation.module import TranslationDataModule
from magneto.errors import MagnetoError

WORDS = {"file": "fichier", "page": "page", "table": "tableau", "cell": "cellule", "chart": "diagramme",
         "slide": "diapo", "style": "modèle", "menu": "menu", "macro": "macro", "link": "lien", "image": "figure",
         "field": "champ"}  # fmt: skip
NOUNS = tuple(WORDS)
VERBS = {"Opens": "Ouvre", "Closes": "Ferme", "Deletes": "Supprime", "Inserts": "Insère", "Copies": "Copie"}


@dataclass
class Given:
    """A corpus of given pairs: (source, target), with a group and maybe a split."""

    pairs: Sequence[Pair]
    skipped: Sequence[Skipped] = ()

    def fingerprint(self) -> dict[str, Any]:
        return {"corpus": "given", "pairs": [repr(pair) for pair in self.pairs]}

    def load(self, data_dir: Path) -> TranslationCorpus:
        return TranslationCorpus(iter(self.pairs), self.skipped, {"corpus": "given"})


def pair(number: int, source: str, target: str, split: str | None = None, **more: str) -> Pair:
    values = {"source_language": "en", "target_language": "fr", "group": f"file {number}", **more}
    return Pair(id=str(number), source=source, target=target, split=split, **values)


def phrases() -> Iterator[tuple[str, str]]:
    for first in NOUNS:
        for verb, verbe in VERBS.items():
            for second in NOUNS[:6]:
                yield (
                    f"{verb} the {first} of the {second}.",
                    f"{verbe} le {WORDS[first]} de la {WORDS[second]}.",
                )


def corpus(split: Any = lambda number: SPLITS[0 if number % 5 < 3 else number % 5 - 2]) -> list[Pair]:
    return [pair(number, *texts, split(number)) for number, texts in enumerate(phrases())]


def module(pairs: Sequence[Pair], data_dir: Path, **options: Any) -> TranslationDataModule:
    options = {"tokenizer": {"kind": "bpe", "vocab_size": 140}, "batch_tokens": 400, **options}
    return TranslationDataModule({"given": Given(pairs)}, data_dir=str(data_dir), **options)


def ready(pairs: Sequence[Pair], data_dir: Path, **options: Any) -> TranslationDataModule:
    data = module(pairs, data_dir, **options)
    data.prepare()
    data.setup()
    return data


def report(data: TranslationDataModule) -> dict[str, Any]:
    return json.loads((data.folder / "prepare_report.json").read_text(encoding="utf-8"))


def rows(data: TranslationDataModule, *splits: str) -> list[dict[str, Any]]:
    """The rows of the tables, each with its split."""
    return [
        row | {"split": split} for split in splits or SPLITS for row in data.table(split).arrow.to_pylist()
    ]


def tokens(data: TranslationDataModule) -> list[int]:
    return sum((row["source_tokens"] + row["target_tokens"] for row in rows(data)), [])


# ------------------------------------------------------------------------------------------------ cleaning


def test_a_stated_side_is_left_whole(tmp_path: Path) -> None:
    """Numbers, equal sides and long lines of a published test set are kept, with their whole text; train is cleaned."""
    odd = [("LibreOffice", "LibreOffice"), ("10:30", "10:30"), ("3 %", "3 %"), ("A.", "A."), ("Taxi \x90", "Taxi"),
           ("Opens the file " * 40, "Ouvre le fichier " * 40), ("word " * 2_500, "mot " * 2_500)]  # fmt: skip
    more = [
        pair(1000 + n, *texts, split) for n, texts in enumerate(odd) for split in ("train", "test", "val")
    ]
    more = [pair(n, one.source, one.target, one.split) for n, one in enumerate(more, 1000)]
    data = ready([*corpus(), *more], tmp_path, max_tokens=60)
    plain = ready(corpus(), tmp_path, max_tokens=60)
    kept = {split: data.info.pairs[split] - plain.info.pairs[split] for split in SPLITS}
    assert kept == {"train": 0, "val": 7, "test": 7}
    assert [row["source"] for row in rows(data, "test")][-7:] == [tidy(source) for source, _ in odd]
    last = rows(data, "test")[-1]
    assert max(len(last["source_tokens"]), len(last["target_tokens"])) == 60
    assert report(data)["shortened"] == 4
    half, empty = pair(1, "half \ud800", "une moitié", "test"), pair(2, " ", "vide", "test")
    assert unusable(half.source, half.target, Cleaning(), published=True)
    assert unusable(tidy(empty.source), empty.target, Cleaning(), published=True)


@pytest.mark.parametrize(
    "bad", [[], ["en"], ["en-fr-de"], ["en-en"], ["EN-fr"], ["en-fr", "en-fr"], ["en-xx"]]
)
def test_directions_are_checked(bad: list[str]) -> None:
    with pytest.raises(MagnetoError):
        parse_directions(bad, ["en", "fr", "pt_BR"])


def test_unknown_language_is_named() -> None:
    """An unknown language is named with the known ones."""
    assert parse_directions(["en-pt_BR"], ["en", "pt_BR"]) == [("en", "pt_BR")]
    with pytest.raises(MagnetoError, match="no language 'de'; it has en, fr"):
        parse_directions(["en-de"], ["fr", "en"])


# ------------------------------------------------------------------------------------------------ preparation


def test_batches_hold_every_pair_once(tmp_path: Path) -> None:
    """Batches hold every pair of a split once as the contract says."""
    pairs = corpus()
    data = ready(pairs, tmp_path, pad_to_multiple=4)
    info = TranslationInfo.from_dict(json.loads(json.dumps(data.info.to_dict())))
    assert (info.max_tokens, info.longest, info.longest_text(info.longest)) == (128, 132, 131)
    assert info.directions == ["en-fr"] and info.shared and info.source_tokenizer == info.target_tokenizer
    assert info.pairs == info.per_direction["en-fr"]
    tokenizer = TextTokenizer.from_json(info.source_tokenizer)
    seen = []
    by_number = {row["row"]: row for row in rows(data)}
    assert sorted(by_number) == list(range(sum(info.pairs.values())))
    for batch in data.test_dataloader():
        assert batch["source"].shape == batch["source_mask"].shape and batch["source"].shape[1] % 4 == 0
        assert batch["target_in"].shape == batch["target_out"].shape == batch["target_mask"].shape
        for row, number in enumerate(batch["id"].tolist()):
            line = by_number[number]
            source = batch["source"][row][batch["source_mask"][row]].tolist()
            inputs = batch["target_in"][row][batch["target_mask"][row]].tolist()
            outputs = batch["target_out"][row][batch["target_mask"][row]].tolist()
            assert source[-1] == outputs[-1] == tokenizer.eos_id and inputs[0] == tokenizer.bos_id
            assert inputs[1:] == outputs[:-1]
            assert tokenizer.decode(source) == batch["source_text"][row] == line["source"]
            assert tokenizer.decode(outputs) == batch["target_text"][row] == line["target"]
            assert (batch["target_out"][row][~batch["target_mask"][row]] == IGNORE).all()
            assert (batch["source"][row][~batch["source_mask"][row]] == tokenizer.pad_id).all()
            assert line["split"] == "test" and batch["direction"][row] == 0
            seen.append(line["id"])
    wanted = {f"given/{one.id}" for one in pairs if one.split == "test"}
    assert len(seen) == len(set(seen)) == info.pairs["test"] and set(seen) == wanted


def test_broken_pairs_are_listed(tmp_path: Path) -> None:
    """Broken pairs are counted and listed and the rest is used."""
    good = corpus()
    bad = {
        "empty target": ("Something", "  "),
        "empty source": ("\n", "Chose"),
        "control characters or broken Unicode": ("Nul \0 byte", "Octet nul"),
        "longer than 10000 characters": ("long " * 3_000, "trop long"),
        "longer than 60 tokens": ("Opens the file and " * 30, "Ouvre le fichier et " * 30),
        "source and target are equal": ("The same", "the same"),
        "length ratio": ("Opens", "Ouvre le fichier de la page de la table, et puis " * 4),
    }
    more = [pair(1000 + number, *texts) for number, texts in enumerate(bad.values())]
    source = Given([*good, *more], [Skipped("x", "f", "broken line")])
    data = TranslationDataModule(
        {"given": source}, data_dir=str(tmp_path), tokenizer={"kind": "bpe", "vocab_size": 140}, max_tokens=60
    )
    data.prepare()
    listed = report(data)
    assert listed["skipped_by_reason"] == dict.fromkeys([*bad, "broken line"], 1)
    by_id = {item["id"]: item["reason"] for item in listed["skipped"]}
    assert by_id == {f"given/{1000 + n}": reason for n, reason in enumerate(bad)} | {"given/x": "broken line"}
    assert sum(listed["used"].values()) == len(good)


def test_groups_are_not_divided(tmp_path: Path) -> None:
    """A group stands on one side and the split does not depend on the order."""
    pairs = [pair(number, *texts, group=f"file {number % 40}") for number, texts in enumerate(phrases())]
    options: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.2, "clean": {"templates": False}}
    forth, back = (ready(each, tmp_path, **options) for each in (pairs, pairs[::-1]))
    sides = {(row["group"], row["split"]) for row in rows(forth)}
    assert len(sides) == 40 and {side for _, side in sides} == set(SPLITS)
    assert sides == {(row["group"], row["split"]) for row in rows(back)}


def test_tags_choose_the_language(tmp_path: Path) -> None:
    """Tags ask for the language and are needed for one to many."""
    french = corpus()
    german = [
        pair(1000 + int(one.id), one.source, f"Es {one.target.upper()}", one.split, target_language="de")
        for one in french
    ]
    with pytest.raises(MagnetoError, match="set data.tag=true"):
        module([*french, *german], tmp_path).prepare()
    data = ready([*french, *german], tmp_path, tag=True)
    tokenizer = data.info.source_text_tokenizer
    assert data.info.directions == ["en-fr", "en-de"]
    for batch in data.val_dataloader():
        wanted = [tokenizer.id(("<2fr>", "<2de>")[number]) for number in batch["direction"].tolist()]
        assert batch["source"][:, 0].tolist() == wanted
        assert not (batch["target_in"] == tokenizer.id("<2fr>")).any()


def test_a_tag_as_text_is_text(tmp_path: Path) -> None:
    pairs = [*corpus(), pair(5000, "Write <2fr> or </s> here", "Mettre <2fr> ou </s> ici", "test")]
    data = ready(pairs, tmp_path, tag=True, tokenizer={"kind": "byte_bpe", "vocab_size": 300})
    assert not np.isin(tokens(data), sorted(data.info.source_text_tokenizer.special_ids)).any()
    assert any(row["source"] == "Write <2fr> or </s> here" for row in rows(data, "test"))


def test_separate_and_given_tokenizers(tmp_path: Path) -> None:
    """Separate vocabularies and given tokenizers."""
    separate = ready(corpus(), tmp_path, tokenizer={"kind": "bpe", "vocab_size": 80, "shared": False})
    assert separate.info.source_tokenizer != separate.info.target_tokenizer
    files = []
    for name in ("source", "target"):
        files.append(str(tmp_path / f"{name}.json"))
        Path(files[-1]).write_text(getattr(separate.info, f"{name}_tokenizer"), encoding="utf-8")
    given = ready(corpus(), tmp_path, tokenizer={"shared": False, "file": files})
    assert given.info.target_tokenizer == separate.info.target_tokenizer and given.folder != separate.folder
    assert tokens(given) == tokens(separate)
    with pytest.raises(MagnetoError, match=r"tokenizer\.file=.*no such file"):
        module(corpus(), tmp_path, tokenizer={"file": "missing.json"}).prepare()


def test_batches_for_another_tokenizer(tmp_path: Path) -> None:
    """Batches for the model of a checkpoint with another tokenizer."""
    model = ready(corpus(), tmp_path, tokenizer={"kind": "byte_bpe", "vocab_size": 300}, tag=True)
    data = module(corpus(), tmp_path).for_model(model.info.to_dict())
    assert not (tmp_path / "prepared" / module(corpus(), tmp_path).folder).exists(), (
        "no vocabulary of its own"
    )
    for one, other in zip(model.test_dataloader(), data.test_dataloader(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("source", "target_out", "source_mask"))
    german = [pair(int(one.id), one.source, one.target, one.split, target_language="de") for one in corpus()]
    other_language = module(german, tmp_path)
    other_language.prepare()
    with pytest.raises(MagnetoError, match=r"pairs en-de; the checkpoint's model translates en-fr"):
        other_language.for_model(model.info.to_dict())


def test_a_test_set_is_read_as_the_model_reads(tmp_path: Path) -> None:
    """With the model's tokenizers, tags and directions; the data's own settings of these do not matter."""
    more = [pair(1000 + n, *texts, "train", target_language="de") for n, texts in enumerate(phrases())]
    settings = {"tag": True, "tokenizer": {"kind": "bpe", "vocab_size": 80, "shared": False}}
    model = ready([*more, *corpus()], tmp_path, **settings, max_tokens=50)
    tests = [one for one in corpus() if one.split == "test"]
    data = module(tests, tmp_path, tokenizer={"kind": "bpe", "vocab_size": 8_000})
    data = data.for_model(json.loads(json.dumps(model.info.to_dict())))
    assert data.config.max_tokens == 50 and data.info.pairs == {"train": 0, "val": 0, "test": len(tests)}
    for one, other in zip(model.test_dataloader(), data.test_dataloader(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("source", "target_out", "direction"))


def test_lines_become_batches_without_targets(tmp_path: Path) -> None:
    """Lines to translate become batches without targets."""
    info = ready(corpus(), tmp_path).info
    marks = Marks(info)
    items = [{"id": 0, "source": marks.source([5, 6, 7], 0), "direction": 0}]
    batch = marks.padding()(items)
    assert (
        batch["source"].tolist() == [[5, 6, 7, info.source_text_tokenizer.eos_id]]
        and "target_in" not in batch
    )


def test_errors_of_preparation(tmp_path: Path) -> None:
    """What is wrong with all pairs, and a remedy that helps."""
    few = [pair(n, *texts, group="one block") for n, texts in enumerate(phrases())]
    for pairs, options, message in (
        (
            corpus(lambda number: "train"),
            {},
            r"No usable pair is left for the val and test splits \(360 are in",
        ),
        (corpus(), {"max_tokens": 2}, r"for the train split .*skipped: 216 longer than 2 tokens"),
        (few, {}, r"splits \(360 .*has 1 group of pairs .*name the files of train, val"),
        (
            [pair(n, "One", "") for n in range(9)],
            {},
            r"splits \(0 are .*skipped: 9 empty target; .*Check the corpus",
        ),
    ):
        with pytest.raises(MagnetoError, match=message):
            module(pairs, tmp_path, **options).prepare()
