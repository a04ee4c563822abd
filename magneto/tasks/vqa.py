"""Answers to questions about an image, and judgements of statements about two, as BEiT-3 is fine-tuned (arXiv 2208.10442).

    image, question --multiway encoder--> [CLS] --norm, dense, tanh--> MLP, 2 x d_model wide--> each answer: right or not
    image, statement --> [CLS], <s> --+
                                        +--4 x d_model--> norm, MLP --> false or true
    image, statement --> [CLS], <s> --+

Which of the two it is, the data tells (`info.images`). The heads are those of BEiT-3's fine-tuning. With `init_from=` the
encoder comes from `task=vl` or from published weights (magneto/pretrained/init_from.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from magneto.data.vqa.answers import shared, vqa_accuracy
from magneto.data.vqa.module import VqaDataModule
from magneto.errors import ConfigError
from magneto.inference.images import top_answers
from magneto.inference.inputs import PredictInput
from magneto.inference.vqa import VqaPredictOptions, answer
from magneto.metrics.vqa import AnswerScores
from magneto.nn import (
    BackboneConfig,
    Linear,
    build_norm,
    training_flops_per_token,
)
from magneto.nn.multiway import Experts
from magneto.tasks.images import PairTask
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample
from magneto.visualize.image_grid import side_by_side, tile

TARGETS = {"thirds": shared, "left_out": vqa_accuracy}


@dataclass(frozen=True, kw_only=True)
class VLClassificationOptions:
    """Options under `task`, see `conf/task/vl_classification.yaml`."""

    targets: Literal["thirds", "left_out"] = "thirds"
    """Of questions, what an answer that n people gave is to get. thirds: min(n / 3, 1); left_out: its accuracy, which is
    0.3, 0.6, 0.9, 1 of ten people (BEiT-3's code)."""
    head_std: Annotated[float, Ge(0)] = 0.02
    """Standard deviation of the head's last weights at first. BEiT-3 takes 0.02 for questions, 2e-5 for statements."""


class VqaPooler(nn.Module):
    """(B, d_model) -> (B, d_model): norm, dense layer, tanh."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.norm = build_norm(config, config.d_model)
        self.dense = Linear(config.d_model, config.d_model, roles=("head",))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.norm(x)).tanh()


class VisionLanguageClassification(PairTask):
    """Binary cross-entropy of each answer to a question, or cross-entropy of the two judgements of a statement.

    Batches are those of `magneto.data.vqa.module`.
    """

    name = "vl_classification"
    monitor, mode = "val/accuracy", "max"
    Options = VLClassificationOptions
    Data = VqaDataModule
    PredictOptions = VqaPredictOptions
    options: VLClassificationOptions

    def build(self) -> None:
        self.build_encoder()
        self.labels: list[str] = self.info.labels
        if len(self.labels) < 2:
            raise ConfigError(
                f"task={self.name}: all training questions have one answer, {', '.join(self.labels)}: there is nothing to "
                "learn from this data."
            )
        config, width = self.config, self.config.d_model
        for module in self.backbone.modules():
            if isinstance(module, Experts) and module.fusion is not None:
                # Pairs alone never use these: processes would wait for their gradients.
                module.vision.requires_grad_(False)
                module.text.requires_grad_(False)
        self.statements = self.info.images > 1
        self.example_input = (
            'input=left.png predict.second=right.png predict.question="Both are red."'
            if self.statements
            else 'input=image.png predict.question="What is this?"'
        )
        inputs = 2 * self.info.images * width
        self.pooler = build_norm(config, inputs) if self.statements else VqaPooler(config)
        last = Linear(2 * width, len(self.labels), roles=("head",))
        nn.init.normal_(last.weight, std=self.options.head_std)
        self.head = nn.Sequential(
            Linear(inputs if self.statements else width, 2 * width, roles=("head",)),
            build_norm(config, 2 * width),
            nn.GELU(),
            last,
        )
        self.scores["answers"] = AnswerScores(self.info.kinds, self.info.majority_answers, self.statements)

    def forward(self, images: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, P, C, S, S), (B, T) int64 and its mask -> fp32 logits (B, answers)."""
        each = images.size(1)
        hidden, num_vision_tokens = self.encode(
            images.flatten(0, 1), tokens.repeat_interleave(each, 0), mask.repeat_interleave(each, 0)
        )
        if self.statements:
            pooled = torch.cat((hidden[:, 0], hidden[:, num_vision_tokens]), dim=1).view(len(tokens), -1)
        else:
            pooled = hidden[:, 0]
        logits: Tensor = self.head(self.pooler(pooled))
        return logits.float()

    def step(self, batch: Batch) -> StepOutput:
        """Loss summed over the questions, and over the answers to each."""
        logits = self(batch["image"], batch["tokens"], batch["mask"])
        counts = batch["counts"]
        if self.statements:
            loss = F.cross_entropy(logits, counts.argmax(1), reduction="sum")
        else:
            targets = TARGETS[self.options.targets](counts, batch["people"][:, None])
            loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        weight = torch.full((), float(len(logits)), device=logits.device)
        return StepOutput(loss, weight, outputs=logits.detach())

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        known = (batch[key] for key in ("counts", "people", "id", "kind", "group"))
        self.scores["answers"].update(output.outputs.argmax(1), *known)

    def samples(self, batch: Batch, output: StepOutput, evaluated: None) -> list[Sample]:
        """Return a few questions of each batch with their images: over all batches about `num_samples`."""
        rows = len(batch["id"])
        batches = max(1, self.info.questions["val"] // rows)
        chosen = range(0, rows, max(1, rows // ceil(self.num_samples / batches)))
        answers = self.describe(output.outputs[list(chosen)], 1)
        shown = []
        for row, top in zip(chosen, answers, strict=True):
            pixels = self.info.pixels(batch["image"][row]).cpu().numpy()
            counts = batch["counts"][row]
            shown.append(
                {
                    "id": f"{int(batch['id'][row]):08d}",
                    "kind": "answered",
                    "text": batch["text"][row],
                    "reference": self.labels[int(counts.argmax())] if counts.any() else "",
                    "predicted": top[0]["answer"],
                    "probability": top[0]["probability"],
                    "image": side_by_side([tile(image) for image in pixels]),
                }
            )
        return shown

    def describe(self, logits: Tensor, top_k: int) -> list[list[dict[str, Any]]]:
        """(B, answers) -> for each row its top answers, as `answer` and `probability`.

        Of a question every answer has a probability of its own, and they do not add up to 1; those of a statement do.
        """
        probabilities = logits.softmax(-1) if self.statements else logits.sigmoid()
        return top_answers(probabilities, self.labels, top_k, "answer")

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Questions, and the patches and words that the encoder reads."""
        rows, each = batch["image"].shape[:2]
        words = int(batch["mask"].sum())
        return {"examples": float(rows), "tokens": float(each * (rows * self.stem.vision.num_tokens + words))}

    def flops(self, batch: Batch) -> float:
        rows, each = batch["image"].shape[:2]
        patches = self.stem.vision.num_tokens
        length = patches + batch["tokens"].size(1)
        pair = length * training_flops_per_token(self.config, length)
        pair += patches * self.stem.vision.training_flops_per_token()
        linear = [m for part in (self.pooler, self.head) for m in part.modules() if isinstance(m, Linear)]
        return float(rows * (each * pair + 6 * sum(module.weight.numel() for module in linear)))

    def predictions(self, inputs: PredictInput, options: VqaPredictOptions) -> Iterator[dict[str, Any]]:
        return answer(self, inputs, options)
