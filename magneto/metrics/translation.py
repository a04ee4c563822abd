"""BLEU, chrF and TER of translations, by sacrebleu: the numbers that its own command line gives for the same lines."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from magneto.errors import ConfigError, nearest
from magneto.inference.translation import one_line
from magneto.training.files import write_atomically

SCORES = ("bleu", "chrf", "ter")
# Those of sacrebleu that need no download; the last two need a package each.
TOKENIZERS = ("13a", "char", "intl", "none", "zh", "ja-mecab", "ko-mecab")
_CODES = {"zho": "zh", "chi": "zh", "cmn": "zh", "yue": "zh", "jpn": "ja", "kor": "ko"}
_WITHOUT_SPACES = ("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod", "dz", "dzo")

TranslatedLine = tuple[int, int, str, str, str]
"""Id of an example, index of its direction, source, hypothesis, reference."""


def bleu_tokenizer(language: str, tokenize: str | None = None) -> tuple[str, str | None]:
    """Return the tokenizer of BLEU for a target language, and what a user should know of it, or None.

    Args:
        language: a code such as fr, zh_CN or zho_Hans.
        tokenize: what the user chose; None: what sacrebleu's command line chooses for the language. Without the package
            for it, Japanese is split into characters and Korean at its spaces.
    """
    from sacrebleu.metrics.bleu import BLEU

    base = re.split("[-_]", language)[0].lower()
    base = _CODES.get(base, base)
    if tokenize is not None:
        coarse = base in ("zh", "ja", *_WITHOUT_SPACES) and tokenize in ("13a", "intl", "none")
        remark = f"task.bleu_tokenize={tokenize} splits {language} at spaces only. Set it to null or char."
        return tokenize, remark if coarse else None
    if base in _WITHOUT_SPACES:
        return BLEU.TOKENIZER_DEFAULT, (
            f"BLEU and TER count what stands between spaces, which {language} hardly has. Compare by chrF, or set "
            "task.bleu_tokenize=char."
        )
    default = BLEU._TOKENIZER_MAP.get(base, BLEU.TOKENIZER_DEFAULT)
    try:
        BLEU(tokenize=default)
    except RuntimeError:
        instead = "char" if base == "ja" else BLEU.TOKENIZER_DEFAULT
        return instead, (
            f"BLEU of {language} is computed with the tokenizer {instead}: {default}, with which numbers are published, is "
            f"not installed. Install it with: pip install sacrebleu[{base}]"
        )
    return default, None


def sacrebleu_bleu(tokenize: str) -> Any:
    """Return sacrebleu's BLEU.

    Args:
        tokenize: how it splits words, see TOKENIZERS: `13a` for languages with spaces, `zh` for Chinese.

    Raises:
        ConfigError: an unknown tokenizer, or one whose package is not installed.
    """
    if tokenize not in TOKENIZERS:
        raise ConfigError(
            f"task.bleu_tokenize={tokenize}: must be null or one of {', '.join(TOKENIZERS)}."
            f"{nearest(tokenize, TOKENIZERS)}"
        )
    from sacrebleu.metrics.bleu import BLEU

    try:
        # force: our hypotheses are plain text; a final " ." is French typography or the model's doing.
        return BLEU(tokenize=tokenize, force=True)
    except RuntimeError as error:
        raise ConfigError(
            f"task.bleu_tokenize={tokenize}: is not installed. Install it with: pip install sacrebleu[{tokenize[:2]}]"
        ) from error


class TranslationScores(Metric):
    """BLEU, chrF and TER (0 to 100) over all directions together and, where there are several, over each.

    The state is the translations themselves, which processes gather: the scores depend neither on the batches nor on the
    number of processes.

    Args:
        directions: names such as `en-fr`; updates give indices into them.
        tokenize: BLEU's tokenizer; None: that of each direction's target language, see `bleu_tokenizer`.
    """

    full_state_update = False

    def __init__(self, directions: Sequence[str], tokenize: str | None = None) -> None:
        from sacrebleu.metrics.chrf import CHRF
        from sacrebleu.metrics.ter import TER

        super().__init__()
        self.directions = list(directions)
        chosen = [bleu_tokenizer(name.split("-")[1], tokenize) for name in directions]
        self.remarks = sorted({remark for _, remark in chosen if remark is not None})
        """Remarks on the tokenizers, for the log."""
        bleu = {name: sacrebleu_bleu(name) for name, _ in chosen}
        self._counters: dict[str, list[Any]] = {  # of each direction
            "bleu": [bleu[name] for name, _ in chosen],
            "chrf": [CHRF()] * len(chosen),
            "ter": [TER()] * len(chosen),
        }
        for counters in self._counters.values():  # one that has counted nothing has no signature
            for counter in counters:
                counter._extract_corpus_statistics(["a"], [["a"]])
        self._lines: list[TranslatedLine] = []
        self._scores: tuple[str, ...] = SCORES

    def reset(self) -> None:
        """Forget all translations."""
        super().reset()
        self._lines, self._scores = [], SCORES

    def update(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str],
        ids: Tensor,
        directions: Tensor,
        scores: Sequence[str] = SCORES,
        sources: Sequence[str] | None = None,
    ) -> None:
        """Keep N translations.

        Args:
            hypotheses: N texts.
            references: N texts.
            ids: (N,) int64; an example that comes twice counts once.
            directions: (N,) int64.
            scores: those to compute, the same in all updates. TER is far slower than the others.
            sources: N texts, for `lines`.
        """
        self._scores = tuple(scores)
        sources = [""] * len(hypotheses) if sources is None else sources
        self._lines += zip(ids.tolist(), map(int, directions), sources, hypotheses, references, strict=True)

    def lines(self) -> list[TranslatedLine]:
        """Return the translations of all processes, which must call this together, in the order of their ids."""
        parts = [self._lines]
        if dist.is_available() and dist.is_initialized():
            parts = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self._lines)
        return sorted({line[0]: line for part in parts for line in part}.values())

    def compute(self) -> dict[str, float]:
        """The scores.

        Returns:
            `bleu`, `chrf`, `ter`; where there are several directions also `bleu/en-fr` and so on for each that was seen,
            and `bleu_mean`, their mean (the number that many-to-many papers print). Empty when nothing was seen.
        """
        pairs: dict[int, list[tuple[str, str]]] = {}
        for _, direction, _, hypothesis, reference in self.lines():
            pairs.setdefault(direction, []).append((one_line(hypothesis), one_line(reference)))
        scores: dict[str, float] = {}
        for name in self._scores if pairs else ():
            counters, counts = self._counters[name], {}
            for direction in sorted(pairs):
                hypotheses, references = map(list, zip(*pairs[direction], strict=True))
                counts[direction] = counters[direction]._extract_corpus_statistics(hypotheses, [references])
            scores[name] = counters[0]._aggregate_and_compute(sum(counts.values(), [])).score
            if len(self.directions) > 1:
                parts = {n: counters[n]._aggregate_and_compute(rows).score for n, rows in counts.items()}
                scores |= {f"{name}/{self.directions[n]}": value for n, value in parts.items()}
                scores[f"{name}_mean"] = sum(parts.values()) / len(parts)
        return scores

    def signatures(self) -> dict[str, str]:
        """Return what sacrebleu prints beside each score: its settings and version.

        Where the directions differ in BLEU's tokenizer, there is one of `bleu/en-fr` and so on in place of `bleu`.
        """
        signatures = {name: str(of[0].get_signature()) for name, of in self._counters.items()}
        if len(set(self._counters["bleu"])) > 1:
            del signatures["bleu"]
            parts = zip(self.directions, self._counters["bleu"], strict=True)
            signatures = {f"bleu/{name}": str(bleu.get_signature()) for name, bleu in parts} | signatures
        return signatures


def write_translations(folder: Path, lines: Sequence[TranslatedLine], directions: Sequence[str]) -> None:
    """Write `test.src`, `test.hyp` and `test.ref`; of several directions also `test/en-fr.src` and so on."""
    _write_sides(folder / "test", lines)
    if len(directions) > 1:
        (folder / "test").mkdir(exist_ok=True)
        for index, direction in enumerate(directions):
            _write_sides(folder / "test" / direction, [line for line in lines if line[1] == index])


def _write_sides(stem: Path, lines: Sequence[TranslatedLine]) -> None:
    for column, side in enumerate(("src", "hyp", "ref"), start=2):
        content = "".join(f"{one_line(str(line[column]))}\n" for line in lines)
        write_atomically(stem.with_name(f"{stem.name}.{side}"), content)


def write_scores(path: Path, values: Mapping[str, float], signatures: Mapping[str, str]) -> None:
    """Write the scores among `values` (`bleu`, `bleu/en-fr`...) as JSON, under sacrebleu's signature of each.

    The signature is an object with one for each direction where these differ.
    """
    report = {}
    for name in SCORES:
        parts = {key.partition("/")[2]: text for key, text in signatures.items() if key.split("/")[0] == name}
        scores = {key: value for key, value in values.items() if re.match(rf"{name}\b|{name}_mean", key)}
        report[name] = {"signature": parts.get("", parts), **scores}
    write_atomically(path, json.dumps(report, indent=2) + "\n")
