"""Masked language modelling (BERT, Devlin et al., arXiv 1810.04805): tokens with some of them hidden -> the hidden ones.

    tokens --> stem --> encoder --> hidden states --chosen places only--> dense, activation, norm --> tied embedding

The head is BERT's, and RoBERTa's in fairseq (the paper does not describe its own). Logits exist at the chosen places
only (15 % of all), and in the loss never for all of these at once.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from magneto.config.validate import from_mapping
from magneto.data.text.module import IGNORE, TextDataModule
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError, MagnetoError
from magneto.inference.inputs import PredictInput
from magneto.nn import BackboneConfig, Linear, TokenStem, build_backbone, build_norm, training_flops_per_token
from magneto.nn.loss import chunked_cross_entropy
from magneto.tasks.base import TaskModule
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample

MASK = "[MASK]"
SAMPLE_TOKENS = 64
SCORE_BATCH = 64
_MASK_WITH_SPACE = re.compile(rf"\s*{re.escape(MASK)}")


@dataclass(frozen=True, kw_only=True)
class MLMOptions:
    """What `conf/task/mlm.yaml` sets under `task`: what is masked, and how, is the data's business (`data.masking`)."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What `predict.*` may set."""

    top_k: int = 5
    """Candidates for each mask, the most probable first."""
    score: bool = False
    """Do not fill masks: give the pseudo-perplexity of each sentence instead."""

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"predict.top_k={self.top_k}: must be 1 or more.")


class Perplexity(MeanMetric):
    """exp of the mean negative log-likelihood (nats) of all tokens."""

    def compute(self) -> Tensor:
        """A scalar."""
        return super().compute().exp()


class MaskedLMHead(nn.Module):
    """(N, d_model) -> (N, d_model), norm(activation(dense(x))): what is compared with the embedding of each token.

    `output_bias` (V,) belongs to the logits. The activation is the backbone's, GELU where that is a gated one.
    """

    def __init__(self, vocab_size: int, config: BackboneConfig) -> None:
        super().__init__()
        self.dense = Linear(config.d_model, config.d_model, roles=("head",))
        self.norm = build_norm(config, config.d_model)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size))
        self._approximate = "tanh" if config.activation == "gelu_tanh" else "none"
        self._relu = config.activation == "relu"

    def forward(self, x: Tensor) -> Tensor:
        h = self.dense(x)
        h = F.relu(h) if self._relu else F.gelu(h, approximate=self._approximate)
        out: Tensor = self.norm(h)
        return out

    def reset_parameters(self) -> None:
        """The bias starts at zero; dense layer and norm draw their own."""
        nn.init.zeros_(self.output_bias)


class MLM(TaskModule):
    """Cross-entropy of the chosen tokens.

    Batches hold `tokens` (B, T) with masks applied, `targets` (B, T) with the original token at chosen places and IGNORE
    elsewhere, and `mask` (B, T) bool where there is padding.
    """

    name = "mlm"
    example_input = 'prompt="A word is [MASK] here."'
    monitor = "val/loss"
    Options = MLMOptions
    Data = TextDataModule
    primary_metric = "accuracy"
    options: MLMOptions

    def build(self) -> None:
        """Stem, encoder, head; accuracy and perplexity of the chosen tokens."""
        if self.config.architecture != "encoder":
            raise ConfigError(
                f"backbone.architecture={self.config.architecture}: task=mlm needs architecture=encoder."
            )
        block_size = self.info.block_size
        self.require_positions(block_size, f"data.block_size={block_size}", "lower data.block_size")
        self.tokenizer = TextTokenizer.from_json(self.info.tokenizer)
        self.tokenizer.require("mask")
        self.stem = TokenStem(self.info.vocab_size, self.config)
        self.backbone = build_backbone(self.config)
        self.head = MaskedLMHead(self.info.vocab_size, self.config)
        self.scores["accuracy"] = MeanMetric()
        self.scores["perplexity"] = Perplexity()

    def forward(self, tokens: Tensor, mask: Tensor | None, places: Tensor) -> Tensor:
        """(B, T) int64, (B, T) bool or None, (B, T) bool with N places -> (N, d_model) in the order of the places."""
        hidden: Tensor = self.backbone(self.stem(tokens), mask)
        out: Tensor = self.head(hidden[places])
        return out

    def logits(self, states: Tensor) -> Tensor:
        """What `forward` gives, (N, d_model) -> fp32 (N, V)."""
        return (self.stem.logits(states) + self.head.output_bias).float()

    def step(self, batch: Batch) -> StepOutput:
        """Loss summed over the chosen tokens; the weight is their number."""
        chosen = batch["targets"] != IGNORE
        states = self(batch["tokens"], batch.get("mask"), chosen)
        found = chunked_cross_entropy(
            states,
            self.stem.embedding.weight,
            batch["targets"][chosen],
            bias=self.head.output_bias,
            correct=not self.training,
        )
        weight = torch.tensor(float(len(states)), device=states.device)
        return StepOutput(found.loss_sum, weight, outputs=(states.detach(), found))

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        """Accuracy and likelihood of the batch's chosen tokens."""
        _, found = output.outputs
        if len(found.nll):
            self.scores["accuracy"].update(found.correct.float().mean(), output.weight)
            self.scores["perplexity"].update(found.nll.mean(), output.weight)

    def samples(self, batch: Batch, output: StepOutput) -> list[Sample]:
        """The beginning of the batch's first block: with masks, filled, and as it was.

        What is filled in is the most probable token at every chosen place, also where the original was shown.
        """
        size = min(SAMPLE_TOKENS, batch["tokens"].size(1))
        tokens, targets = batch["tokens"][0], batch["targets"][0]
        if "mask" in batch:
            size = min(size, int(batch["mask"][0].sum()))
        tokens, targets = tokens[:size], targets[:size]
        chosen = targets != IGNORE
        states = output.outputs[0][: int(chosen.sum())]  # places come row by row
        filled = tokens.clone()
        filled[chosen] = self.logits(states).argmax(-1)
        reference = torch.where(chosen, targets, tokens)
        return [
            {
                "id": f"{int(batch['id'][0]):08d}",
                "kind": "filled",
                "text": self._with_masks(tokens.tolist()),
                "filled": self.tokenizer.decode(filled.tolist()),
                "reference": self.tokenizer.decode(reference.tolist()),
            }
        ]

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Blocks and the tokens that the encoder reads."""
        mask = batch.get("mask")
        tokens = batch["tokens"].numel() if mask is None else int(mask.sum())
        return {"examples": float(len(batch["id"])), "tokens": float(tokens)}

    def flops(self, batch: Batch) -> float:
        """Encoder over all places, head over the chosen ones, forward and backward, padding included."""
        rows, length = batch["tokens"].shape
        head = self.head.dense.weight.numel() + self.stem.embedding.weight.numel()
        chosen = int((batch["targets"] != IGNORE).sum())
        return float(rows * length * training_flops_per_token(self.config, length) + 6 * chosen * head)

    def tokenizer_json(self) -> str | None:
        """As the data has it."""
        return str(self.info.tokenizer)

    # ------------------------------------------------------------------ use

    def predict(self, inputs: PredictInput, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Fill the `[MASK]`s of each sentence, or with `predict.score=true` give its pseudo-perplexity.

        All masks of a sentence are filled at once, each without knowing what the others become, as in training. A line
        without a mask, an empty one to be scored, or one that is too long gets an empty answer.
        """
        chosen = from_mapping(PredictOptions, options, "predict")
        nothing: dict[str, Any] = {"filled": "", "candidates": []}
        if chosen.score:
            nothing = {"pseudo_perplexity": None, "nats": None, "tokens": 0}
        for number, line in enumerate(inputs.lines(), 1):
            try:
                yield self._score(line) if chosen.score else self._fill(line, chosen.top_k)
            except MagnetoError as why:
                inputs.unanswered(number, why)
                yield {"text": "", "input": line, **nothing}

    def _fill(self, line: str, top_k: int) -> dict[str, Any]:
        ids = self._framed(self.encode(line))
        places = ids == self.tokenizer.require("mask")
        if not places.any():
            raise ConfigError(
                f"{line[:60]!r} has no {MASK}. Write {MASK} where a word is to be filled in, or say predict.score=true "
                "for the pseudo-perplexity of whole sentences."
            )
        probabilities = self.logits(self(ids[None], None, places[None])).softmax(-1)
        ordinary = probabilities.clone()
        ordinary[:, sorted(self.tokenizer.special_ids)] = -1.0
        best = ordinary.topk(min(top_k, ordinary.size(1)), dim=-1)
        candidates = [
            [
                {"token": self._plain(index), "probability": round(probability, 4)}
                for index, probability in zip(row, values, strict=True)
            ]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        ids[places] = best.indices[:, 0]
        filled = self.tokenizer.decode(ids.tolist())
        shown = "; ".join(
            ", ".join(f"{json.dumps(c['token'], ensure_ascii=False)} {c['probability']:.3f}" for c in row)
            for row in candidates
        )
        return {"text": f"{filled}\t{shown}", "input": line, "filled": filled, "candidates": candidates}

    def _score(self, line: str) -> dict[str, Any]:
        """Pseudo-perplexity (Salazar et al., arXiv 1910.14659): every token is masked once, alone."""
        text = self.tokenizer.encode(line)
        if not text:
            raise ConfigError(f"{line[:60]!r} has no token: there is nothing to score.")
        ids = self._framed(text)
        places = [
            place for place, index in enumerate(ids.tolist()) if index not in self.tokenizer.special_ids
        ]
        if not places:
            raise ConfigError(f"{line[:60]!r} has no token of the vocabulary.")
        total = 0.0
        for start in range(0, len(places), SCORE_BATCH):
            rows = torch.tensor(places[start : start + SCORE_BATCH], device=self.device)
            copies = ids.repeat(len(rows), 1)
            hidden = F.one_hot(rows, len(ids)).bool()
            copies[hidden] = self.tokenizer.require("mask")
            log_probs = self.logits(self(copies, None, hidden)).log_softmax(-1)
            total -= float(log_probs.gather(1, ids[rows, None]).double().sum())
        value = float(torch.tensor(total / len(places), dtype=torch.float64).exp())
        return {
            "text": f"{value:.2f}\t{line}",
            "input": line,
            "pseudo_perplexity": value,
            "nats": total,
            "tokens": len(places),
        }

    def encode(self, line: str) -> list[int]:
        """Ids of a sentence in which `[MASK]` stands for the mask, whatever the tokenizer calls it."""
        first, *rest = _MASK_WITH_SPACE.split(line)
        ids = self.tokenizer.encode(first) if first else []
        for part in rest:
            ids.append(self.tokenizer.require("mask"))
            if part.strip():
                ids += self._continued(part)
        return ids

    def _continued(self, part: str) -> list[int]:
        """Ids of what follows a mask: without a space before it where the text has none ("[MASK].")."""
        if not part[0].isspace():
            letter = self.tokenizer.encode("a")
            both = self.tokenizer.encode("a" + part)
            if both[: len(letter)] == letter:
                return both[len(letter) :]
        return self.tokenizer.encode(part)

    def _framed(self, ids: list[int]) -> Tensor:
        """(T,) ids between `<s>` and `</s>`, as the blocks of training begin and documents end."""
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        framed = [*([] if bos is None else [bos]), *ids, *([] if eos is None else [eos])]
        longest = self.info.block_size
        if len(framed) > longest:
            raise ConfigError(
                f"{len(framed)} tokens with <s> and </s>; the model was trained on blocks of {longest}. Shorten the line."
            )
        return torch.tensor(framed, device=self.device)

    def _with_masks(self, ids: list[int]) -> str:
        """The text with `[MASK]` in it and no other special token."""
        mask, parts, part = self.tokenizer.require("mask"), [], list[int]()
        for index in ids:
            if index == mask:
                parts.append(part)
                part = []
            else:
                part.append(index)
        return f" {MASK} ".join(self.tokenizer.decode(ids) for ids in [*parts, part]).strip()

    def _plain(self, index: int) -> str:
        """A token as text, white space around a word left out; `token()` where it stands for no text of its own."""
        text = self.tokenizer.decode([index])
        return text.strip() or text or self.tokenizer.token(index)
