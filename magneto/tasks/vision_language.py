"""Vision and language in one encoder (BEiT-3, Wang et al., arXiv 2208.10442): images, texts, and pairs of the two.

    images --patches--+                                 +--hidden patches--> code of each
                        +--> multiway encoder (shared ----+--hidden words----> the word
    texts ---tokens-----+    attention, own experts)      +--[CLS], <s>------> vectors that are alike for a pair

Two losses, together or one at a time: masked data modelling as BEiT-3 is pre-trained (a third of each batch gives
images alone, a third texts alone, a third pairs), and contrastive learning as it is fine-tuned for retrieval.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from magneto.config.validate import from_mapping
from magneto.data.collate import IGNORE, pad_texts
from magneto.data.corpora.text.base import why_unusable
from magneto.data.image.dataset import evaluation_batch, user_images
from magneto.data.image_text.module import ImageTextDataModule
from magneto.data.module import DataModule
from magneto.data.tokenizers.encode import encode
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.text import readable_caption
from magneto.errors import ConfigError
from magneto.inference.inputs import PredictInput
from magneto.metrics.retrieval import RetrievalScores
from magneto.nn import (
    Linear,
    PatchStem,
    TokenStem,
    VisionLanguageStem,
    build_backbone,
    training_flops_per_token,
)
from magneto.nn.contrastive import contrastive_loss
from magneto.nn.loss import chunked_cross_entropy
from magneto.nn.multiway import Experts
from magneto.tasks.masked_image import MaskedImages, TargetOptions
from magneto.tasks.mlm import MaskedLMHead
from magneto.tasks.visual_tokenizer import require_patches
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample
from magneto.visualize.retrieval_examples import Gallery, nearest
from magneto.visualize.retrieval_grid import FOUND, Answer, images_for, texts_for

LARGEST_SCALE = 100.0  # of similarities; without a bound it grows until training breaks (CLIP, 2.5)
KINDS = ("images", "texts", "pair_images", "pair_texts")
PREDICT_BATCH = 64
FEW = 16  # pairs of a batch below which contrastive learning has little to compare
SMALLEST_BATCH = (
    6  # the last two batches of an epoch share what is left evenly: each then has 3 examples or more
)

log = logging.getLogger("magneto")


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Weight of each loss; 0 switches it off."""

    masked: float = 1.0
    contrastive: float = 1.0

    def __post_init__(self) -> None:
        if min(self.masked, self.contrastive) < 0 or self.masked + self.contrastive == 0:
            raise ConfigError(
                f"task.losses: masked={self.masked} and contrastive={self.contrastive} must be 0 or more, and not both 0."
            )


@dataclass(frozen=True, kw_only=True)
class VLOptions(TargetOptions):
    """What `conf/task/vl.yaml` sets under `task`; what is hidden is the data's business (`data.masking`)."""

    losses: Mapping[str, float] = field(default_factory=dict)
    """See `Losses`."""
    embedding_width: int | None = None
    """Of the vectors that are compared; null: that of the backbone."""
    temperature: float = 0.07
    """That similarities are divided by at first; it is learnt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 / LARGEST_SCALE <= self.temperature <= 1:
            raise ConfigError(
                f"task.temperature={self.temperature}: must lie between {1 / LARGEST_SCALE} and 1."
            )
        if self.embedding_width is not None and self.embedding_width < 1:
            raise ConfigError(f"task.embedding_width={self.embedding_width}: must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What `predict.*` may set: what to look for among the images of `input=`, or for each of them."""

    query: str | float | Sequence[str | float] | None = None
    """A sentence, or several."""
    captions: str | float | None = None
    """A file with a caption a line."""
    top_k: int = FOUND

    def __post_init__(self) -> None:
        if (self.query is None) == (self.captions is None):
            raise ConfigError(
                'task=vl looks for the images of input= that fit a sentence (predict.query="a red apple"), or for the '
                "lines of a file that fit each image (predict.captions=FILE): say one of the two."
            )
        if self.top_k < 1:
            raise ConfigError(f"predict.top_k={self.top_k}: must be 1 or more.")


class VisionLanguage(MaskedImages):
    """Masked data modelling and contrastive learning. Batches are those of `magneto.data.image_text.module`."""

    name = "vl"
    monitor, mode = "val/r1", "max"
    Options = VLOptions
    Data = ImageTextDataModule
    options: VLOptions

    @classmethod
    def prepare(cls, config: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
        """With masked modelling, the tokenizer of the images."""
        assert isinstance(data, ImageTextDataModule)
        settings = {key: value for key, value in config["task"].items() if key not in ("_target_", "name")}
        options = from_mapping(VLOptions, settings, "task")
        losses, size = from_mapping(Losses, options.losses, "task.losses"), data.images.batch_size
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
        if data.masking is None:
            raise ConfigError(
                "data.masking is missing: task.losses.masked hides patches and words. Say data.masking={} for BEiT-3's "
                "shares, or task.losses.masked=0."
            )
        if size < SMALLEST_BATCH:
            raise ConfigError(
                f"data.batch_size={size}: with task.losses.masked it must be at least "
                f"{SMALLEST_BATCH}, so that every batch holds images, texts and pairs."
            )
        return cls.prepare_target(options, data.images)

    def build(self) -> None:
        """Stem, encoder, the heads that the losses need; retrieval over the whole gallery, accuracy of what is hidden."""
        self._check()
        self.tokenizer = TextTokenizer.from_json(self.info.tokenizer)
        self.losses = from_mapping(Losses, self.options.losses, "task.losses")
        if self.losses.contrastive:
            self.example_input = 'input=images/ predict.query="a red apple"'
        config, width = self.config, self.options.embedding_width or self.config.d_model
        size, patch, channels = self.info.image_size, self.info.patch_size, self.info.channels
        self.stem = VisionLanguageStem(
            PatchStem(size, patch, channels, config.d_model, mask_token=True),
            TokenStem(self.info.vocab_size, config),
            config,
        )
        self.backbone = build_backbone(config)
        self.gallery = Gallery()
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
        else:
            self.monitor, self.mode = "val/loss", "min"

    def _check(self) -> None:
        for key, wanted in (("architecture", "encoder"), ("position", "none")):
            if (value := getattr(self.config, key)) != wanted:
                why = "" if key == "architecture" else ": each modality has learnt positions of its own"
                raise ConfigError(f"backbone.{key}={value}: task={self.name} needs {key}={wanted}{why}.")
        if self.info.max_tokens > self.config.max_positions:
            raise ConfigError(
                f"data.max_tokens={self.info.max_tokens}: the backbone has max_positions={self.config.max_positions}. "
                "Lower the one or raise the other."
            )
        require_patches(self.name, self.info)

    def _leave_out_pairs(self) -> None:
        """Without pairs and masks, what only these use is not trained: processes would wait for its gradients."""
        assert self.stem.vision.mask_token is not None
        self.stem.vision.mask_token.requires_grad_(False)
        for module in self.backbone.modules():
            if isinstance(module, Experts) and module.fusion is not None:
                module.fusion.requires_grad_(False)

    # ------------------------------------------------------------------ the model

    def encode(
        self,
        images: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """Images (B, C, S, S), texts (B, T) with their mask, or pairs -> (B, T', d_model), and how many are vision."""
        x, split = self.stem(images, tokens, masked)
        if images is not None:
            mask = None if mask is None else F.pad(mask, (split, 0), value=True)
        hidden: Tensor = self.backbone(x, mask, split=None if self.config.multiway == "none" else split)
        return hidden, split

    def image_vectors(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> fp32 (B, E) of length 1."""
        return F.normalize(self.vision_head(self.encode(images)[0][:, 0]).float(), dim=-1)

    def text_vectors(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T) int64 and bool -> fp32 (B, E) of length 1."""
        return F.normalize(self.language_head(self.encode(None, tokens, mask)[0][:, 0]).float(), dim=-1)

    # ------------------------------------------------------------------ learning

    def step(self, batch: Batch) -> StepOutput:
        """The losses, each a mean of its own kind, summed over the pairs of the batch."""
        weight = torch.tensor(float(len(batch["id"])), device=batch["image"].device)
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
        made: dict[str, Tensor] = {}
        wanted: dict[str, Tensor] = {}
        for rows, with_image, with_text in (
            (slice(0, None, 3), True, False), (slice(1, None, 3), False, True), (slice(2, None, 3), True, True)
        ):  # fmt: skip
            part = {key: value[rows] for key, value in batch.items() if isinstance(value, Tensor)}
            if not len(part["id"]):
                continue
            pair = with_image and with_text
            hidden, split = self.encode(
                part["image"] if with_image else None,
                part["pair_tokens" if pair else "masked_tokens"] if with_text else None,
                part["mask"] if with_text else None,
                part["masked"] if with_image else None,
            )
            if with_image:
                kind = "pair_images" if pair else "images"
                made[kind] = self.image_head(hidden[:, 1:split][part["masked"]]).float()
                wanted[kind] = self.wanted(part["image"], part["masked"])
            if with_text:
                kind = "pair_texts" if pair else "texts"
                targets = part["pair_targets" if pair else "targets"]
                made[kind] = self.text_head(hidden[:, split:][targets != IGNORE])
                wanted[kind] = targets[targets != IGNORE]
        patches, words = ([kind for kind in made if kind.endswith(ending)] for ending in ("images", "texts"))
        hits: dict[str, Tensor] = {}
        losses = []
        if patches:
            outputs, answers = torch.cat([made[k] for k in patches]), torch.cat([wanted[k] for k in patches])
            losses.append(self.patch_loss(outputs, answers) / len(answers))
            if not self.training and self.target is not None:
                hits |= {kind: made[kind].argmax(-1) == wanted[kind] for kind in patches}
        if words:
            answers = torch.cat([wanted[kind] for kind in words])
            found = chunked_cross_entropy(
                torch.cat([made[kind] for kind in words]),
                self.stem.text.embedding.weight,
                answers,
                bias=self.text_head.output_bias,
                correct=not self.training,
            )
            losses.append(found.loss_sum / max(1, len(answers)))  # of unknown signs, none is hidden
            if found.correct is not None:
                sizes = [len(wanted[kind]) for kind in words]
                hits |= dict(zip(words, found.correct.split_with_sizes(sizes), strict=True))
        return torch.stack(losses).sum(), hits

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        """Keep the batch's vectors, and count what was right of the hidden."""
        vectors, hits = output.outputs
        if vectors is not None:
            self.scores["retrieval"].update(batch["image_id"], batch["caption"], batch["language"], *vectors)
        for kind, right in hits.items():
            if len(right):
                self.scores[f"accuracy/{kind}"].update(right.float().mean(), len(right))

    def samples(self, batch: Batch, output: StepOutput) -> list[Sample]:
        """Nothing yet: what is found is known when the whole gallery was seen."""
        vectors, _ = output.outputs
        if vectors is not None:
            pixels = self.info.pixels(batch["image"])
            self.gallery.add(
                batch["image_id"], pixels, vectors[0], batch["caption"], batch["text"], vectors[1]
            )
        return []

    def overview(self) -> list[Sample]:
        """What is found for some pairs, evenly over this process's part of the gallery."""
        gallery, self.gallery = self.gallery, Gallery()
        return gallery.samples(self.num_samples) if self.losses.contrastive else []

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
        stem = self.stem.vision.projection.weight.numel() * sum(count * p for count, p, _ in runs)
        encoder = sum(count * (p + w) * training_flops_per_token(self.config, p + w) for count, p, w in runs)
        return float(encoder + 6 * (heads + stem))

    def tokenizer_json(self) -> str | None:
        """As the data has it."""
        return str(self.info.tokenizer)

    # ------------------------------------------------------------------ use

    def predict(self, inputs: PredictInput, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The best images of `input=` for each sentence of `predict.query`, or the best lines of `predict.captions` for
        each image, with a drawing of them.
        """
        if not self.losses.contrastive:
            raise ConfigError(
                "This model was trained with task.losses.contrastive=0 and compares nothing: train it further with "
                "init_from=RUN/export task.losses.contrastive=1."
            )
        if inputs.path is None:
            raise ConfigError('prompt=: say input= with images and predict.query="a red apple" instead.')
        chosen = from_mapping(PredictOptions, options, "predict")
        if chosen.captions is not None:
            given = PredictInput(path=str(chosen.captions), key="predict.captions")
            lines = list(self._captions(given))
            if not lines:
                raise ConfigError(f"predict.captions={chosen.captions}: holds no caption.")
            yield from self._texts_of_images(inputs.path, lines, chosen.top_k)
        else:
            # A number on the command line is a sentence too.
            queries = list(chosen.query) if isinstance(chosen.query, list | tuple) else [chosen.query]
            yield from self._images_of_texts(inputs.path, [str(query) for query in queries], chosen.top_k)

    def _captions(self, given: PredictInput) -> Iterator[str]:
        """The lines of the file but empty ones and, named in the log, those that cannot be read."""
        for number, line in enumerate(given.lines(), start=1):
            if not line.strip():
                continue
            if reason := why_unusable(line):
                log.warning("%s=%s, line %d: %s, skipped", given.key, given.path, number, reason)
                continue
            yield line

    def _images_of_texts(self, path: str, queries: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
        vectors = self._vectors_of(queries, "predict.query")
        files, pixels, vision = [], [], []
        for batch_files, batch_pixels, batch_vectors in self._vectors_of_images(path):
            files += batch_files
            pixels += batch_pixels
            vision.append(batch_vectors)
        gallery = torch.cat(vision)
        for query, vector in zip(queries, vectors, strict=True):
            found = nearest(vector, gallery, count)
            shown = [Answer(pixels[place], alike) for place, alike in found[:FOUND]]
            listed = [{"input": files[place], "similarity": round(alike, 4)} for place, alike in found]
            lines = [f"{one['similarity']:.3f}\t{one['input']}" for one in listed]
            yield {
                "text": "\n".join([query, *lines]),
                "query": query,
                "found": listed,
                "image": images_for(query, shown),
            }

    def _texts_of_images(self, path: str, lines: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
        texts = self._vectors_of(lines, "predict.captions")
        for files, pixels, vectors in self._vectors_of_images(path):
            for file, image, vector in zip(files, pixels, vectors, strict=True):
                found = nearest(vector, texts, count)
                shown = [Answer(lines[place], alike) for place, alike in found[:FOUND]]
                listed = [{"caption": lines[place], "similarity": round(alike, 4)} for place, alike in found]
                printed = [f"{one['similarity']:.3f}\t{one['caption']}" for one in listed]
                yield {
                    "text": "\n".join([file, *printed]),
                    "input": file,
                    "found": listed,
                    "image": texts_for(image, shown),
                }

    def _vectors_of(self, texts: Sequence[str], key: str) -> Tensor:
        """(texts, E) on the CPU. Raises `ConfigError`, naming `key`, for a text that cannot be read."""
        if not texts:
            raise ConfigError(f"{key}: is empty. Say what the image is to show.")
        clean = [readable_caption(text, self.info.lowercase, key) for text in texts]
        longest, pad = self.info.max_tokens, self.tokenizer.pad_id
        encoded = encode(self.tokenizer, clean, [None] * len(clean), longest)
        if encoded.truncated:
            log.warning(
                "%s: %d were longer than %d tokens and lost their end", key, encoded.truncated, longest
            )
        ids = np.split(encoded.tokens.astype(np.int64), encoded.start[1:-1])
        found = []
        for start in range(0, len(ids), PREDICT_BATCH):
            tokens, mask = pad_texts(ids[start : start + PREDICT_BATCH], pad or 0, longest)
            found.append(self.text_vectors(tokens.to(self.device), mask.to(self.device)).cpu())
        return torch.cat(found)

    def _vectors_of_images(self, path: str) -> Iterator[tuple[list[str], list[np.ndarray], Tensor]]:
        """Batches of files, their pixels (C, S, S) uint8 as the model sees them, and their vectors (n, E) on the CPU."""
        given = user_images(path, self.info.channels, self.info.svg_side)
        while batch := list(islice(given, PREDICT_BATCH)):
            images = evaluation_batch([image for _, image in batch], self.info)
            vectors = self.image_vectors(images.to(self.device)).cpu()
            yield [str(file) for file, _ in batch], list(self.info.pixels(images).numpy()), vectors
