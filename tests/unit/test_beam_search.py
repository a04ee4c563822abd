"""Beam search against searches that look at everything, or at one thing, and against itself: cached, batched."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor

from magneto.inference.beam_search import Hypothesis, beam_search
from magneto.nn import PLACEMENTS, BackboneConfig, Decoder, EncoderDecoder, KVCache, TokenStem, build_backbone

EOS, BOS = 0, 1


@dataclass
class Past:
    """The state of a model without a cache: all tokens of each row, and the row's own sentence."""

    tokens: Tensor
    sentence: Tensor

    def reorder(self, index: Tensor, *, memory: bool = True) -> None:
        if not memory:  # a row stays with its sentence
            assert torch.equal(self.sentence[index], self.sentence)
        self.tokens, self.sentence = self.tokens[index], self.sentence[index]


def past(sentences: int) -> Past:
    return Past(torch.zeros(sentences, 0, dtype=torch.int64), torch.arange(sentences))


class Table:
    """A language model whose next token depends on the sentence, the place and the last token, at random."""

    def __init__(self, vocabulary: int, sentences: int = 1, seed: int = 0, sharpness: float = 1.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(sentences, 50, vocabulary, vocabulary, generator=generator)
        self.log_probs = (sharpness * logits).log_softmax(-1)
        self.steps = 0
        self.rows = 0

    def __call__(self, tokens: Tensor, state: Past) -> Tensor:
        self.steps += 1
        self.rows += len(tokens)
        state.tokens = torch.cat((state.tokens, tokens), 1)
        return self.log_probs[state.sentence, state.tokens.size(1) - 1, tokens[:, 0]]

    def log_prob(self, sentence: int, output: tuple[int, ...]) -> float:
        """Of a whole output, the end token included."""
        pairs = zip((BOS, *output), output, strict=False)
        parts = [self.log_probs[sentence, place, last, token] for place, (last, token) in enumerate(pairs)]
        return float(torch.stack(parts).sum())


def exhaustive(table: Table, sentence: int, vocabulary: int, limit: int, penalty: float) -> list[Hypothesis]:
    """Every output there is, best first."""
    others = [token for token in range(vocabulary) if token != EOS]
    found = []
    for length in range(limit):
        for output in product(others, repeat=length):
            log_prob = table.log_prob(sentence, (*output, EOS))
            found.append(Hypothesis(list(output), log_prob, log_prob / (length + 1) ** penalty))
    return sorted(found, key=lambda hypothesis: -hypothesis.score)


def search(model, state, start: Tensor, **options) -> list[list[Hypothesis]]:
    return beam_search(model, state, start, eos=EOS, **options)


def starts(count: int) -> Tensor:
    return torch.full((count,), BOS)


def same(found: list[Hypothesis], wanted: list[Hypothesis]) -> None:
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
        assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_all_beams_are_the_exhaustive_search(seed: int, penalty: float) -> None:
    """With beams for everything it is the exhaustive search."""
    vocabulary, limit = 4, 4
    table = Table(vocabulary, sentences=3, seed=seed)
    found = search(
        table, past(3), starts(3), beam=vocabulary**limit, max_length=limit, length_penalty=penalty, n_best=7
    )
    for sentence, hypotheses in enumerate(found):
        same(hypotheses, exhaustive(table, sentence, vocabulary, limit, penalty)[:7])


def reference_search(
    table: Table, sentence: int, vocabulary: int, beam: int, limit: int, penalty: float
) -> list[Hypothesis]:
    """The definition of the search, one hypothesis at a time, without ending early: the K best of the finished."""
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished: list[Hypothesis] = []
    for length in range(1, limit + 1):
        extended = [
            ((*output, token), table.log_prob(sentence, (*output, token)))
            for output, _ in live
            for token in range(vocabulary)
            if length < limit or token == EOS
        ]
        extended = sorted(extended, key=lambda pair: -pair[1])[: 2 * beam]
        for output, log_prob in extended[:beam]:
            if output[-1] == EOS:
                finished.append(Hypothesis(list(output[:-1]), log_prob, log_prob / length**penalty))
        live = [pair for pair in extended if pair[0][-1] != EOS][:beam]
        if len(finished) >= beam:
            break
    return sorted(finished, key=lambda hypothesis: -hypothesis.score)[:beam]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("beam", [1, 2, 3, 5])
def test_leaving_early_changes_no_result(beam: int, penalty: float) -> None:
    vocabulary, limit, sentences = 6, 9, 12
    table = Table(vocabulary, sentences, seed=3)
    for n_best in {1, beam}:
        found = search(
            table, past(sentences), starts(sentences),
            beam=beam, max_length=limit, length_penalty=penalty, n_best=n_best,
        )  # fmt: skip
        for sentence, hypotheses in enumerate(found):
            wanted = reference_search(table, sentence, vocabulary, beam, limit, penalty)
            same(hypotheses, wanted[:n_best])


def test_it_does_leave_early() -> None:
    """Where the end is all but certain after one token, and without a penalty, nothing longer can win."""
    table = Table(5, sentences=4)
    table.log_probs[:] = torch.tensor([0.9, 0.025, 0.025, 0.025, 0.025]).log()
    found = search(table, past(4), starts(4), beam=3, max_length=50, length_penalty=0.0)
    assert [hypotheses[0].tokens for hypotheses in found] == [[]] * 4
    assert table.steps == 1


def test_certain_sentences_leave_the_batch() -> None:
    """Sentences that are certain leave the batch."""
    table = Table(5, sentences=8)
    ends = torch.tensor([0.99, 0.0025, 0.0025, 0.0025, 0.0025]).log()
    table.log_probs[:6] = ends  # these end at once, the other two never by themselves
    table.log_probs[6:, :, :, EOS] = -20.0
    search(table, past(8), starts(8), beam=2, max_length=20, length_penalty=0.0)
    assert table.rows < 8 + 19 * 2 * 3  # two sentences (not eight) of two beams for nineteen steps


def test_one_beam_is_greedy() -> None:
    table = Table(8, sentences=20, seed=1)
    found = search(table, past(20), starts(20), beam=1, max_length=12)
    for sentence, hypotheses in enumerate(found):
        output: list[int] = []
        while len(output) < 11:
            token = int(table.log_probs[sentence, len(output), output[-1] if output else BOS].argmax())
            if token == EOS:
                break
            output.append(token)
        assert hypotheses[0].tokens == output


def test_lengths_are_kept_to() -> None:
    table = Table(6, sentences=3, seed=2)
    limits = torch.tensor([1, 4, 7])
    found = search(table, past(3), starts(3), beam=4, max_length=limits, min_length=4, n_best=4)
    assert [one.tokens for one in found[0]] == [[]]  # there is no other output of length 1
    assert all(len(one.tokens) + 1 == 4 for one in found[1])
    assert all(4 <= len(one.tokens) + 1 <= 7 for one in found[2])
    longest = search(table, past(3), starts(3), beam=4, max_length=7, min_length=7)
    assert all(len(hypotheses[0].tokens) == 6 for hypotheses in longest)


def test_impossible_tokens_are_never_found() -> None:
    table = Table(6, sentences=2, seed=4)
    table.log_probs[..., 3:] = -torch.inf
    table.log_probs = table.log_probs.log_softmax(-1)
    found = search(table, past(2), starts(2), beam=40, max_length=3, n_best=40)
    outputs = [one.tokens for one in found[0]]
    assert len(outputs) == 1 + 2 + 4  # tokens 1 and 2 in every order, and no padding of the list
    assert all(token in (1, 2) for output in outputs for token in output)


# ------------------------------------------------------------------ real models

SOURCES = [[5, 6, 7, 8, 9, 4], [4, 5], [9, 8, 7], [6, 6, 6, 6, 6, 6, 6, 6]]


@dataclass
class Sources:
    """The rows' corpora and, with a cache or without, their outputs so far."""

    memory: Tensor
    mask: Tensor
    cache: KVCache | None
    tokens: Tensor

    def reorder(self, index: Tensor, *, memory: bool = True) -> None:
        if self.cache is not None:
            self.cache.reorder(index, memory=memory)
        self.memory, self.mask, self.tokens = self.memory[index], self.mask[index], self.tokens[index]


class Translator:
    def __init__(self, placement: str, position: str = "sinusoidal") -> None:
        torch.manual_seed(5)
        config = BackboneConfig(
            placement=placement, architecture="encoder_decoder", num_layers=2, d_model=16, num_heads=2,
            position=position, max_positions=40,
        )  # fmt: skip
        self.stem = TokenStem(10, config, padding_id=3)
        backbone = build_backbone(config)
        assert isinstance(backbone, EncoderDecoder)
        self.backbone = backbone.eval()

    def __call__(self, tokens: Tensor, state: Sources) -> Tensor:
        state.tokens = torch.cat((state.tokens, tokens), 1)
        new = tokens if state.cache is not None else state.tokens
        hidden = self.backbone.decode(self.stem(new), None, state.memory, state.mask, state.cache)
        return (3 * self.stem.logits(hidden[:, -1])).log_softmax(-1)

    @torch.no_grad()
    def translate(self, corpora: list[list[int]], cached: bool = True, **options) -> list[list[Hypothesis]]:
        width = max(map(len, corpora))
        source = torch.tensor([row + [3] * (width - len(row)) for row in corpora])
        mask = torch.tensor([[place < len(row) for place in range(width)] for row in corpora])
        memory = self.backbone.encode(self.stem(source), mask)
        empty = torch.zeros(len(corpora), 0, dtype=torch.int64)
        state = Sources(memory, mask, KVCache() if cached else None, empty)
        limit = 2 * mask.sum(1) + 3
        return search(self, state, starts(len(corpora)), max_length=limit, **options)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_cached_equals_uncached(placement: str) -> None:
    model = Translator(placement)
    for beam in (1, 4):
        cached = model.translate(SOURCES, beam=beam, n_best=beam)
        for hypotheses, wanted in zip(
            cached, model.translate(SOURCES, cached=False, beam=beam, n_best=beam), strict=True
        ):
            same(hypotheses, wanted)
            assert all(
                one.log_prob == pytest.approx(other.log_prob, abs=1e-5)
                for one, other in zip(hypotheses, wanted, strict=True)
            )


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "rotary", "relative", "convolutional"])
def test_batch_equals_single_sentences(position: str) -> None:
    """A batch gives what its sentences give alone."""
    model = Translator("magneto", position)
    together = model.translate(SOURCES, beam=3, n_best=3)
    for source, hypotheses in zip(SOURCES, together, strict=True):
        (alone,) = model.translate([source], beam=3, n_best=3)
        same(hypotheses, alone)


@torch.no_grad()
def test_prompts_of_unequal_length() -> None:
    """The cache holds the prompts without their last tokens, padded on the left."""
    torch.manual_seed(6)
    config = BackboneConfig(architecture="decoder", num_layers=2, d_model=16, num_heads=2, max_positions=40)
    stem, backbone = TokenStem(10, config), build_backbone(config).eval()
    assert isinstance(backbone, Decoder)

    def step(tokens: Tensor, cache: KVCache) -> Tensor:
        hidden = backbone(stem(tokens), cache=cache)
        return (3 * stem.logits(hidden[:, -1])).log_softmax(-1)

    def complete(prompts: list[list[int]]) -> list[list[Hypothesis]]:
        width = max(map(len, prompts)) - 1
        before = torch.tensor([[3] * (width + 1 - len(prompt)) + prompt[:-1] for prompt in prompts])
        mask = torch.tensor(
            [[place >= width + 1 - len(prompt) for place in range(width)] for prompt in prompts]
        )
        cache = KVCache()
        backbone(stem(before), mask, cache=cache)
        last = torch.tensor([prompt[-1] for prompt in prompts])
        return search(step, cache, last, beam=3, max_length=8, n_best=2)

    prompts = [[4, 5, 6, 7], [8, 9], [2, 2, 5]]
    for prompt, hypotheses in zip(prompts, complete(prompts), strict=True):
        (alone,) = complete([prompt])
        same(hypotheses, alone)
