"""BLEU, chrF and TER of translations, by sacrebleu: corpus scores from the summed statistics of the sentences.

sacrebleu computes a corpus score from a few counts of each sentence (matched n-grams, lengths, edits). These counts are
kept here, so a score depends neither on the batching nor on the number of processes, and is the number that
sacrebleu's own command line gives for the same lines.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

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

    Args:
        directions: names such as `en-fr`; updates give indices into them.
        tokenize: BLEU's tokenizer; None: that of each direction's target language, see `bleu_tokenizer`.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, directions: Sequence[str], tokenize: str | None = None) -> None:
        from sacrebleu.metrics.chrf import CHRF
        from sacrebleu.metrics.ter import TER

        super().__init__()
        self.directions = list(directions)
        chosen = [bleu_tokenizer(name.split("-")[1], tokenize) for name in directions]
        self.remarks = sorted({remark for _, remark in chosen if remark is not None})
        """Remarks on the tokenizers, for the log."""
        bleu = {name: sacrebleu_bleu(name) for name, _ in chosen}
        for metric in bleu.values():  # the signature of one that has counted nothing is not available
            metric._extract_corpus_statistics(["a"], [["a"]])
        self._bleu = [bleu[name] for name, _ in chosen]  # of each direction
        self.lines: list[TranslatedLine] = []
        """The translations of this process whose sources were given, until `reset`."""
        self._metrics = {"bleu": self._bleu[0], "chrf": CHRF(), "ter": TER()}
        self._widths = {
            name: len(metric._extract_corpus_statistics(["a"], [["a"]])[0])
            for name, metric in self._metrics.items()
        }
        # (N, 2 + counts) float64: id, direction, counts; NaN where a score was not asked for.
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all translations."""
        super().reset()
        self.lines = []
        # An empty block to begin with: a process that saw no translation gathers like the others.
        width = 2 + sum(self._widths.values())
        self.rows = [torch.empty((0, width), dtype=torch.float64, device=self.device)]

    def update(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str],
        ids: Tensor,
        directions: Tensor,
        scores: Sequence[str] = SCORES,
        sources: Sequence[str] | None = None,
    ) -> None:
        """Count N translations.

        Args:
            hypotheses: N texts.
            references: N texts.
            ids: (N,) int64; an example that comes twice counts once.
            directions: (N,) int64.
            scores: those to compute. TER is far slower than the others.
            sources: N texts, where the translations are to be kept in `lines`.
        """
        if not hypotheses:
            return
        if sources is not None:
            columns = (ids.tolist(), directions.tolist(), sources, hypotheses, references)
            self.lines += zip(*columns, strict=True)
        parts = [torch.stack((ids, directions), dim=1).double().cpu()]
        lines = [*zip(map(one_line, hypotheses), map(one_line, references), strict=True)]
        for name, metric in self._metrics.items():
            if name in scores:
                counters = (
                    [self._bleu[int(n)] for n in directions] if name == "bleu" else [metric] * len(lines)
                )
                counts = [
                    counter._extract_corpus_statistics([hypothesis], [[reference]])[0]
                    for counter, (hypothesis, reference) in zip(counters, lines, strict=True)
                ]
                parts.append(torch.tensor(counts, dtype=torch.float64))
            else:
                parts.append(
                    torch.full((len(hypotheses), self._widths[name]), torch.nan, dtype=torch.float64)
                )
        self.rows.append(torch.cat(parts, dim=1).to(self.device))

    def compute(self) -> dict[str, float]:
        """The scores.

        Returns:
            `bleu`, `chrf`, `ter`; where there are several directions also `bleu/en-fr` and so on for each that was seen,
            and `bleu_mean`, their mean (the number that many-to-many papers print). Empty when nothing was seen.
        """
        seen = {row[0].item(): row for row in dim_zero_cat(self.rows).cpu()}
        if not seen:
            return {}
        table = torch.stack(list(seen.values()))
        scores: dict[str, float] = {}
        start = 2
        for name, width in self._widths.items():
            counts = table[:, start : start + width]
            start += width
            if counts.isnan().any():
                continue
            scores[name] = self._score(name, counts)
            if len(self.directions) == 1:
                continue
            parts = {
                direction: self._score(name, counts[member])
                for index, direction in enumerate(self.directions)
                if (member := table[:, 1] == index).any()
            }
            scores |= {f"{name}/{direction}": value for direction, value in parts.items()}
            scores[f"{name}_mean"] = sum(parts.values()) / len(parts)
        return scores

    def _score(self, name: str, counts: Tensor) -> float:
        # The counts are whole numbers, exact in float64. BLEU's smoothing looks at integers.
        sums = [int(value) if value.is_integer() else value for value in counts.sum(dim=0).tolist()]
        return float(self._metrics[name]._compute_score_from_stats(sums).score)

    def signatures(self) -> dict[str, str]:
        """Return what sacrebleu prints beside each score: its settings and version.

        Where the directions differ in BLEU's tokenizer, there is one of `bleu/en-fr` and so on in place of `bleu`.
        """
        signatures = {name: str(metric.get_signature()) for name, metric in self._metrics.items()}
        if len(set(self._bleu)) > 1:
            del signatures["bleu"]
            parts = zip(self.directions, self._bleu, strict=True)
            signatures = {f"bleu/{name}": str(bleu.get_signature()) for name, bleu in parts} | signatures
        return signatures


def write_translations(folder: Path, lines: Iterable[TranslatedLine], directions: Sequence[str]) -> None:
    """Write `test.src`, `test.hyp` and `test.ref`, in the order of the ids; an example that comes twice is written once.

    Of several directions also `test/en-fr.src` and so on.
    """
    unique = list({line[0]: line for line in sorted(lines)}.values())
    _write_sides(folder / "test", unique)
    if len(directions) > 1:
        (folder / "test").mkdir(exist_ok=True)
        for index, direction in enumerate(directions):
            _write_sides(folder / "test" / direction, [line for line in unique if line[1] == index])


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
