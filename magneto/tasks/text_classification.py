"""Classes or scores of texts and pairs of texts: encoder -> one vector -> label, as GLUE is fine-tuned on.

    hidden states --first token | mean--> dense, tanh, dropout --> linear --> classes, or one number

The head is BERT's (pooler and classifier); with `init_from=` the encoder comes pretrained.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magneto.config.validate import from_mapping
from magneto.data.collate import PAD_TO_MULTIPLE
from magneto.data.corpora.text_classification.glue import read_test_file
from magneto.data.corpora.text_classification.labelled import zero_digits
from magneto.data.text_classification.dataset import padding
from magneto.data.text_classification.module import TextClassificationDataModule
from magneto.data.tokenizers.encode import encode
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError, MagnetoError, nearest
from magneto.inference.inputs import PredictInput
from magneto.metrics.glue import GlueScores
from magneto.nn import Linear, TokenStem, build_backbone, training_flops_per_token
from magneto.tasks.base import TaskModule
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample

POOLINGS = ("first", "mean")
PREDICT_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class TextClassificationOptions:
    """What `conf/task/text_classification.yaml` sets under `task`."""

    pooling: str = "mean"
    """first: the vector of `<s>`, as BERT; mean: of all tokens, which asks nothing of a special token that masked
    language modelling on packed text never saw."""
    head_dropout: float = 0.1
    """On the pooled vector."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ConfigError(
                f"task.pooling={self.pooling}: must be one of {', '.join(POOLINGS)}.{nearest(self.pooling, POOLINGS)}"
            )
        if not 0 <= self.head_dropout < 1:
            raise ConfigError(f"task.head_dropout={self.head_dropout}: must be at least 0 and below 1.")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What `predict.*` may set."""

    glue: str | None = None
    """Name of a GLUE task: `input=` is its unlabelled test file, the output is what the benchmark's server takes."""


class Pooler(nn.Module):
    """(B, T, d_model) and its mask (B, T) -> (B, d_model), through a dense layer and tanh."""

    def __init__(self, d_model: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.dense = Linear(d_model, d_model, roles=("head",))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "first":
            pooled = hidden[:, 0]
        else:
            weights = mask[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        out: Tensor = self.dense(pooled).tanh()
        return out


class TextClassification(TaskModule):
    """Cross-entropy over `info["labels"]`; without labels, squared error of a number.

    Batches are those of `magneto.data.text_classification.module`. Numbers are learnt as a share of the training labels' range, and
    measured and predicted in their own unit, within that range.
    """

    name = "text_classification"
    example_input = "input=lines.txt"
    mode = "max"
    Options = TextClassificationOptions
    Data = TextClassificationDataModule
    options: TextClassificationOptions

    def build(self) -> None:
        """Stem, encoder, pooler, head; GLUE's metrics."""
        if self.config.architecture != "encoder":
            raise ConfigError(
                f"backbone.architecture={self.config.architecture}: task={self.name} needs architecture=encoder."
            )
        longest = -(-self.info.max_tokens // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
        bounded = self.config.position in ("learned", "sinusoidal", "rotary")
        if bounded and longest > self.config.max_positions:
            raise ConfigError(
                f"data.max_tokens={self.info.max_tokens}: the backbone has max_positions={self.config.max_positions}. "
                f"Set data.max_tokens to {self.config.max_positions // PAD_TO_MULTIPLE * PAD_TO_MULTIPLE} or less."
            )
        self.tokenizer = TextTokenizer.from_json(self.info.tokenizer)
        self.labels: list[str] = self.info.labels
        self.stem = TokenStem(self.info.vocab_size, self.config)
        # What the tokens of the second text add to their embeddings: BERT's difference of segment embeddings.
        self.segment = nn.Parameter(torch.zeros(self.config.d_model)) if self.info.pairs else None
        self.backbone = build_backbone(self.config)
        self.pooler = Pooler(self.config.d_model, self.options.pooling)
        self.head = Linear(self.config.d_model, max(len(self.labels), 1), roles=("head",))
        metrics = self.info.metrics
        self.scores["glue"] = GlueScores(metrics, len(self.labels), self.info.subsets)
        self.monitor = f"val/{metrics[0] if len(metrics) == 1 else 'score'}"

    def forward(self, tokens: Tensor, mask: Tensor, second: Tensor) -> Tensor:
        """(B, T) int64, bool and bool -> fp32 logits (B, classes), or (B, 1) in units of the labels' range."""
        x = self.stem(tokens)
        if self.segment is not None:
            x = x + second[..., None] * self.segment
        pooled = self.pooler(self.backbone(x, mask), mask)
        logits: Tensor = self.head(F.dropout(pooled, self.options.head_dropout, self.training))
        return logits.float()

    def step(self, batch: Batch) -> StepOutput:
        """Loss summed over the examples."""
        logits = self(batch["tokens"], batch["mask"], batch["second"])
        if self.labels:
            loss = F.cross_entropy(logits, batch["label"], reduction="sum")
        else:
            loss = F.mse_loss(logits[:, 0], (batch["label"] - self._lowest) / self._width, reduction="sum")
        weight = torch.tensor(float(len(logits)), device=logits.device)
        return StepOutput(loss, weight, outputs=logits.detach())

    @property
    def _lowest(self) -> float:
        return float(self.info.range[0])

    @property
    def _width(self) -> float:
        """Of the labels' range; 1 where all of them are equal."""
        low, high = self.info.range
        return float(high - low) or 1.0

    def answers(self, logits: Tensor) -> Tensor:
        """(B, ...) logits -> (B,) classes, or numbers within the range of the training labels."""
        if self.labels:
            return logits.argmax(-1)
        return logits[:, 0].clamp(0, 1) * self._width + self._lowest

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        """Keep answers and labels of the batch."""
        self.scores["glue"].update(self.answers(output.outputs), batch["label"], batch["id"], batch["subset"])

    def samples(self, batch: Batch, output: StepOutput) -> list[Sample]:
        """Text, label and answer."""
        answers = self.describe(output.outputs)
        return [
            {
                "id": f"{int(number):08d}",
                "kind": "classified",
                "text": text,
                **({"pair": pair} if self.info.pairs else {}),
                "reference": self.labels[int(label)] if self.labels else f"{float(label):g}",
                "predicted": answer["label"],
                **({"probability": answer["probability"]} if self.labels else {}),
            }
            for number, text, pair, label, answer in zip(
                batch["id"], batch["text"], batch["pair"], batch["label"], answers, strict=True
            )
        ]

    def describe(self, logits: Tensor) -> list[dict[str, Any]]:
        """For each row `label`, and for classes its `probability`; numbers have three decimals, as GLUE wants them."""
        answers = self.answers(logits).tolist()
        if not self.labels:
            return [{"label": f"{answer:.3f}"} for answer in answers]
        probabilities = logits.softmax(-1).tolist()
        return [
            {"label": self.labels[answer], "probability": round(row[answer], 4)}
            for answer, row in zip(answers, probabilities, strict=True)
        ]

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Examples and tokens."""
        return {"examples": float(len(batch["id"])), "tokens": float(batch["mask"].sum())}

    def flops(self, batch: Batch) -> float:
        """Encoder, pooler and head, forward and backward, padding included."""
        rows, length = batch["tokens"].shape
        per_example = length * training_flops_per_token(self.config, length)
        per_example += 6 * (self.pooler.dense.weight.numel() + self.head.weight.numel())
        return float(rows * per_example)

    # ------------------------------------------------------------------ use

    def predict(self, inputs: PredictInput, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Label lines: a text each, or two texts with a tab between them where the model was trained on pairs.

        A line that is not that gets an empty answer. With `predict.glue=TASK`, the rows of that task's test file, printed
        as the table that GLUE's server takes.
        """
        chosen = from_mapping(PredictOptions, options, "predict")
        if chosen.glue is not None:
            yield from self._predict_glue(inputs, chosen.glue)
            return
        numbered = enumerate(inputs.lines(), 1)
        nothing = {"label": None, **({"probability": None} if self.labels else {})}
        while lines := list(islice(numbered, PREDICT_BATCH)):
            texts: dict[int, tuple[str, str | None]] = {}
            for number, line in lines:
                try:
                    texts[number] = self._split(line)
                except MagnetoError as why:
                    inputs.unanswered(number, why)
            answers = dict(zip(texts, self._label(list(texts.values())) if texts else [], strict=True))
            for number, line in lines:
                answer = answers.get(number)
                printed = "" if answer is None else "\t".join([*map(str, answer.values()), line])
                yield {"text": printed, "input": line, **(answer or nothing)}

    def _predict_glue(self, inputs: PredictInput, task: str) -> Iterator[dict[str, Any]]:
        if inputs.path is None or inputs.path == "-":
            raise ConfigError(f"predict.glue={task} needs input=: the test file of that task.")
        head = "index\tprediction\n"
        examples = read_test_file(Path(inputs.path), task)
        while rows := list(islice(examples, PREDICT_BATCH)):
            if (rows[0][2] is not None) != self.info.pairs:
                raise ConfigError(
                    f"predict.glue={task}: the model was not trained on that task (texts or pairs)."
                )
            for (index, text, _), answer in zip(rows, self._label([row[1:] for row in rows]), strict=True):
                yield {"text": f"{head}{index}\t{answer['label']}", "index": index, "input": text, **answer}
                head = ""

    def _split(self, line: str) -> tuple[str, str | None]:
        texts = line.split("\t")
        wanted = 2 if self.info.pairs else 1
        if len(texts) != wanted or not all(text.strip() for text in texts):
            what = "two texts with a tab between them" if wanted == 2 else "one text without a tab"
            raise ConfigError(f"the model takes {what}, not {line[:60]!r}. Give that in each line.")
        return texts[0], texts[1] if wanted == 2 else None

    def _label(self, texts: Sequence[tuple[str, str | None]]) -> list[dict[str, Any]]:
        """Answers of one batch."""
        if self.info.zero_digits:
            texts = [(zero_digits(text), pair and zero_digits(pair)) for text, pair in texts]
        encoded = encode(
            self.tokenizer, [text for text, _ in texts], [pair for _, pair in texts], self.info.max_tokens
        )
        items = [{"tokens": tokens, "second": second} for tokens, second in encoded.items()]
        batch = padding(self.tokenizer.pad_id or 0)(items)
        return self.describe(self(*(batch[key].to(self.device) for key in ("tokens", "mask", "second"))))

    def tokenizer_json(self) -> str | None:
        """As the data has it."""
        return str(self.info.tokenizer)
