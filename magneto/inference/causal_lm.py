"""Continue prompts with a causal language model: one as it is written, or many, batch by batch."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

from annotated_types import Ge

from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError, MagnetoError
from magneto.inference.compiled_steps import CompiledSteps
from magneto.inference.inputs import PredictInput
from magneto.inference.sampling import Continuation, Decoding, LanguageModel, generate, stream

log = logging.getLogger("magneto")


@dataclass(frozen=True, kw_only=True)
class CausalLMPredictOptions(Decoding):
    """Options of `mode=predict`, `conf/predict/causal_lm.yaml`: those of `Decoding`, and two more."""

    batch: Annotated[int, Ge(1)] = 16
    """Prompts continued at once, where there are several."""
    compile: bool = False
    """Compile the decoding step, with CUDA graphs on a GPU: worth its minute for many tokens or prompts."""


def encode_prompt(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Return the ids of a text as the beginning of a document: after the end token of the one before, if there is one."""
    start = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ids = [*start, *tokenizer.encode(text)]
    if not ids:
        raise ConfigError(
            "prompt: is empty, and the tokenizer has no token for the beginning of a document. Write a first word."
        )
    return ids


def continue_prompts(
    model: Any, inputs: PredictInput, options: CausalLMPredictOptions
) -> Iterator[dict[str, Any]]:
    """Continue one prompt, shown as it is written, or several, batch by batch.

    A prompt that is longer than the context loses its beginning, and is named in the log.

    Yields:
        Pieces of a single prompt, and for each prompt `prompt`, `continuation`, `tokens` (how many) and `reason`.
    """
    if any("\\n" in stop for stop in options.stop):
        log.warning(
            "predict.stop holds a backslash and an n, which is no line break. In bash, a line break is written "
            "predict.stop=$'\\n'."
        )
    generator = CompiledSteps(model) if options.compile else model
    if inputs.prompts is not None and len(inputs.prompts) == 1:
        yield from _continue_one(model, generator, inputs.prompts[0], options)
        return
    numbered = enumerate(inputs.lines(), start=1)
    while lines := list(islice(numbered, options.batch)):
        prompts: dict[int, list[int]] = {}
        for number, text in lines:
            try:
                prompts[number] = _encode(model, text, number)
            except MagnetoError as why:
                inputs.unanswered(number, why)
        indices = [number - 1 for number in prompts]
        made = (
            generate(generator, model.tokenizer, list(prompts.values()), options, indices) if indices else []
        )
        answers = dict(zip(prompts, made, strict=True))
        yield from (_result(model.tokenizer, text, answers.get(number)) for number, text in lines)


def _continue_one(
    model: Any, generator: LanguageModel, prompt: str, options: Decoding
) -> Iterator[dict[str, Any]]:
    begun = _encode(model, prompt, 1)
    yield {"piece": prompt}
    first = True
    for piece in stream(generator, model.tokenizer, [begun], options):
        if piece.text:
            yield {"piece": _after(model.tokenizer, prompt, piece.text) if first else piece.text}
            first = False
        if piece.finished is not None:
            yield _result(model.tokenizer, prompt, piece.finished)


def _encode(model: Any, text: str, number: int) -> list[int]:
    ids = encode_prompt(model.tokenizer, text)
    if len(ids) > model.context:
        log.warning(
            "line %d of the input has %d tokens, the context holds %d: its beginning is left out",
            number, len(ids), model.context,
        )  # fmt: skip
    return ids


def _result(tokenizer: TextTokenizer, prompt: str, made: Continuation | None) -> dict[str, Any]:
    """Return a result; an empty one for a prompt that cannot be continued."""
    if made is None:
        return {"text": "", "prompt": prompt, "continuation": "", "tokens": 0, "reason": None}
    continuation = _after(tokenizer, prompt, made.text)
    return {
        "text": prompt + continuation, "prompt": prompt, "continuation": continuation,
        "tokens": len(made.tokens), "reason": made.reason,
    }  # fmt: skip


def _after(tokenizer: TextTokenizer, prompt: str, text: str) -> str:
    """Return the text without the space that a prompt ends with, where the tokenizer dropped it there."""
    bare = prompt.rstrip()
    dropped = bare != prompt and tokenizer.encode(bare) == tokenizer.encode(prompt)
    return text.removeprefix(" ") if dropped else text
