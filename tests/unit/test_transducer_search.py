"""Searches of a transducer, against all texts of a toy vocabulary."""

import itertools

import pytest
import torch
from torch import Tensor

from magneto.errors import ConfigError
from magneto.inference.transducer import transducer_beam_search, transducer_greedy
from magneto.nn.transducer import BLANK, Joint, Predictor

V = 4
LENGTHS = torch.tensor([3, 2, 1])


@pytest.fixture
def model() -> tuple[Predictor, Joint, Tensor]:
    """A model of three tokens that seldom finishes soon, and the states of three utterances."""
    torch.manual_seed(3)
    predictor, joint = Predictor(V, 6, 2), Joint(5, 6, 8, V)
    joint.output.weight.data.mul_(2.0)
    return predictor.eval(), joint.eval(), torch.randn(3, 3, 5)


def exhaustive(
    model: tuple[Predictor, Joint, Tensor], row: int, longest: int
) -> list[tuple[list[int], float]]:
    """All texts of at most `longest` tokens with their log probabilities, best first."""
    predictor, joint, encoded = model
    frames = encoded[row : row + 1, : LENGTHS[row]]
    scored = []
    for length in range(longest + 1):
        for text in itertools.product(range(1, V), repeat=length):
            targets = torch.tensor([text], dtype=torch.int64).view(1, length)
            with torch.no_grad():
                loss = joint.loss(
                    frames,
                    predictor.prefixes(targets),
                    targets,
                    LENGTHS[row : row + 1],
                    torch.tensor([length]),
                )
            scored.append((list(text), -float(loss)))
    return sorted(scored, key=lambda one: -one[1])


def test_wide_beam_finds_the_best_texts(model: tuple[Predictor, Joint, Tensor]) -> None:
    """With their exact probabilities, of each utterance of a padded batch."""
    found = transducer_beam_search(*model, LENGTHS, beam_width=400, n_best=4)
    for row in range(3):
        # Texts of more tokens than 2 a frame are not looked for.
        expected = exhaustive(model, row, 2 * int(LENGTHS[row]))[:4]
        assert [one.tokens for one in found[row]] == [tokens for tokens, _ in expected]
        assert [one.score for one in found[row]] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert any(len(one.tokens) > int(LENGTHS[row]) for row in range(3) for one in found[row])


def test_narrow_beam_is_a_lower_bound(model: tuple[Predictor, Joint, Tensor]) -> None:
    """Each text's score is at most its probability; alone or in a batch, an utterance has the same result."""
    for width in (1, 2, 5):
        found = transducer_beam_search(*model, LENGTHS, beam_width=width)
        for row in range(3):
            exact = {tuple(tokens): score for tokens, score in exhaustive(model, row, 2 * int(LENGTHS[row]))}
            (best,) = found[row]
            assert best.score <= exact[tuple(best.tokens)] + 1e-5
            predictor, joint, encoded = model
            alone = transducer_beam_search(
                predictor,
                joint,
                encoded[row : row + 1, : LENGTHS[row]],
                LENGTHS[row : row + 1],
                beam_width=width,
            )
            assert [one.tokens for one in alone[0]] == [best.tokens]
            assert alone[0][0].score == pytest.approx(best.score, abs=1e-5)


def greedy_by_hand(model: tuple[Predictor, Joint, Tensor], row: int, max_per_frame: int) -> list[int]:
    """One utterance, step by step."""
    predictor, joint, encoded = model
    tokens: list[int] = []
    for t in range(int(LENGTHS[row])):
        for _ in range(max_per_frame):
            states, _state = predictor(torch.tensor([[BLANK, *tokens]]))
            logits = joint(joint.frame(encoded[row, t]), joint.prefix(states[0, -1]))
            if (best := int(logits.argmax())) == BLANK:
                break
            tokens.append(best)
    return tokens


@pytest.mark.parametrize("max_per_frame", [1, 3])
def test_greedy_search_follows_the_best_arc(
    model: tuple[Predictor, Joint, Tensor], max_per_frame: int
) -> None:
    expected = [greedy_by_hand(model, row, max_per_frame) for row in range(3)]
    assert transducer_greedy(*model, LENGTHS, max_per_frame=max_per_frame) == expected
    assert any(expected) and len({len(tokens) for tokens in expected}) > 1


def test_silence_has_no_tokens(model: tuple[Predictor, Joint, Tensor]) -> None:
    """A model that is sure of the blank writes nothing."""
    predictor, joint, encoded = model
    joint.output.bias.data[BLANK] = 50.0
    assert transducer_greedy(predictor, joint, encoded, LENGTHS) == [[], [], []]
    found = transducer_beam_search(predictor, joint, encoded, LENGTHS, beam_width=3)
    assert [one.tokens for (one,) in found] == [[], [], []]


def test_impossible_widths_are_refused(model: tuple[Predictor, Joint, Tensor]) -> None:
    with pytest.raises(ConfigError, match="beam_width=0 keeps no hypothesis"):
        transducer_beam_search(*model, LENGTHS, beam_width=0)
    with pytest.raises(ConfigError, match="n_best=3 is not possible with beam_width=2: choose 1 to 2"):
        transducer_beam_search(*model, LENGTHS, beam_width=2, n_best=3)
