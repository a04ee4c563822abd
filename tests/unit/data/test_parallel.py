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
    VERDICTS,
    Cleaning,
    PairColumns,
    decide,
    template,
    tidy,
    unusable,
)
from magneto.data.translation.dataset import Marks, TranslationInfo
from magneto.data.translation.module import TranslationDataModule
from magneto.errors import MagnetoError

NOUNS = (
    "file",
    "page",
    "table",
    "cell",
    "chart",
    "slide",
    "style",
    "menu",
    "macro",
    "link",
    "image",
    "field",
)
WORDS = {"file": "fichier", "page": "page", "table": "tableau", "cell": "cellule", "chart": "diagramme",
         "slide": "diapo", "style": "modèle", "menu": "menu", "macro": "macro", "link": "lien", "image": "figure",
         "field": "champ"}  # fmt: skip
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


def test_text_is_tidied() -> None:
    assert tidy("  a\u00a0 b\n\tc\u00adc e\u0301 ") == "a b cc é"


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("", "un", "empty source"),
        ("one", "", "empty target"),
        ("one\0two", "un deux", "control characters or broken Unicode"),
        ("one", "un \ufffd", "control characters or broken Unicode"),
        ("one", "\ud800", "control characters or broken Unicode"),
        ("Page up", "page UP", "source and target are equal"),
        ("1 + 2 = 3", "1+2=3", "no words"),
        ("Save", "保存", ""),
        ("Save it", "Enregistrer", ""),
    ],
)
def test_what_cannot_be_used_is_named(source: str, target: str, reason: str) -> None:
    assert unusable(source, target, Cleaning()) == reason


def test_templates_drop_numbers_and_paths() -> None:
    """Templates forget numbers paths case and punctuation."""
    same = [
        "Open /etc/fstab in 3 steps.",
        "open /usr/share/x/y.txt in 12 steps",
        "OPEN ~/a/b in libfoo2 steps!",
    ]
    assert len({template(text) for text in same}) == 1
    assert template("Open the file") != template("Close the file")
    assert template("...") == "..."


@pytest.mark.parametrize("line", ["a" * 10_000, "a/" * 5_000, "a." * 5_000, "1" * 10_000, "a@" * 5_000])
@pytest.mark.timeout(5)
def test_template_of_a_long_line_is_fast(line: str) -> None:
    """A template of a long line takes no quadratic time."""
    assert template(line)


def judge(
    rows: Sequence[tuple[str, str, str, bool]], clean: Cleaning | None = None, max_ratio: float = 3
) -> list[str]:
    clean = clean or Cleaning()
    columns = PairColumns(clean.templates)
    for source, target, split, stated in rows:
        columns.add(source, target, ("en", "fr"), 0, SPLITS.index(split), stated)
    return [VERDICTS[number] for number in decide(columns, clean, max_ratio)]


def test_near_duplicates_stay_together() -> None:
    """Near duplicates stay on one side and leave those that are divided here."""
    rows = [
        ("Version 1 is out", "La version 1 est là", "train", False),
        ("Version 2 is out", "Voici la 2", "test", False),  # the source's template is in train
        ("Fresh words", "La version 7 est là", "val", False),  # the target's is
        ("Other text 1", "Autre texte 1", "test", False),
        ("Other text 2", "Autre texte 2", "val", False),  # in test
        ("All new", "Tout neuf", "val", False),
    ]
    near = "near-duplicate on another side of the split"
    assert judge(rows) == ["", near, near, "", near, ""]
    assert judge(rows, Cleaning(templates=False)) == [""] * 6


def test_stated_test_split_stays_whole() -> None:
    """A stated test side stays whole and train gives way."""
    rows = [
        ("Version 1 is out", "La version 1 est là", "train", True),
        ("Version 2 is out", "La version 2 est là", "test", True),
        ("Version 2 is out", "La version 2 est là", "test", True),
        ("Short", "Une traduction bien trop longue pour être vraie, et de loin", "test", True),
    ]
    assert judge(rows) == ["near-duplicate on another side of the split", "", "", ""]


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


def test_of_duplicates_the_one_in_train_is_kept() -> None:
    rows = [("One thing", "Une chose", side, False) for side in ("val", "test", "train", "train")]
    assert judge(rows) == ["duplicate", "duplicate", "", "duplicate"]
    assert judge(rows, Cleaning(duplicates=False, templates=False)) == [""] * 4


def test_length_ratio_of_the_direction() -> None:
    """Lengths are judged by what is usual in the direction."""
    usual = [("x" * 60 + str(number), "y" * 25, "train", False) for number in range(200)]
    odd = [("one " * 10, "z" * 100, "train", False), ("two " * 30, "z" * 3, "train", False)]
    found = judge(usual + odd, Cleaning(duplicates=False, templates=False), max_ratio=2)
    assert found[:200] == [""] * 200 and found[200:] == ["length ratio"] * 2


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


def test_budget_and_resuming(tmp_path: Path) -> None:
    """Training batches keep the budget and go on where a run stopped."""
    data = ready(corpus(), tmp_path, pad_to_multiple=1)
    steps = 2 * data.batches_per_epoch()
    data.configure_run(steps)
    whole = list(data.train_dataloader())
    assert len(whole) == steps and "source_text" not in whole[0]
    for batch in whole:
        assert len(batch["id"]) * max(batch["source"].shape[1], batch["target_in"].shape[1]) <= 400
    for epoch in (whole[: steps // 2], whole[steps // 2 :]):
        seen = torch.cat([batch["id"] for batch in epoch]).tolist()
        assert sorted(seen) == data.table("train").numbers("row").tolist()
    data.configure_run(steps, consumed_batches=3)
    loader = data.train_dataloader()
    loader.load_state_dict({"consumed": 3})
    for one, other in zip(whole[3:], loader, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


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
    with pytest.raises(MagnetoError, match="two tokenizer.json files"):
        module(corpus(), tmp_path, tokenizer={"shared": False, "file": files[0]})
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
    assert data.max_tokens == 50 and data.info.pairs == {"train": 0, "val": 0, "test": len(tests)}
    for one, other in zip(model.test_dataloader(), data.test_dataloader(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("source", "target_out", "direction"))
    again = ready([*more, *corpus()], tmp_path, **settings, max_tokens=50)
    again = again.for_model(model.info.to_dict())
    assert again.folder == model.folder, "what the model was trained on is not prepared a second time"


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_ratio": 1}, "max_ratio"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"val_fraction": 0}, "val_fraction"),
        ({"test_fraction": 0.99}, "test_fraction"),
        ({"clean": {"duplicate": True}}, "Did you mean 'data.clean.duplicates'"),
        ({"tokenizer": {"size": 3}}, "data.tokenizer.size"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MagnetoError, match=message):
        module(corpus(), tmp_path, **options)


def test_errors_of_preparation(
    tmp_path: Path,
) -> None:
    """An empty split a missing preparation and a vocabulary too large are explained."""
    with pytest.raises(
        MagnetoError, match=r"No usable pair is left for the val and test splits \(360 are in"
    ):
        module(corpus(lambda number: "train"), tmp_path).prepare()
    with pytest.raises(MagnetoError, match=r"for the train split .*skipped: 216 longer than 2 tokens"):
        module(corpus(), tmp_path, max_tokens=2).prepare()
    few = [pair(n, *texts, group="one block") for n, texts in enumerate(phrases())]
    with pytest.raises(
        MagnetoError, match=r"splits \(360 .*has 1 group of pairs .*name the files of train, val"
    ):
        module(few, tmp_path).prepare()
    with pytest.raises(MagnetoError, match=r"splits \(0 are .*skipped: 9 empty target; .*Check the corpus"):
        module([pair(n, "One", "") for n in range(9)], tmp_path).prepare()
    with pytest.raises(MagnetoError, match="mode=prepare"):
        _ = module(corpus(), tmp_path).info
    with pytest.raises(MagnetoError, match="more than the training text supports"):
        module(corpus(), tmp_path, tokenizer={"kind": "bpe", "vocab_size": 50_000}).prepare()
    assert not list(tmp_path.glob("prepared/translation-*")), "a preparation that fails leaves nothing"


# ------------------------------------------------------------------------------------------------ scripts


EQUAL = {
    "en": [("Open page 3.", "open page 12"), ("It ended in 2019!", "It ended in 1999."), ("libfoo2 ends", "libbar3 ends")],
    "de": [("Öffnen Sie Seite 3.", "öffnen sie Seite 12"), ("Der 1. Band", "der 22. Band"), ("Die Straße", "DIE STRASSE")],
    "zh": [("我有3个苹果。", "我有12个苹果"), ("我有 3 个苹果", "我有5个苹果"), ("会议在2019年结束", "会议在1999年结束！"),
           ("请看http://a.b/c，然后打开", "请看https://d.e/f/g 然后打开"), ("你好，世界", "你好世界")],
    "ja": [("りんごが3個あります。", "りんごが12個あります"), ("会議は2019年に終わる", "会議は１９９９年に終わる"),
           ("ファイルfoo1を開く", "ファイル foo22 を開く")],
    "th": [("มี 3 คน", "มี 12 คน"), ("มี๓คน", "มี3คน")],
    "hi": [("मेरे पास 3 सेब हैं।", "मेरे पास १२ सेब हैं"), ("वह 2019 में आया", "वह 1999 में आया!")],
    "my": [("ပန်းသီး ၃ လုံး", "ပန်းသီး ၁၂ လုံး။")],
    "km": [("ខ្ញុំមានផ្លែប៉ោម 3", "ខ្ញុំមានផ្លែប៉ោម ១២។")],
    "ar": [("لدي 3 تفاحات.", "لدي ١٢ تفاحات"), ("انتهى في عام 2019", "انتهى في عام 1999!")],
    "he": [("יש לי 3 תפוחים.", "יש לי 12 תפוחים"), ("הסתיים ב-2019", "הסתיים ב-1999")],
    "ko": [("사과가 3개 있다.", "사과가 12개 있다"), ("2019년에 끝났다", "1999년에 끝났다!"),
           ("a.txt파일을 연다", "bcd.txt파일을 연다")],
}  # fmt: skip
DIFFERENT = {
    "en": [("Open page 3", "Close page 3"), ("3 apples", "3 pears")],
    "de": [("3 schöne Bücher", "3 schone Bücher"), ("Er kam 2019", "Sie kam 2019")],
    "zh": [("我有3个苹果", "会议在2019年结束"), ("我有3个苹果", "我有3个梨"), ("文件和/或目录", "图像和/或表格"),
           ("看http://a.b/c然后打开", "看http://a.b/c然后关闭")],
    "ja": [("10時に来た", "10時間に来た"), ("りんごが3個", "みかんが3個"), ("かき3個", "がき3個")],
    "th": [("ไม้ 3", "ไม่ 3"), ("มี3คน", "มี3ตัว"), ("เขาอยู่ใกล้", "เขาอยู่ไกล")],
    "hi": [("लड़का आया", "लड़की आयी"), ("लड़के आये", "लड़का आया"), ("3 किताबें", "3 कलमें"), ("और/या", "या/और")],
    "my": [("၃ လုံး", "၃ လူး"), ("ဟုတ်", "ဟတ်")],
    "km": [("បាទ 3", "បទ 3"), ("ទី១ថ្ងៃ", "ទី១ខែ")],
    "ar": [("عَلَم", "عِلْم"), ("3 كتب", "3 أقلام"), ("وصل في2019مساء", "وصل في2019صباحا")],
    "he": [("סֵפֶר", "סָפַר"), ("3 ספרים", "3 עטים"), ("ב3בתים", "ב3ערים")],
    "ko": [("2019년에 왔다", "2019명이 왔다"), ("사과 3개", "배 3개"), ("그리고/또는 파일", "그러나/또는 파일")],
}  # fmt: skip


@pytest.mark.parametrize(("one", "other"), [pair for pairs in EQUAL.values() for pair in pairs])
def test_templates_equal_up_to_numbers(one: str, other: str) -> None:
    """Numbers, paths, case and punctuation are all that a template forgets, in every script."""
    assert template(tidy(one)) == template(tidy(other))


@pytest.mark.parametrize(("one", "other"), [pair for pairs in DIFFERENT.values() for pair in pairs])
def test_templates_keep_other_words_apart(one: str, other: str) -> None:
    """Texts that differ in a letter or in a combining mark have different templates."""
    assert template(tidy(one)) != template(tidy(other))


@pytest.mark.parametrize(
    "text", ["हाँ।", "कौन?", "है।", "मैं", "ဟုတ်", "បាទ", "ใช่", "是", "はい", "네", "نعم", "כן"]
)
def test_short_words_of_any_script_are_words(text: str) -> None:
    """A letter with a combining mark is a syllable, and so a word."""
    assert unusable(text, "Yes, it is", Cleaning()) == ""


def test_chinese_pairs_with_numbers_stay_in_train() -> None:
    """Sentences with a number in them are thrown away only where the rest of them is held out too."""
    rows = [
        ("I have 3 apples", "我有3个苹果", "train", False),
        ("It ends in 2019", "会议在2019年结束", "test", False),
        ("I have 7 apples", "我有7个苹果", "val", False),
    ]
    assert judge(rows) == ["", "", "near-duplicate on another side of the split"]
