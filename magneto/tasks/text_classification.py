"""Classes or scores of texts and pairs of texts: encoder -> one vector -> label, as GLUE is fine-tuned on.

    hidden states --first token | mean--> dense, tanh, dropout --> linear --> classes, or one number

The head is BERT's (pooler and classifier); with `init_from=` the encoder comes pretrained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from magneto.data.collate import PAD_TO_MULTIPLE
from magneto.data.text_classification.module import TextClassificationDataModule
from magneto.data.tokenizers.text import TextTokenizer
from magneto.inference.inputs import PredictInput
from magneto.inference.text_classification import TextClassificationPredictOptions, classify
from magneto.metrics.glue import GlueScores
from magneto.nn import Linear, TokenStem, build_backbone, training_flops_per_token
from magneto.tasks.base import Task
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample


@dataclass(frozen=True, kw_only=True)
class TextClassificationOptions:
    """Options under `task`, see `conf/task/text_classification.yaml`."""

    pooling: Literal["first", "mean"] = "mean"
    """first: the vector of `<s>`, as BERT; mean: of all tokens, which asks nothing of a special token that masked
    language modelling on packed text never saw."""
    head_dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """On the pooled vector."""


class TextPooler(nn.Module):
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
        return self.dense(pooled).tanh()


class TextClassification(Task):
    """Cross-entropy over `info["labels"]`; without labels, squared error of a number.

    Batches are those of `magneto.data.text_classification.module`. Numbers are learnt as a share of the training labels'
    range, and measured and predicted in their own unit, within that range.
    """

    name = "text_classification"
    example_input = "input=lines.txt"
    mode = "max"
    Options = TextClassificationOptions
    Data = TextClassificationDataModule
    PredictOptions = TextClassificationPredictOptions
    requires: ClassVar = {"architecture": "encoder"}
    options: TextClassificationOptions

    def build(self) -> None:
        longest = -(-self.info.max_tokens // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
        most = self.config.max_positions // PAD_TO_MULTIPLE * PAD_TO_MULTIPLE
        self.require_positions(
            longest, f"data.max_tokens={self.info.max_tokens}", f"set data.max_tokens to {most} or less"
        )
        self.tokenizer = TextTokenizer.from_json(self.info.tokenizer)
        self.labels: list[str] = self.info.labels
        self.stem = TokenStem(self.info.vocab_size, self.config)
        # What the tokens of the second text add to their embeddings: BERT's difference of segment embeddings.
        self.segment = nn.Parameter(torch.zeros(self.config.d_model)) if self.info.pairs else None
        self.backbone = build_backbone(self.config)
        self.pooler = TextPooler(self.config.d_model, self.options.pooling)
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
        weight = torch.full((), float(len(logits)), device=logits.device)
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
        """(B, classes) logits -> (B,) classes, or numbers within the range of the training labels."""
        if self.labels:
            return logits.argmax(-1)
        return logits[:, 0].clamp(0, 1) * self._width + self._lowest

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        self.scores["glue"].update(self.answers(output.outputs), batch["label"], batch["id"], batch["subset"])

    def samples(self, batch: Batch, output: StepOutput, evaluated: None) -> list[Sample]:
        """Return text, label and answer."""
        answers = self.describe(output.outputs)
        return [
            {
                "id": f"{int(id):08d}",
                "kind": "classified",
                "text": text,
                **({"pair": pair} if self.info.pairs else {}),
                "reference": self.labels[int(label)] if self.labels else f"{float(label):g}",
                "predicted": answer["label"],
                **({"probability": answer["probability"]} if self.labels else {}),
            }
            for id, text, pair, label, answer in zip(
                batch["id"], batch["text"], batch["pair"], batch["label"], answers, strict=True
            )
        ]

    def describe(self, logits: Tensor) -> list[dict[str, Any]]:
        """Return each row's `label`, and for classes its `probability`; numbers have three decimals, as GLUE takes them."""
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
        rows, length = batch["tokens"].shape
        per_example = length * training_flops_per_token(self.config, length)
        per_example += 6 * (self.pooler.dense.weight.numel() + self.head.weight.numel())
        return float(rows * per_example)

    def predictions(
        self, inputs: PredictInput, options: TextClassificationPredictOptions
    ) -> Iterator[dict[str, Any]]:
        return classify(self, inputs, options)
