"""Translate lines with an encoder-decoder, by beam search, in batches of lines of similar length."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

from annotated_types import Ge

from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.translation.cleaning import tidy
from magneto.data.translation.dataset import Marks, TranslationInfo
from magneto.errors import ConfigError, nearest
from magneto.inference.beam_search import Hypothesis
from magneto.inference.inputs import PredictInput

log = logging.getLogger("magneto")


@dataclass(frozen=True, kw_only=True)
class TranslationPredictOptions:
    """Options of `mode=predict`, `conf/predict/mt.yaml`; None: as the task was trained."""

    beam: Annotated[int, Ge(1)] | None = None
    """Beams of the search; 1 is greedy."""
    length_penalty: Annotated[float, Ge(0)] | None = None
    """Above 1 favours long translations."""
    n_best: Annotated[int, Ge(1)] = 1
    """Translations of each line, best first."""
    batch: Annotated[int, Ge(1)] = 32
    """Lines translated at once. Results appear line by line with 1, and after several batches otherwise."""
    target: str | None = None
    """Language to translate into, where the model knows several."""


def one_line(text: str) -> str:
    """Return the text without line breaks, as a line of a file."""
    return re.sub(r"[\r\n]+", " ", text)


def translate(
    model: Any,
    inputs: PredictInput,
    options: TranslationPredictOptions,
    beam: int,
    length_penalty: float,
) -> Iterator[dict[str, Any]]:
    """Translate the lines of a file, of the standard input, or the prompts, in their order.

    Several batches of lines are read at a time and sorted by length, so that little is padded. Lines are tidied as
    those of the training data are. An empty line stays empty. A line of more tokens than the model was trained on is
    cut, and named in the log.

    Args:
        model: translates.
        inputs: the lines.
        options: of the user.
        beam: of the search, where the options have none.
        length_penalty: of the search, where the options have none.

    Yields:
        `line`, `rank`, `source`, `translation` and `score`.

    Raises:
        ConfigError: an impossible option, or an unknown target language.
    """
    beam = beam if options.beam is None else options.beam
    penalty = length_penalty if options.length_penalty is None else options.length_penalty
    if options.n_best > beam:
        raise ConfigError(
            f"predict.n_best={options.n_best}: must be from 1 to the {beam} beams of predict.beam. Raise that for more."
        )
    direction = _direction(model.info, options.target)
    collate = Marks(model.info).padding()
    lines = enumerate(inputs.lines(), start=1)
    window = options.batch * (16 if options.batch > 1 else 1)
    while chunk := list(islice(lines, window)):
        items = sorted(_encoded(model.info, chunk, direction), key=lambda item: -len(item["source"]))
        translations: dict[int, list[Hypothesis]] = {}
        for start in range(0, len(items), options.batch):
            batch = collate(items[start : start + options.batch])
            source, mask = batch["source"].to(model.device), batch["source_mask"].to(model.device)
            results = model.search(source, mask, beam=beam, length_penalty=penalty, n_best=options.n_best)
            translations |= zip(batch["id"].tolist(), results, strict=True)
        for row, (number, text) in enumerate(chunk):
            yield from _results(model.target_tokenizer, number, text, translations.get(row, []))


def _encoded(
    info: TranslationInfo, chunk: Sequence[tuple[int, str]], direction: int
) -> Iterator[dict[str, Any]]:
    """Yield those of the lines that are not empty, as the data module has them; `id` is the row in the chunk."""
    marks, tokenizer = Marks(info), info.source_text_tokenizer
    for row, ids in enumerate(tokenizer.encode_batch([tidy(text) for _, text in chunk])):
        if len(ids) > info.max_tokens:
            log.warning(
                "line %d has %d tokens, the model was trained on at most %d: the rest is cut off",
                chunk[row][0], len(ids), info.max_tokens,
            )  # fmt: skip
        if ids:
            source = marks.source(ids[: info.max_tokens], direction)
            yield {"id": row, "source": source, "direction": direction}


def _direction(info: TranslationInfo, target: str | None) -> int:
    """Return the index of a direction into the target language."""
    targets = [direction.split("-")[1] for direction in info.directions]
    known = sorted(set(targets))
    if target is None and (len(known) == 1 or not info.tag):
        return 0
    if target is None:
        raise ConfigError(
            f"This model translates into several languages. Set predict.target= to one of {', '.join(known)}."
        )
    if target not in known:
        raise ConfigError(
            f"predict.target={target}: this model does not translate into that language; it knows "
            f"{', '.join(known)}.{nearest(target, known)}"
        )
    if len(known) > 1 and not info.tag:
        raise ConfigError(
            f"predict.target={target}: this model was trained without language tags (data.tag=false) and chooses "
            "the language by itself. Leave predict.target out."
        )
    return targets.index(target)


def _results(
    tokenizer: TextTokenizer, number: int, text: str, hypotheses: Sequence[Hypothesis]
) -> Iterator[dict[str, Any]]:
    for rank, hypothesis in enumerate(hypotheses, start=1):
        translation = one_line(tokenizer.decode(hypothesis.tokens))
        yield {
            "text": translation, "line": number, "rank": rank, "source": text,
            "translation": translation, "score": hypothesis.score,
        }  # fmt: skip
    if not hypotheses:
        yield {"text": "", "line": number, "rank": 1, "source": text, "translation": "", "score": None}
