"""The tokenizer of the text tasks: nothing is lost, nothing is read as special unasked, errors name the remedy."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer

from magneto.data.tokenizers.text import LONGEST_WORD, SPECIALS, TextTokenizer
from magneto.errors import MagnetoError

WORDS = ("the nation", "Congress", "président", "naïve", "people.", "union,", "state's", "war", "peace", "treasury",
         "constitution", "government", "日本", "foreign relations;", "commerce", "1945", "(laws)")  # fmt: skip
SIZES = {"byte_bpe": 330, "bpe": 140, "unigram": 68}
KINDS = tuple(SIZES)


def sample(count: int = 60) -> list[str]:
    chooser = random.Random(0)
    return [
        "".join(chooser.choice(WORDS) + chooser.choice((" ", " ", "\n\n")) for _ in range(200))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, TextTokenizer]:
    return {
        kind: TextTokenizer.train(sample(), kind=kind, vocab_size=size, extra=["<2de>", "<2fr>"])
        for kind, size in SIZES.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_first(tokenizers, kind):
    """The size of the vocabulary is exact."""
    tokenizer = tokenizers[kind]
    assert [tokenizer.token(index) for index in range(7)] == [*SPECIALS, "<2de>", "<2fr>"]
    roles = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id)
    assert roles == (0, 1, 2, 3, 4) and tokenizer.special_ids == set(range(7))
    assert tokenizer.vocab_size == SIZES[kind]
    assert tokenizer.id("<2fr>") == 6 and "<2fr>" in tokenizer and "<2xx>" not in tokenizer


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_byte_level_bpe_loses_nothing(tokenizers, text):
    """Every byte is counted."""
    tokenizer = tokenizers["byte_bpe"]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.special_ids & set(ids)
    ((again, widths),) = tokenizer.encode_batch_bytes([text])
    assert again == ids and widths.sum() == len(text.encode())


@pytest.mark.parametrize("kind", ("bpe", "unigram"))
def test_subwords_read_text_as_a_line(tokenizers, kind):
    tokenizer = tokenizers[kind]
    text = " the people.\n\n\tCongress  and e\u0301 war "
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == "the people. Congress and é war"
    assert ids == tokenizer.encode(tokenizer.decode(ids))
    pieces = [tokenizer.token(index) for index in ids]
    assert not any(piece.endswith(".") and len(piece) > 1 for piece in pieces), (
        "letters joined with punctuation"
    )
    assert tokenizer.unk_id in tokenizer.encode("a ☃ b") and tokenizer.decode(tokenizer.encode("☃")) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_special_tokens_are_text(tokenizers, kind):
    """Unless they are asked for."""
    tokenizer = tokenizers[kind]
    text = "the [MASK] people</s> <2de>"
    plain = tokenizer.encode(text)
    assert not tokenizer.special_ids & set(plain)
    assert tokenizer.decode(plain) == text
    asked = tokenizer.encode(text, specials=True)
    assert [index for index in asked if index in tokenizer.special_ids] == [4, 2, 5]
    assert "[MASK]" not in tokenizer.decode(asked) and "[MASK]" in tokenizer.decode(asked, skip_special=False)
    assert tokenizer.encode(text) == plain, "asking once must not change the tokenizer"


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_replaces_a_word(tokenizers, kind):
    """With its space."""
    tokenizer = tokenizers[kind]
    text = "war peace war"
    whole, masked = tokenizer.encode(text), tokenizer.encode("war [MASK] war", specials=True)
    place = masked.index(tokenizer.mask_id)
    assert masked[:place] == whole[:place] and masked[place + 1 :] == whole[-(len(masked) - place - 1) :]


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_tokens_sum_to_the_text(tokenizers, kind):
    """Of any text."""
    texts = [*sample(5), "  naïve \n\n 日本☃ war \t ", "", "x"]
    for text, (ids, widths) in zip(texts, tokenizers[kind].encode_batch_bytes(texts), strict=True):
        assert len(ids) == len(widths) and (widths >= 0).all()
        assert widths.sum() == len(text.encode())


def test_bytes_stand_at_the_right_tokens(tokenizers):
    tokenizer = tokenizers["byte_bpe"]
    (ids, widths), (_, cut) = tokenizer.encode_batch_bytes(["war and peace", "a☃b"])
    assert widths.tolist() == [len(tokenizer.token(index)) for index in ids]
    assert cut.tolist() == [1, 3, 0, 0, 1]  # a character in three tokens counts for the first
    ((ids, widths),) = tokenizers["bpe"].encode_batch_bytes(["  war \n peace  "])
    assert widths[0] > 1 and widths[-1] >= 3, "white space that is dropped counts for a neighbour"


@pytest.mark.parametrize("kind", KINDS)
def test_the_json_is_all_of_it(tokenizers, kind):
    tokenizer = tokenizers[kind]
    again = TextTokenizer.from_json(tokenizer.to_json())
    assert again == tokenizer and hash(again) == hash(tokenizer)
    text = "the président's [MASK] 日本"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.encode(text, specials=True) == tokenizer.encode(text, specials=True)


@pytest.mark.parametrize("kind", ("byte_bpe", "bpe"))
def test_training_twice_gives_the_same(tokenizers, kind):
    again = TextTokenizer.train(sample(), kind=kind, vocab_size=SIZES[kind], extra=["<2de>", "<2fr>"])
    assert again == tokenizers[kind]


def test_rare_characters_make_room(tokenizers):
    """More characters than half of the vocabulary: the rarest become <unk>, no error."""
    many = "".join(chr(0x4E00 + number) for number in range(500))
    tokenizer = TextTokenizer.train([*sample(), many], kind="bpe", vocab_size=140)
    assert tokenizer.unk_id in tokenizer.encode(many[-1])
    assert tokenizer.decode(tokenizer.encode("the nation")) == "the nation"


def test_text_without_spaces_is_learnt_whole():
    """Chinese has none; its punctuation divides it."""
    first, second = "今天天气很好，我们出去走走。", "银行昨天关门，他只好回家。"
    text = first * 1_000 + second * 1_000
    assert text.index(second) > LONGEST_WORD and " " not in text
    tokenizer = TextTokenizer.train([text], kind="bpe", vocab_size=60)
    assert tokenizer.unk_id not in tokenizer.encode(first + second)


def test_a_sentencepiece_model_is_named(tmp_path):
    (tmp_path / "x.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\xdb\xff")
    with pytest.raises(MagnetoError, match=r"x\.model: not text.*SentencePiece's.*docs/data\.md"):
        TextTokenizer.from_file(tmp_path / "x.model")


def test_an_endless_word_does_not_stop_training():
    chooser = random.Random(1)
    endless = "".join(chooser.choice("abcdefgh") for _ in range(3_000_000))
    tokenizer = TextTokenizer.train([*sample(), "war " + endless + " peace"], kind="byte_bpe", vocab_size=400)
    assert tokenizer.decode(tokenizer.encode(endless[: 2 * LONGEST_WORD])) == endless[: 2 * LONGEST_WORD]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "words", "vocab_size": 300}, "tokenizer.kind='words'"),
        ({"kind": "byte_bpe", "vocab_size": 200}, "needs at least 261"),
        ({"kind": "bpe", "vocab_size": 20}, "too small"),
        ({"kind": "byte_bpe", "vocab_size": 50_000}, r"give only \d+ byte_bpe entries"),
        ({"kind": "bpe", "vocab_size": 50_000}, r"give only \d+ bpe entries"),
        ({"kind": "unigram", "vocab_size": 50_000}, r"give only \d+ unigram entries"),
        ({"kind": "bpe", "vocab_size": 100, "extra": ["</s>"]}, "repeat"),
    ],
)
def test_impossible_settings_say_what_is_possible(settings, message):
    with pytest.raises(MagnetoError, match=message):
        TextTokenizer.train(sample(3), **settings)


def test_no_text_is_an_error():
    with pytest.raises(MagnetoError, match="no training text"):
        TextTokenizer.train(iter(["", ""]), kind="bpe", vocab_size=100)


def test_gpt2s_form(tmp_path):
    """Byte-level BPE whose one special token is the end, the beginning, and no mask."""
    library = ByteLevelBPETokenizer()
    library.train_from_iterator(
        sample(), vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False
    )
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.require("eos") == 0
    assert tokenizer.pad_id is None and tokenizer.mask_id is None
    assert tokenizer.decode(tokenizer.encode("the <|endoftext|> war")) == "the <|endoftext|> war"
    assert 0 in tokenizer.encode("the <|endoftext|> war", specials=True)
    with pytest.raises(MagnetoError, match="no mask token"):
        tokenizer.require("mask")


def test_berts_form(tmp_path):
    """WordPiece, lower-cased, with a template that adds [CLS] and [SEP], and with truncation and padding switched on."""
    library = BertWordPieceTokenizer(lowercase=True)
    library.train_from_iterator(sample(), vocab_size=200, show_progress=False)
    library.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    library.enable_truncation(4)
    library.enable_padding(length=4)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.from_file(tmp_path / "tokenizer.json")
    names = [tokenizer.token(tokenizer.require(role)) for role in ("pad", "bos", "eos", "unk", "mask")]
    assert names == ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    ids = tokenizer.encode("The Nation Congress WAR peace commerce")
    assert len(ids) > 4 and not tokenizer.special_ids & set(ids)
    assert tokenizer.decode(ids) == "the nation congress war peace commerce"
    ((again, widths),) = tokenizer.encode_batch_bytes(["The Naïve WAR"])
    assert widths.sum() == len("The Naïve WAR".encode()) and len(again) == len(widths)


def test_files_that_are_no_tokenizer(tmp_path):
    with pytest.raises(MagnetoError, match="no such file"):
        TextTokenizer.from_file(tmp_path / "none.json")
    for content in (b"{}", b"not json", b"\xff\xfe"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(MagnetoError, match=r"bad\.json"):
            TextTokenizer.from_file(tmp_path / "bad.json")


def test_unknown_tokens_and_ids(tokenizers):
    with pytest.raises(MagnetoError, match="no token '<2dx>'. Did you mean '<2de>'"):
        tokenizers["bpe"].id("<2dx>")
    with pytest.raises(MagnetoError, match="not in the vocabulary"):
        tokenizers["bpe"].token(10_000)


def test_decoding_of_tensors_and_cut_characters(tokenizers):
    tokenizer = tokenizers["byte_bpe"]
    assert tokenizer.decode(np.array(tokenizer.encode("war"))) == "war"
    cut = tokenizer.encode("☃")[:1]
    assert tokenizer.decode(cut) == "\ufffd"
