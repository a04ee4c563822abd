"""What mode=predict makes of a user's lines: byte order marks, lines that a model cannot take, batches, spaces."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import MagnetoError
from magneto.inference.inputs import PredictInput
from magneto.tasks.base import Task
from magneto.tasks.causal_lm import CausalLM
from magneto.tasks.mlm import MLM
from magneto.tasks.text_classification import TextClassification
from tests.toys.runs import info_of

TEXT = "the cat sat on the mat. the dog sat on the cat."
BYTES = TextTokenizer.train([TEXT], kind="byte_bpe", vocab_size=275)
WORDS = TextTokenizer.train([TEXT], kind="bpe", vocab_size=40)
BOM = b"\xef\xbb\xbf"


def build(kind: type[Task], tokenizer: TextTokenizer = BYTES, **info: Any) -> Any:
    """A small model with random weights that reads 24 tokens."""
    torch.manual_seed(0)
    if kind is not TextClassification:
        info["block_size"] = 24
    shape = {"num_layers": 2, "d_model": 32, "num_heads": 4, "position": "rotary", "max_positions": 24}
    task = kind(
        backbone=shape | {"architecture": "decoder" if kind is CausalLM else "encoder"},
        info=info_of(kind.Data.Info, tokenizer=tokenizer.to_json(), vocab_size=tokenizer.vocab_size, **info),
        optimizer={"lr": 1e-3}, scheduler={"name": "constant"}, total_steps=1,
    )  # fmt: skip
    return task.eval()


def classifier(pairs: bool) -> Any:
    return build(
        TextClassification,
        pairs=pairs,
        labels=["a", "b"],
        metrics=["accuracy"],
        subsets=["test"],
        max_tokens=24,
    )


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lines.txt"


def answers(task: Any, path: Path, **options: Any) -> list[dict[str, Any]]:
    return list(task.predict_stream(PredictInput(path=str(path)), options))


@pytest.mark.parametrize("line", [b"the cat sat", b"", b"\tx"])
def test_a_byte_order_mark_is_dropped(file: Path, line: bytes) -> None:
    """Of the first line alone: elsewhere U+FEFF is a character of the text."""
    file.write_bytes(BOM + line + b"\r\n" + BOM + b"end\n")
    assert list(PredictInput(path=str(file)).lines()) == [line.decode(), "\ufeffend"]


def test_text_in_another_encoding(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first line tells that the file is not UTF-8; a later one keeps its place, empty."""
    file.write_bytes("déjà\nvu\n".encode("latin-1"))
    with pytest.raises(
        MagnetoError, match=r"input=.*lines\.txt, line 1: not UTF-8.*Convert the file to UTF-8"
    ):
        list(PredictInput(path=str(file)).lines())
    file.write_bytes(b"one\n" + "déjà\n".encode("latin-1") + b"three\n")
    with caplog.at_level(logging.WARNING, "magneto"):
        assert list(PredictInput(path=str(file)).lines()) == ["one", "", "three"]
    assert len(caplog.records) == 1 and "line 2: not UTF-8" in caplog.text


MASKED = ("the [MASK] sat", "no mask", "", "the [MASK] " + "cat " * 40, "on [MASK].")
SCORED = ("the cat sat", " ", "cat " * 40, "on the mat.")
CLASSIFIED = ("the cat", "", "the\tcat", "   ", "the dog")
PAIRED = ("the\tcat", "the cat", "the\tcat\tsat", "\t", "a\tdog")


@pytest.mark.parametrize(
    ("make", "lines", "options", "good"),
    [
        (partial(build, MLM), MASKED, {}, (0, 4)),
        (partial(build, MLM), SCORED, {"score": True}, (0, 1, 3)),
        (partial(build, MLM, WORDS), SCORED, {"score": True}, (0, 3)),
        (partial(classifier, False), CLASSIFIED * 20, {}, [n for n in range(100) if n % 5 in (0, 4)]),
        (partial(classifier, True), PAIRED, {}, (0, 4)),
    ],
    ids=["mlm", "mlm_score", "mlm_score_bpe", "classes", "pairs"],
)
def test_a_bad_line_has_an_empty_answer(
    make: Callable[[], Any], lines: tuple[str, ...], options: dict[str, Any], good: Any, file: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """All lines are answered in their order, the good ones as they are alone; each bad one is in the log once."""
    task = make()
    file.write_text("".join(f"{line}\n" for line in lines))
    with caplog.at_level(logging.WARNING, "magneto"):
        found = answers(task, file, **options)
    assert [one["input"] for one in found] == list(lines)
    bad = [n for n in range(len(lines)) if n not in good]
    assert [record.args[0] for record in caplog.records] == [n + 1 for n in bad]  # type: ignore[index]
    file.write_text("".join(f"{lines[n]}\n" for n in good))
    alone = answers(task, file, **options)
    rounded = ("text", "probability") if "label" in alone[0] else ()
    for n, one in zip(good, alone, strict=True):
        assert found[n]["text"] and found[n].keys() == one.keys()
        assert {key: found[n][key] for key in one if key not in rounded} == {
            key: value for key, value in one.items() if key not in rounded
        }
    for n in bad:
        assert found[n]["text"] == "" and found[n].keys() == alone[0].keys()
        assert not any(value for key, value in found[n].items() if key != "input")


@pytest.mark.parametrize("make", [partial(build, MLM), partial(classifier, True)], ids=["mlm", "pairs"])
def test_a_single_bad_prompt_is_an_error(make: Callable[[], Any]) -> None:
    task = make()
    with pytest.raises(MagnetoError, match="the cat"):
        list(task.predict_stream(PredictInput(prompts=("the cat",)), {}))


def test_samples_do_not_depend_on_the_batch(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Forty equal lines give forty texts, the same for every predict.batch; a line is what it is in its place."""
    task = build(CausalLM)
    file.write_text("the cat\n" * 40)
    options = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12}
    found = {size: answers(task, file, batch=size, **options) for size in (1, 4, 16, 40)}
    assert len({one["text"] for one in found[1]}) == 40
    assert found[1] == found[4] == found[16] == found[40]
    assert answers(task, file, batch=7, seed=1, **options) != found[1]
    file.write_text("the dog\n" * 20 + "the cat\n" + "on " * 60 + "\n")
    with caplog.at_level(logging.WARNING, "magneto"):
        assert answers(task, file, batch=8, **options)[20] == found[1][20]
    (record,) = caplog.records
    assert "line 22 of the input has" in record.getMessage() and "the context holds 24" in record.getMessage()


def test_a_prompt_without_a_first_token(file: Path) -> None:
    """Where the tokenizer has no token for the end of a document, an empty line cannot be gone on with."""
    plain = TextTokenizer.from_json(WORDS.to_json().replace("</s>", "<x>"))
    assert plain.eos_id is None
    file.write_text("the\n\ncat\n")
    found = answers(build(CausalLM, plain), file, max_new_tokens=3)
    assert [one["prompt"] for one in found] == ["the", "", "cat"]
    assert found[1] == {"text": "", "prompt": "", "continuation": "", "tokens": 0, "reason": None}
    assert found[2]["tokens"] == 3


@pytest.mark.parametrize("prompt", ["the", "the ", "the cat  ", " "])
@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["byte_bpe", "bpe"])
def test_a_space_at_the_end_of_a_prompt(
    tokenizer: TextTokenizer, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows does not bring the space again that the tokenizer had dropped; `text` is prompt and continuation."""
    task = build(CausalLM, tokenizer)
    script = tokenizer.encode(" sat on" if tokenizer is BYTES and prompt == "the" else "sat on")
    logits = torch.nn.functional.one_hot(torch.tensor(script), tokenizer.vocab_size) * 100.0
    step = iter([*logits, *logits])

    def says(tokens: torch.Tensor, mask: Any, cache: Any) -> torch.Tensor:
        cache.extend(tokens[..., None].float(), mask, 0)
        return next(step).expand(len(tokens), -1)

    monkeypatch.setattr(task, "next_logits", says)
    options = {"max_new_tokens": len(script), "temperature": 0}
    *pieces, last = task.predict_stream(PredictInput(prompts=(prompt,)), options)
    expected = prompt + "sat on" if prompt.endswith(" ") else f"{prompt} sat on"
    assert last["text"] == "".join(piece["piece"] for piece in pieces) == expected
    assert last["text"] == last["prompt"] + last["continuation"]
    assert [one["text"] for one in task.predict_stream(PredictInput(prompts=(prompt, prompt)), options)] == [
        expected
    ] * 2


def test_a_typed_backslash_n_is_explained(caplog: pytest.LogCaptureFixture) -> None:
    task = build(CausalLM)
    for stop, hints in (("\n", 0), (r"\n", 1), (["a", r"b\nc"], 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "magneto"):
            list(task.predict_stream(PredictInput(prompts=("the",)), {"stop": stop, "max_new_tokens": 2}))
        assert caplog.text.count(r"predict.stop=$'\n'") == hints


def test_candidates_are_told_apart(file: Path) -> None:
    """Each is quoted as it is in the text; a space is a space, not the vocabulary's sign for it."""
    file.write_text("the [MASK]\n")
    (found,) = answers(build(MLM), file, top_k=270)
    tokens = [one["token"] for one in found["candidates"][0]]
    assert " " in tokens and "," in tokens and '"' in tokens and not any("Ġ" in token for token in tokens)
    shown = found["text"].split("\t")[1]
    assert '" " 0.0' in shown and '"," 0.0' in shown and r'"\"" 0.0' in shown
