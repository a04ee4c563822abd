"""Normalisation and tokenizers: blank 0, exact round trips, plain serialisation, clear errors."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magneto.data.tokenizers.ctc import BLANK, CTCTokenizer, repeats
from magneto.data.transforms.text import normalize_text
from magneto.errors import MagnetoError

TEXTS = [
    f"{article} {noun} {adjective}"
    for article in ("l'avion", "la lettre", "un âne", "жёлтый", "une maison", "des œufs")
    for noun in ("rouge", "чемодан", "bleue", "volante", "marron", "petite")
    for adjective in ("d'hiver", "lointain", "красный", "tournante", "bleu")
]
SETTINGS = [{"kind": "characters"}, {"kind": "bpe", "vocab_size": 80}, {"kind": "unigram", "vocab_size": 45}]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("¡Este tanque M3 Bradley!", "este tanque m3 bradley"),
        ("L’avion d'essai.", "l'avion d'essai"),
        ("'quoted' words'", "quoted words"),
        ("F-22   “Raptor”\u00a0…", "f 22 raptor"),
        ("e\u0301te\u0301", "été"),
        ("Ёж ЙОД", "ёж йод"),
        ("(0,50 €)", "0 50"),
        ("İzmir", "i\u0307zmir"),
        ("—", ""),
        ("м\u02bcята м\u2019ята м\uff07ята м\u2032ята", "м'ята м'ята м'ята м'ята"),
        ("\u02bcya ya\u02bc", "ya ya"),
        ("می\u200cخواهم", "میخواهم"),
        ("ශ්\u200dරී", "ශ්රී"),
        ("Wörter\u00adbuch\ufeff \u200ea\u2060b", "wörterbuch ab"),
        ("l\u2019\u200davion e\u200d\u0301", "l'avion é"),
        ("ភាសា\u200bខ្មែរ", "ភាសា ខ្មែរ"),
    ],
)
def test_normalize_text(raw, expected):
    assert normalize_text(raw) == expected


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalize_text(normalize_text(text)) == normalize_text(text)


@pytest.mark.parametrize("settings", SETTINGS)
def test_round_trip_blank_and_serialisation(settings):
    tokenizer = CTCTokenizer.train(TEXTS, **settings)
    assert tokenizer.vocab_size == settings.get("vocab_size", len(set("".join(TEXTS))) + 1)
    again = CTCTokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert BLANK not in ids and max(ids) < tokenizer.vocab_size
        assert tokenizer.decode(ids) == text
        assert again.encode(text) == ids and again.decode([0, *ids, 0]) == text
    assert again.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("settings", SETTINGS)
def test_unknown_characters_are_dropped(settings):
    """Those that training did not show."""
    tokenizer = CTCTokenizer.train(TEXTS, **settings)
    assert tokenizer.decode(tokenizer.encode("un âne 中")).rstrip() == "un âne"


def test_subwords_are_shorter_than_characters():
    characters, subwords = (CTCTokenizer.train(TEXTS, **s) for s in SETTINGS[:2])
    assert len(subwords.encode("un avion rouge")) < len(characters.encode("un avion rouge"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "words"}, "characters, bpe, unigram"),
        ({"kind": "bpe"}, "needs data.tokenizer.vocab_size"),
        ({"kind": "characters", "vocab_size": 9}, "no meaning"),
        ({"kind": "bpe", "vocab_size": 5}, "too small"),
        ({"kind": "bpe", "vocab_size": 5_000}, r"only \d+ bpe entries"),
        ({"kind": "unigram", "vocab_size": 5_000}, r"only \d+ unigram entries"),
    ],
)
def test_impossible_vocabularies_say_what_to_do(settings, message):
    with pytest.raises(MagnetoError, match=message):
        CTCTokenizer.train(TEXTS, **settings)


def test_no_text_at_all():
    with pytest.raises(MagnetoError, match="no text"):
        CTCTokenizer.train([])


def test_repeats():
    assert [repeats(ids) for ids in ([], [1], [1, 1, 2, 2, 2], [1, 2, 1])] == [0, 0, 3, 0]
