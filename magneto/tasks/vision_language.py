"""Vision and language in one encoder (BEiT-3, Wang et al., arXiv 2208.10442): images, texts, and pairs of the two.

    images --patches--+                                 +--hidden patches--> code of each
                        +--> multiway encoder (shared ----+--hidden words----> the word
    texts ---tokens-----+    attention, own experts)      +--[CLS], <s>------> vectors that are alike for a pair

Two losses, together or one at a time: masked data modelling as BEiT-3 is pre-trained (a third of each batch gives
images alone, a third texts alone, a third pairs), and contrastive learning as it is fine-tuned for retrieval.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn
from torchmetrics import MeanMetric

from magneto.config.validate import from_mapping
from magneto.data.collate import IGNORE
from magneto.data.image_text.module import ImageTextDataModule
from magneto.data.module import DataModule
from magneto.errors import ConfigError
from magneto.inference.inputs import PredictInput
from magneto.inference.vision_language import RetrievalPredictOptions, retrieve
from magneto.metrics.retrieval import RetrievalScores
from magneto.nn import (
    Linear,
    training_flops_per_token,
)
from magneto.nn.contrastive import contrastive_loss
from magneto.nn.loss import chunked_cross_entropy
from magneto.nn.multiway import Experts
from magneto.tasks.images import PairTask, require_patches
from magneto.tasks.masked_image import MaskedImages, TargetOptions
from magneto.tasks.mlm import MaskedLMHead
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample
from magneto.visualize.retrieval_examples import RetrievalExamples
from magneto.visualize.retrieval_grid import images_for, texts_for

LARGEST_SCALE = 100.0  # of similarities; without a bound it grows until training breaks (CLIP, 2.5)
KINDS = ("images", "texts", "pair_images", "pair_texts")
FEW = 16  # pairs of a batch below which contrastive learning has little to compare
SMALLEST_BATCH = (
    6  # the last two batches of an epoch share what is left evenly: each then has 3 examples or more
)

log = logging.getLogger("magneto")


@dataclass(frozen=True, kw_only=True)
class VisionLanguageLosses:
    """Weight of each loss; 0 switches it off."""

    masked: Annotated[float, Ge(0)] = 1.0
    contrastive: Annotated[float, Ge(0)] = 1.0

    def __post_init__(self) -> None:
        if self.masked + self.contrastive == 0:
            raise ConfigError("task.losses: masked and contrastive must be not both 0. Set one of them to 1.")


@dataclass(frozen=True, kw_only=True)
class VLOptions(TargetOptions):
    """Options under `task`, see `conf/task/vl.yaml`; what is hidden is set by `data.masking`."""

    losses: Mapping[str, float] = field(default_factory=dict)
    """See `VisionLanguageLosses`."""
    embedding_width: Annotated[int, Ge(1)] | None = None
    """Of the vectors that are compared; null: that of the backbone."""
    temperature: Annotated[float, Ge(1 / LARGEST_SCALE), Le(1)] = 0.07
    """That similarities are divided by at first; it is learnt."""


class VisionLanguage(MaskedImages, PairTask):
    """Masked data modelling and contrastive learning. Batches are those of `magneto.data.image_text.module`."""

    name = "vl"
    monitor, mode = "val/r1", "max"
    Options = VLOptions
    Data = ImageTextDataModule
    PredictOptions = RetrievalPredictOptions
    options: VLOptions

    @classmethod
    def accumulates(cls, options: VLOptions) -> bool:
        """Not pairs that are compared, and of masked data the losses are means of a batch."""
        return False

    @classmethod
    def prepare(cls, config: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
        """Return the tokenizer of the images, with masked modelling."""
        assert isinstance(data, ImageTextDataModule)
        settings = {key: value for key, value in config["task"].items() if key not in ("_target_", "name")}
        options = from_mapping(VLOptions, settings, "task")
        losses, size = (
            from_mapping(VisionLanguageLosses, options.losses, "task.losses"),
            data.config.batch_size,
        )
        if losses.contrastive and size < 2:
            raise ConfigError(
                f"data.batch_size={size}: with task.losses.contrastive it must be at least 2. A pair is contrasted with the "
                "others of its batch; alone, it teaches nothing. Accumulation does not join batches."
            )
        if losses.contrastive and size < FEW:
            log.warning(
                "data.batch_size=%d: each pair is contrasted with the others of its batch, which are few. Take %d or more; "
                "accumulation does not join batches.",
                size,
                FEW,
            )
        if not losses.masked:
            return {}
        require_patches(cls.name, data.info)
        if data.config.masking is None:
            raise ConfigError(
                "data.masking is missing: task.losses.masked hides patches and words. Set data.masking={} for BEiT-3's "
                "shares, or task.losses.masked=0."
            )
        if size < SMALLEST_BATCH:
            raise ConfigError(
                f"data.batch_size={size}: with task.losses.masked it must be at least "
                f"{SMALLEST_BATCH}, so that every batch holds images, texts and pairs."
            )
        return cls.prepare_target(options, data.images)

    def build(self) -> None:
        self.losses = from_mapping(VisionLanguageLosses, self.options.losses, "task.losses")
        if self.losses.contrastive:
            self.example_input = 'input=images/ predict.query="a red apple"'
        config, width = self.config, self.options.embedding_width or self.config.d_model
        self.build_encoder(mask_token=True)
        if self.losses.masked:
            self.image_head = Linear(config.d_model, self.build_target(), roles=("head",))
            self.text_head = MaskedLMHead(self.info.vocab_size, config)
            for kind in KINDS:
                if self.target is not None or kind.endswith("texts"):
                    self.scores[f"accuracy/{kind}"] = MeanMetric()
        else:
            self.target = None
            self._leave_out_pairs()
        if self.losses.contrastive:
            # Named as in BEiT-3's retrieval weights.
            self.vision_head = Linear(config.d_model, width, bias=False, roles=("head",))
            self.language_head = Linear(config.d_model, width, bias=False, roles=("head",))
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / self.options.temperature)))
            self.scores["retrieval"] = RetrievalScores(self.info.languages, width)
            if self.num_samples:
                self.scores["examples"] = RetrievalExamples()
        else:
            self.monitor, self.mode = "val/loss", "min"

    def _leave_out_pairs(self) -> None:
        """Without pairs and masks, what only these use is not trained: processes would wait for its gradients."""
        assert self.stem.vision.mask_token is not None
        self.stem.vision.mask_token.requires_grad_(False)
        for module in self.backbone.modules():
            if isinstance(module, Experts) and module.fusion is not None:
                module.fusion.requires_grad_(False)

    # ------------------------------------------------------------------ the model

    def image_vectors(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> fp32 (B, E) of length 1."""
        return F.normalize(self.vision_head(self.encode(images)[0][:, 0]).float(), dim=-1)

    def text_vectors(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T) int64 and bool -> fp32 (B, E) of length 1."""
        return F.normalize(self.language_head(self.encode(None, tokens, mask)[0][:, 0]).float(), dim=-1)

    # ------------------------------------------------------------------ learning

    def step(self, batch: Batch) -> StepOutput:
        """The losses, each a mean of its own kind, summed over the pairs of the batch."""
        weight = torch.full((), float(len(batch["id"])), device=batch["image"].device)
        parts: dict[str, Tensor] = {}
        vectors: tuple[Tensor, Tensor] | None = None
        hits: dict[str, Tensor] = {}
        if self.losses.contrastive:
            vision = self.image_vectors(batch["image"])
            text = self.text_vectors(batch["tokens"], batch["mask"])
            vectors = vision.detach(), text.detach()
            labels = torch.stack((batch["image_id"], batch["caption"]), dim=1)
            # Evaluation batches differ in number from process to process, and are compared in themselves.
            loss = contrastive_loss(vision, text, self._scale(), labels, gather=self.training)
            parts["contrastive"] = loss / weight
        if self.losses.masked:
            parts["masked"], hits = self._masked(batch)
        total = sum(getattr(self.losses, name) * part for name, part in parts.items())
        assert isinstance(total, Tensor)
        logs = {name: part.detach() * weight for name, part in parts.items()} if len(parts) > 1 else {}
        return StepOutput(total * weight, weight, outputs=(vectors, hits), logs=logs)

    def _scale(self) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
        return self.logit_scale.float().exp()

    def _masked(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of the hidden patches plus that of the hidden words; in evaluation which of each kind were right.

        Of every three examples one gives its image alone, one its text alone, one both.
        """
        self.hidden(batch)
        outputs: dict[str, Tensor] = {}
        targets: dict[str, Tensor] = {}
        for rows, with_image, with_text in (
            (slice(0, None, 3), True, False), (slice(1, None, 3), False, True), (slice(2, None, 3), True, True)
        ):  # fmt: skip
            part = {key: value[rows] for key, value in batch.items() if isinstance(value, Tensor)}
            if not len(part["id"]):
                continue
            pair = with_image and with_text
            hidden, num_vision_tokens = self.encode(
                part["image"] if with_image else None,
                part["pair_tokens" if pair else "masked_tokens"] if with_text else None,
                part["mask"] if with_text else None,
                part["masked"] if with_image else None,
            )
            if with_image:
                kind = "pair_images" if pair else "images"
                outputs[kind] = self.image_head(hidden[:, 1:num_vision_tokens][part["masked"]]).float()
                targets[kind] = self.targets(part["image"], part["masked"])
            if with_text:
                kind = "pair_texts" if pair else "texts"
                words = part["pair_targets" if pair else "targets"]
                outputs[kind] = self.text_head(hidden[:, num_vision_tokens:][words != IGNORE])
                targets[kind] = words[words != IGNORE]
        of_patches, of_words = (
            [kind for kind in outputs if kind.endswith(ending)] for ending in ("images", "texts")
        )
        hits: dict[str, Tensor] = {}
        losses = []
        if of_patches:
            wholes = [torch.cat([part[kind] for kind in of_patches]) for part in (outputs, targets)]
            losses.append(self.patch_loss(*wholes) / len(wholes[1]))
            if not self.training and self.target is not None:
                hits |= {kind: outputs[kind].argmax(-1) == targets[kind] for kind in of_patches}
        if of_words:
            wholes = [torch.cat([part[kind] for kind in of_words]) for part in (outputs, targets)]
            loss = chunked_cross_entropy(
                wholes[0], self.stem.text.embedding.weight, wholes[1],
                bias=self.text_head.output_bias, correct=not self.training,
            )  # fmt: skip
            losses.append(loss.loss_sum / max(1, len(wholes[1])))  # of unknown signs, none is hidden
            if loss.correct is not None:
                sizes = [len(targets[kind]) for kind in of_words]
                hits |= dict(zip(of_words, loss.correct.split_with_sizes(sizes), strict=True))
        return torch.stack(losses).sum(), hits

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        vectors, hits = output.outputs
        if vectors is not None:
            self.scores["retrieval"].update(batch["image_id"], batch["caption"], batch["language"], *vectors)
            if self.num_samples:
                pixels = self.info.pixels(batch["image"])
                self.scores["examples"].update(
                    batch["image_id"], pixels, vectors[0], batch["caption"], batch["text"], vectors[1]
                )
        for kind, right in hits.items():
            if len(right):
                self.scores[f"accuracy/{kind}"].update(right.float().mean(), len(right))

    def overview(self) -> list[Sample]:
        """Return retrieval examples for some pairs, evenly over this process's part of the images."""
        if not self.losses.contrastive:
            return []
        examples = self.scores["examples"]
        assert isinstance(examples, RetrievalExamples)
        return examples.samples(self.num_samples)

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Pairs, and their patches and words, however often the encoder reads them."""
        patches = len(batch["id"]) * self.stem.vision.num_tokens
        return {"examples": float(len(batch["id"])), "tokens": float(patches + int(batch["mask"].sum()))}

    def flops(self, batch: Batch) -> float:
        """Stem, encoder and heads, forward and backward, padding included; what gives the targets is not counted."""
        (rows, words), patches = batch["tokens"].shape, self.stem.vision.num_tokens
        thirds = [len(range(first, rows, 3)) for first in range(3)]
        runs: list[tuple[int, int, int]] = []  # rows, patches and words of each pass of the encoder
        heads = 0
        if self.losses.contrastive:
            runs += [(rows, patches, 0), (rows, 0, words)]
            heads += rows * (self.vision_head.weight.numel() + self.language_head.weight.numel())
        if self.losses.masked:
            runs += zip(thirds, (patches, 0, patches), (0, words, words), strict=True)
            hidden = int(batch["masked"][0].sum()) * (thirds[0] + thirds[2])
            targets = int(
                (batch["targets"][1::3] != IGNORE).sum() + (batch["pair_targets"][2::3] != IGNORE).sum()
            )
            word_head = self.text_head.dense.weight.numel() + self.stem.text.embedding.weight.numel()
            heads += hidden * self.image_head.weight.numel() + targets * word_head
        stem = self.stem.vision.training_flops_per_token() * sum(count * p for count, p, _ in runs)
        encoder = sum(count * (p + w) * training_flops_per_token(self.config, p + w) for count, p, w in runs)
        return float(encoder + stem + 6 * heads)

    # ------------------------------------------------------------------ use

    def predictions(self, inputs: PredictInput, options: RetrievalPredictOptions) -> Iterator[dict[str, Any]]:
        if not self.losses.contrastive:
            raise ConfigError(
                "This model was trained with task.losses.contrastive=0 and compares nothing: train it further with "
                "init_from=RUN/export task.losses.contrastive=1."
            )
        return retrieve(self, inputs, options, images_for, texts_for)
