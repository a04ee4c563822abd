"""Answers to questions about an image, and judgements of statements about two, as BEiT-3 is fine-tuned (arXiv 2208.10442).

    image, question --multiway encoder--> [CLS] --norm, dense, tanh--> MLP, 2 x d_model wide--> each answer: right or not
    image, statement --> [CLS], <s> --+
                                        +--4 x d_model--> norm, MLP --> false or true
    image, statement --> [CLS], <s> --+

Which of the two it is, the data tells (`info.images`). The heads are those of BEiT-3's fine-tuning. With `init_from=` the
encoder comes from `task=vl` or from published weights (magneto/pretrained/init_from.py).
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magneto.config.validate import from_mapping
from magneto.data.collate import pad_texts
from magneto.data.image.dataset import evaluation_batch, user_images
from magneto.data.tokenizers.encode import encode
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.text import readable_caption
from magneto.data.vqa.answers import shared, vqa_accuracy
from magneto.data.vqa.module import VqaDataModule
from magneto.errors import ConfigError, nearest
from magneto.inference.inputs import PredictInput
from magneto.metrics.vqa import AnswerScores
from magneto.nn import (
    BackboneConfig,
    Linear,
    PatchStem,
    TokenStem,
    VisionLanguageStem,
    build_backbone,
    build_norm,
    training_flops_per_token,
)
from magneto.nn.multiway import Experts
from magneto.tasks.base import TaskModule
from magneto.tasks.visual_tokenizer import require_patches
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample
from magneto.visualize.image_grid import side_by_side, tile

log = logging.getLogger(__name__)

TARGETS = {"thirds": shared, "left_out": vqa_accuracy}
TOP = 5
PREDICT_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class VLClassificationOptions:
    """What `conf/task/vl_classification.yaml` sets under `task`."""

    targets: str = "thirds"
    """Of questions, what an answer that n people gave is to get. thirds: min(n / 3, 1); left_out: its accuracy, which is
    0.3, 0.6, 0.9, 1 of ten people (BEiT-3's code)."""
    head_std: float = 0.02
    """Standard deviation of the head's last weights at first. BEiT-3 takes 0.02 for questions, 2e-5 for statements."""

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise ConfigError(
                f"task.targets={self.targets}: must be one of {', '.join(TARGETS)}.{nearest(self.targets, TARGETS)}"
            )
        if self.head_std < 0:
            raise ConfigError(f"task.head_std={self.head_std}: must be 0 or more.")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What `predict.*` may set."""

    question: str | None = None
    """The question, or the statement."""
    second: str | float | None = None
    """The right image of a statement; `input=` is the left one."""
    top_k: int = TOP
    """Answers that are told, the likeliest first."""

    def __post_init__(self) -> None:
        if self.question is None or not self.question.strip():
            raise ConfigError('Say what is asked about the image: predict.question="what colour is it?"')
        if self.top_k < 1:
            raise ConfigError(f"predict.top_k={self.top_k}: must be 1 or more.")


class Pooler(nn.Module):
    """(B, d_model) -> (B, d_model): norm, dense layer, tanh."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.norm = build_norm(config, config.d_model)
        self.dense = Linear(config.d_model, config.d_model, roles=("head",))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense(self.norm(x)).tanh()
        return out


class VisionLanguageClassification(TaskModule):
    """Binary cross-entropy of each answer to a question, or cross-entropy of the two judgements of a statement.

    Batches are those of `magneto.data.vqa.module`.
    """

    name = "vl_classification"
    monitor, mode = "val/accuracy", "max"
    Options = VLClassificationOptions
    Data = VqaDataModule
    options: VLClassificationOptions

    def build(self) -> None:
        """Stem, encoder, the head that the data needs; accuracy."""
        for key, wanted in (("architecture", "encoder"), ("position", "none")):
            if (value := getattr(self.config, key)) != wanted:
                why = "" if key == "architecture" else ": each modality has learnt positions of its own"
                raise ConfigError(f"backbone.{key}={value}: task={self.name} needs {key}={wanted}{why}.")
        if self.info.max_tokens > self.config.max_positions:
            raise ConfigError(
                f"data.max_tokens={self.info.max_tokens}: the backbone has max_positions={self.config.max_positions}. "
                f"Set data.max_tokens to {self.config.max_positions} or less."
            )
        require_patches(self.name, self.info)
        self.labels: list[str] = self.info.labels
        if len(self.labels) < 2:
            raise ConfigError(
                f"task={self.name}: all training questions have one answer, {', '.join(self.labels)}: there is nothing to "
                "learn from this data."
            )
        self.tokenizer = TextTokenizer.from_json(self.info.tokenizer)
        config, width = self.config, self.config.d_model
        size, patch, channels = self.info.image_size, self.info.patch_size, self.info.channels
        self.stem = VisionLanguageStem(
            PatchStem(size, patch, channels, width), TokenStem(self.info.vocab_size, config), config
        )
        self.backbone = build_backbone(config)
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
        self.pooler = build_norm(config, inputs) if self.statements else Pooler(config)
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
        x, split = self.stem(images.flatten(0, 1), tokens.repeat_interleave(each, 0))
        mask = F.pad(mask.repeat_interleave(each, 0), (split, 0), value=True)
        hidden = self.backbone(x, mask, split=None if self.config.multiway == "none" else split)
        if self.statements:
            pooled = torch.cat((hidden[:, 0], hidden[:, split]), dim=1).view(len(tokens), -1)
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
        weight = torch.tensor(float(len(logits)), device=logits.device)
        return StepOutput(loss, weight, outputs=logits.detach())

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        """Keep the answers of the batch."""
        known = (batch[key] for key in ("counts", "people", "id", "kind", "group"))
        self.scores["answers"].update(output.outputs.argmax(1), *known)

    def samples(self, batch: Batch, output: StepOutput) -> list[Sample]:
        """A few questions of each batch with their images: over all batches about as many as are asked for."""
        rows = len(batch["id"])
        batches = max(1, self.info.questions["val"] // rows)
        chosen = range(0, rows, max(1, rows // ceil(self.num_samples / batches)))
        answers = self.describe(output.outputs[list(chosen)], 1)
        shown = []
        for row, answer in zip(chosen, answers, strict=True):
            pixels = self.info.pixels(batch["image"][row]).cpu().numpy()
            given = batch["counts"][row]
            shown.append(
                {
                    "id": f"{int(batch['id'][row]):08d}",
                    "kind": "answered",
                    "text": batch["text"][row],
                    "reference": self.labels[int(given.argmax())] if given.any() else "",
                    "predicted": answer[0]["answer"],
                    "probability": answer[0]["probability"],
                    "image": side_by_side([tile(image) for image in pixels]),
                }
            )
        return shown

    def describe(self, logits: Tensor, top_k: int) -> list[list[dict[str, Any]]]:
        """(B, answers) -> for each row its likeliest answers, as `answer` and `probability`.

        Of a question every answer has a probability of its own, and they do not add up to 1; those of a statement do.
        """
        probabilities = logits.softmax(-1) if self.statements else logits.sigmoid()
        top = probabilities.topk(min(top_k, len(self.labels)), dim=1)
        return [
            [
                {"answer": self.labels[place], "probability": round(share, 4)}
                for place, share in zip(places, shares, strict=True)
            ]
            for places, shares in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Questions, and the patches and words that the encoder reads."""
        rows, each = batch["image"].shape[:2]
        words = int(batch["mask"].sum())
        return {"examples": float(rows), "tokens": float(each * (rows * self.stem.vision.num_tokens + words))}

    def flops(self, batch: Batch) -> float:
        """Stem, encoder and head, forward and backward, padding included."""
        rows, each = batch["image"].shape[:2]
        patches = self.stem.vision.num_tokens
        length = patches + batch["tokens"].size(1)
        pair = length * training_flops_per_token(self.config, length)
        pair += 6 * patches * self.stem.vision.projection.weight.numel()
        linear = [m for part in (self.pooler, self.head) for m in part.modules() if isinstance(m, Linear)]
        return float(rows * (each * pair + 6 * sum(module.weight.numel() for module in linear)))

    def tokenizer_json(self) -> str | None:
        """As the data has it."""
        return str(self.info.tokenizer)

    # ------------------------------------------------------------------ use

    def predict(self, inputs: PredictInput, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Answer `predict.question` about each image of `input=`, or judge it of that image and `predict.second`."""
        chosen = from_mapping(PredictOptions, options, "predict")
        if inputs.path is None:
            raise ConfigError(
                'prompt=: say input= with an image or a folder of them, and predict.question="..." instead.'
            )
        if (chosen.second is not None) != self.statements:
            raise ConfigError(
                "predict.second: this model judges statements about two images: name the right one by it."
                if self.statements
                else f"predict.second={chosen.second}: this model answers questions about one image. Leave it out."
            )
        assert chosen.question is not None
        tokens, mask = self._question(chosen.question)
        second = None if chosen.second is None else self._seen(str(chosen.second))[0][1]
        for batch in self._batches(inputs.path):
            images = torch.stack([image for _, image in batch])[:, None]
            if second is not None:
                images = torch.cat((images, second.expand_as(images)), dim=1)
            rows = len(images)
            logits = self(images.to(self.device), tokens.expand(rows, -1), mask.expand(rows, -1))
            for (file, _), answers in zip(batch, self.describe(logits, chosen.top_k), strict=True):
                told = "\t".join(f"{one['answer']}\t{one['probability']}" for one in answers)
                asked = {"input": file, "question": chosen.question}
                if chosen.second is not None:
                    asked["second"] = str(chosen.second)
                yield {"text": f"{file}\t{told}", **asked, **answers[0], "top": answers}

    def _question(self, text: str) -> tuple[Tensor, Tensor]:
        """(1, T) int64 and its mask."""
        longest = self.info.max_tokens
        plain = readable_caption(text, self.info.lowercase, "predict.question")
        encoded = encode(self.tokenizer, [plain], [None], longest)
        if encoded.truncated:
            log.warning("predict.question: it is longer than %d tokens and loses its end", longest)
        tokens, mask = pad_texts([encoded.tokens.astype(np.int64)], self.tokenizer.pad_id or 0, longest)
        return tokens.to(self.device), mask.to(self.device)

    def _batches(self, path: str, key: str = "input") -> Iterator[list[tuple[str, Tensor]]]:
        """Files, and their images (C, S, S) as evaluation sees them."""
        given = user_images(path, self.info.channels, self.info.svg_side, key)
        while batch := list(islice(given, PREDICT_BATCH)):
            images = evaluation_batch([image for _, image in batch], self.info)
            yield [(str(file), image) for (file, _), image in zip(batch, images, strict=True)]

    def _seen(self, path: str) -> list[tuple[str, Tensor]]:
        """The one image of `predict.second`."""
        found = next(self._batches(path, key="predict.second"))
        if len(found) > 1:
            raise ConfigError(f"predict.second={path}: must be one image, not a folder of several.")
        return found
