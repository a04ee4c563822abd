"""Cleaning of pairs of sentences: what is unusable, what repeats, what stands on two sides, in many scripts."""

from collections.abc import Sequence

import pytest

from magneto.data.corpora.base import SPLITS
from magneto.data.translation.cleaning import (
    VERDICTS,
    Cleaning,
    PairColumns,
    decide,
    template,
    tidy,
    unusable,
)


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
