"""Generation: cached equals uncached, batches equal single prompts, draws follow the distribution, text is whole."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from magneto.data.text.dataset import TextInfo
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import MagnetoError
from magneto.inference.sampling import Continuation, Decoding, choose, generate, next_tokens, stream
from magneto.nn import KVCache
from magneto.nn.config import SEQUENCE_POSITIONS
from magneto.nn.placement import PLACEMENTS
from magneto.tasks.causal_lm import CausalLM
from tests.toys.runs import info_of

TEXT = "the naïve cat sat on the mat — 猫が座った 🐈 and said: stop"
TOKENIZER = TextTokenizer.train([TEXT], kind="byte_bpe", vocab_size=270)
VOCABULARY = TOKENIZER.vocab_size
PROMPTS = [[5, 9, 200], [7], [100, 3, 8, 44, 61, 12, 200]]


def model(context: int = 64, **backbone: Any) -> CausalLM:
    torch.manual_seed(0)
    values = {
        "architecture": "decoder",
        "num_layers": 2,
        "d_model": 32,
        "num_heads": 4,
        "max_positions": context,
    }
    task = CausalLM(
        backbone=values | backbone,
        info=info_of(TextInfo, tokenizer=TOKENIZER.to_json(), vocab_size=VOCABULARY, block_size=8),
        optimizer={"lr": 1e-3}, scheduler={"name": "constant"}, total_steps=1,
    )  # fmt: skip
    with torch.no_grad():  # relative positions start at zero, norms at one
        for parameter in task.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return task.eval()


class Recording:
    """A model, and the logits that generation was given."""

    def __init__(self, task: CausalLM) -> None:
        self.task, self.context, self.device = task, task.context, task.device
        self.logits: list[Tensor] = []

    def next_logits(self, tokens: Tensor, mask: Tensor | None, cache: KVCache) -> Tensor:
        self.logits.append(self.task.next_logits(tokens, mask, cache))
        return self.logits[-1]


def tokens_of(
    task: Any, prompts: Sequence[Sequence[int]], settings: Decoding, **more: Any
) -> list[list[int]]:
    """All that is drawn for each prompt."""
    rows: list[list[int]] = [[] for _ in prompts]
    for step in next_tokens(task, prompts, settings, **more):
        for row, token in step:
            rows[row].append(token)
    return rows


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
@pytest.mark.parametrize("placement", list(PLACEMENTS))
@torch.no_grad()
def test_cached_padded_batch_has_the_same_logits(placement: str, position: str) -> None:
    """A cached padded batch gives the logits of each whole sequence."""
    task = model(placement=placement, position=position)
    recording = Recording(task)
    found = tokens_of(recording, PROMPTS, Decoding(max_new_tokens=12, temperature=0))
    stepwise = torch.stack(recording.logits, dim=1)
    for row, (prompt, drawn) in enumerate(zip(PROMPTS, found, strict=True)):
        hidden = task(torch.tensor([prompt + drawn]))
        expected = task.logits(hidden)[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(stepwise[row], expected, rtol=1e-5, atol=1e-5)
        assert drawn == expected.argmax(-1).tolist()


def test_samples_do_not_depend_on_the_batch() -> None:
    """Also when rows end at different times and leave the batch."""
    task = model(position="rotary")
    settings = Decoding(max_new_tokens=40, temperature=1.5, top_p=0.9, seed=3)
    together = tokens_of(task, PROMPTS, settings, end=9)
    assert len(set(map(len, together))) > 1, "no row ended before the others"
    # A row's numbers belong to its place: the other rows are other prompts here, and fewer.
    assert tokens_of(task, PROMPTS[:1], settings, end=9) == together[:1]
    assert tokens_of(task, [[1, 2], PROMPTS[1]], settings, end=9)[1] == together[1]
    assert tokens_of(task, PROMPTS, settings, end=9) == together
    assert tokens_of(task, PROMPTS, Decoding(max_new_tokens=40, temperature=1.5, seed=4)) != together


def test_a_row_has_the_numbers_of_its_place() -> None:
    """A part of a list, told where it stands in it, draws what the whole list draws there."""
    task = model(position="rotary")
    settings = Decoding(max_new_tokens=12, temperature=1.5, top_p=None)
    whole = generate(task, TOKENIZER, [PROMPTS[0]] * 6, settings)
    assert len({row.text for row in whole}) == 6
    for batch in ([0, 1], [4, 2, 5], [3]):
        found = generate(task, TOKENIZER, [PROMPTS[0]] * len(batch), settings, batch)
        assert found == [whole[number] for number in batch]


@pytest.mark.parametrize("temperature", [1e-20, 1e-37, 1e-45, 1e-300])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[0.3, 9.0, -torch.inf, 8.9]])
    for more in ({"top_p": None}, {"top_p": 0.9}, {"top_k": 3}):
        assert choose(logits, Decoding(temperature=temperature, **more), torch.tensor([0.99])).item() == 1


def distribution(logits: Tensor, **settings: Any) -> Tensor:
    """Frequencies of the tokens, drawn with a fine grid of numbers in place of random ones."""
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = choose(logits.expand(len(grid), -1), Decoding(**settings), grid)
    return torch.bincount(drawn, minlength=len(logits)) / len(grid)


def test_samples_follow_the_distribution() -> None:
    """Draws follow the distribution and its cuts."""
    logits = torch.tensor([0.3, 2.0, -1.0, 1.0, -9.0])
    close = {"rtol": 0, "atol": 2e-5}
    whole = torch.softmax(logits, -1)
    torch.testing.assert_close(distribution(logits, temperature=1.0, top_p=None), whole, **close)
    torch.testing.assert_close(distribution(logits, temperature=1.0, top_p=1.0), whole, **close)
    cold = torch.softmax(logits / 0.5, -1)
    torch.testing.assert_close(distribution(logits, temperature=0.5, top_p=None), cold, **close)
    two = torch.where(logits >= 1, whole, 0)
    torch.testing.assert_close(
        distribution(logits, temperature=1.0, top_p=None, top_k=2), two / two.sum(), **close
    )
    # 0.60 + 0.22 stay below 0.9, so the third is taken along.
    three = torch.where(logits >= 0.3, whole, 0)
    assert whole[1] + whole[3] < 0.9 < three.sum()
    torch.testing.assert_close(distribution(logits, temperature=1.0, top_p=0.9), three / three.sum(), **close)
    # The best token of the two that top-k leaves has 0.73 of them, and is enough.
    one = torch.nn.functional.one_hot(torch.tensor(1), 5).float()
    torch.testing.assert_close(distribution(logits, temperature=1.0, top_k=2, top_p=0.7), one, **close)
    torch.testing.assert_close(distribution(logits, temperature=0.0), one, **close)
    torch.testing.assert_close(distribution(logits, temperature=1.0, top_k=50, top_p=None), whole, **close)


def test_largest_random_number() -> None:
    """The largest random number draws a token that may be drawn."""
    last = torch.full((1,), 1 - 2**-53, dtype=torch.float64)
    for settings in (Decoding(temperature=1.0, top_p=None), Decoding(temperature=1.0, top_k=3)):
        assert choose(torch.tensor([[0.0, 1.0, -torch.inf]]), settings, last).item() in (0, 1)


@torch.no_grad()
def test_full_context_keeps_its_newer_half() -> None:
    """And a prompt that is longer than the context loses its beginning."""
    task = model(context=8, position="learned")
    prompt = [5, 9, 200, 14, 3, 77, 31, 8, 90, 120]
    found = tokens_of(task, [prompt], Decoding(max_new_tokens=14, temperature=0))[0]
    window, expected = prompt[-8:], []
    for _ in range(14):
        if len(window) > 8:
            window = window[-4:]
        expected.append(int(task.logits(task(torch.tensor([window]))[0, -1]).argmax()))
        window.append(expected[-1])
    assert found == expected


class Scripted:
    """A model that says a given text and then the end, whatever it is asked."""

    context, device = 1000, torch.device("cpu")

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens, self.asked = [*tokens, *[TOKENIZER.require("eos")] * 50], 0

    def next_logits(self, tokens: Tensor, mask: Tensor | None, cache: KVCache) -> Tensor:
        cache.extend(tokens[..., None].float(), mask, 0)
        logits = torch.zeros(len(tokens), VOCABULARY)
        logits[:, self.tokens[self.asked]] = 100.0
        self.asked += 1
        return logits


def said(tokens: Sequence[int], prompt: str = "x", **settings: Any) -> tuple[list[str], Continuation]:
    """Pieces, and what they come to."""
    pieces = []
    for piece in stream(Scripted(tokens), TOKENIZER, [TOKENIZER.encode(prompt)], Decoding(**settings)):
        pieces.append(piece.text)
        if piece.finished is not None:
            assert "".join(pieces) == piece.finished.text
            return pieces, piece.finished
    raise AssertionError("the row was not finished")


def test_text_comes_in_whole_characters() -> None:
    ids = TOKENIZER.encode(TEXT)
    assert any("\ufffd" in TOKENIZER.decode([token]) for token in ids), "no character is cut by the tokens"
    pieces, whole = said(ids)
    assert whole == Continuation(TEXT, tuple(ids), "end")
    assert len(pieces) > 20 and not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_stays_cut_is_marked() -> None:
    ids = TOKENIZER.encode("a🐈")
    pieces, whole = said(ids[:-1])
    assert whole.text == "a\ufffd" and pieces[-1] == "\ufffd"


def test_a_word_is_gone_on_with_after_its_space() -> None:
    words = TextTokenizer.train(["the cat sat on the mat"], kind="bpe", vocab_size=30)

    class Speaks(Scripted):
        def __init__(self) -> None:
            super().__init__([])
            self.tokens = [*words.encode("cat sat"), *[words.require("eos")] * 9]

    found = generate(Speaks(), words, [words.encode("the")], Decoding(temperature=0))
    assert found[0].text == " cat sat"


@pytest.mark.parametrize("stop", ["on the", " on ", "n", "mat", "🐈 and", "が座"])
def test_stop_string_across_tokens(stop: str) -> None:
    """Text ends before a stop string however it is cut into tokens."""
    _, whole = said(TOKENIZER.encode(TEXT), stop=stop)
    assert whole.reason == "stop"
    assert whole.text == TEXT[: TEXT.index(stop)]
    assert len(whole.tokens) < len(TOKENIZER.encode(TEXT))


def test_first_of_several_stop_strings() -> None:
    """The first of several stop strings counts and a false beginning is given out."""
    assert said(TOKENIZER.encode(TEXT), stop=["mat", "cat"])[1].text == "the naïve "
    _, whole = said(TOKENIZER.encode(TEXT), stop=["the matter", "stopped"])
    assert whole == Continuation(TEXT, tuple(TOKENIZER.encode(TEXT)), "end")


def test_minimum_number_of_tokens() -> None:
    """Neither end nor stop string come before the least number of tokens."""
    ids = TOKENIZER.encode("the cat")
    assert said(ids)[1].reason == "end"
    _, whole = said(ids, min_new_tokens=20, max_new_tokens=25, temperature=0)
    assert len(whole.tokens) == 20 and whole.reason == "end"
    at = len(TOKENIZER.encode("the naïve cat s"))
    _, whole = said(TOKENIZER.encode(TEXT), stop="at", min_new_tokens=at)
    assert whole.text == TEXT[: TEXT.index("at", 12)]


def test_special_tokens_are_not_drawn() -> None:
    """But for the end."""
    found = said([TOKENIZER.require("bos"), TOKENIZER.require("mask")], max_new_tokens=10, temperature=0)[1]
    assert not set(found.tokens) & TOKENIZER.special_ids


def test_rows_end_by_themselves() -> None:
    """One by a stop string, the others by their number of tokens; all are given in the order of the prompts."""
    task = model(position="rotary")
    free = generate(task, TOKENIZER, PROMPTS, Decoding(max_new_tokens=24, seed=2, temperature=1.2))
    character = free[1].text[8]
    assert all(row.reason == "length" for row in free)
    found = generate(
        task, TOKENIZER, PROMPTS, Decoding(max_new_tokens=24, seed=2, temperature=1.2, stop=character)
    )
    for row, before in zip(found, free, strict=True):
        head, stopped, _ = before.text.partition(character)
        assert row.text == head and row.reason == ("stop" if stopped else "length")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 0.0}, "top_p=0"),
        ({"min_new_tokens": 200}, "min_new_tokens=200"),
        ({"stop": ["a", ""]}, "stop="),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        Decoding(**values)
