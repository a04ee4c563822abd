"""Masked language modelling (BERT, Devlin et al., arXiv 1810.04805): tokens with some of them hidden -> the hidden ones.

    tokens --> stem --> encoder --> hidden states --chosen positions only--> dense, activation, norm --> tied embedding

The head is BERT's, and RoBERTa's in fairseq (the paper does not describe its own). Logits exist at the chosen positions
only (15 % of all), and in the loss never for all of these at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from magneto.data.text.module import IGNORE, TextDataModule
from magneto.data.tokenizers.text import TextTokenizer
from magneto.inference.inputs import PredictInput
from magneto.inference.masked_lm import MaskedLMPredictOptions, fill_or_score, with_masks
from magneto.nn import BackboneConfig, Linear, TokenStem, build_backbone, build_norm, training_flops_per_token
from magneto.nn.loss import chunked_cross_entropy
from magneto.tasks.base import Task
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample

SAMPLE_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class MLMOptions:
    """Options under `task`, see `conf/task/mlm.yaml`: what is masked, and how, is set by `data.masking`."""


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
        return self.norm(h)

    def reset_parameters(self) -> None:
        """The bias starts at zero; dense layer and norm draw their own."""
        nn.init.zeros_(self.output_bias)


class MLM(Task):
    """Cross-entropy of the chosen tokens.

    Batches hold `tokens` (B, T) with masks applied, `targets` (B, T) with the original token at chosen positions and IGNORE
    elsewhere, and `mask` (B, T) bool where there is padding.
    """

    name = "mlm"
    example_input = 'prompt="A word is [MASK] here."'
    monitor = "val/loss"
    Options = MLMOptions
    Data = TextDataModule
    PredictOptions = MaskedLMPredictOptions
    requires: ClassVar = {"architecture": "encoder"}
    primary_metric = "accuracy"
    options: MLMOptions

    def build(self) -> None:
        block_size = self.info.block_size
        self.require_positions(block_size, f"data.block_size={block_size}", "lower data.block_size")
        self.tokenizer = TextTokenizer.from_json(self.info.tokenizer)
        self.tokenizer.require("mask")
        self.stem = TokenStem(self.info.vocab_size, self.config)
        self.backbone = build_backbone(self.config)
        self.head = MaskedLMHead(self.info.vocab_size, self.config)
        self.scores["accuracy"] = MeanMetric()
        self.scores["perplexity"] = Perplexity()

    def forward(self, tokens: Tensor, mask: Tensor | None, chosen: Tensor) -> Tensor:
        """(B, T) int64, (B, T) bool or None, (B, T) bool with N chosen positions -> (N, d_model) in their order."""
        hidden: Tensor = self.backbone(self.stem(tokens), mask)
        return self.head(hidden[chosen])

    def logits(self, states: Tensor) -> Tensor:
        """Outputs of `forward`, (N, d_model) -> fp32 (N, V)."""
        return (self.stem.logits(states) + self.head.output_bias).float()

    def step(self, batch: Batch) -> StepOutput:
        """Loss summed over the chosen tokens; the weight is their number."""
        hidden = self.backbone(self.stem(batch["tokens"]), batch.get("mask"))
        states = self.head(self.at_targets(batch, hidden))
        loss = chunked_cross_entropy(
            states,
            self.stem.embedding.weight,
            self.at_targets(batch, batch["targets"]),
            bias=self.head.output_bias,
            correct=not self.training,
        )
        weight = torch.full((), float(len(states)), device=states.device)
        return StepOutput(loss.loss_sum, weight, outputs=(states.detach(), loss))

    def target_mask(self, batch: Batch) -> Tensor:
        mask: Tensor = batch["targets"] != IGNORE
        return mask

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        _, loss = output.outputs
        if len(loss.nll):
            self.scores["accuracy"].update(loss.correct.float().mean(), output.weight)
            self.scores["perplexity"].update(loss.nll.mean(), output.weight)

    def samples(self, batch: Batch, output: StepOutput, evaluated: None) -> list[Sample]:
        """The beginning of the batch's first block: with masks, filled, and as it was.

        What is filled in is the most probable token at every chosen position, also where the original was shown.
        """
        size = min(SAMPLE_TOKENS, batch["tokens"].size(1))
        tokens, targets = batch["tokens"][0], batch["targets"][0]
        if "mask" in batch:
            size = min(size, int(batch["mask"][0].sum()))
        tokens, targets = tokens[:size], targets[:size]
        chosen = targets != IGNORE
        states = output.outputs[0][: int(chosen.sum())]  # positions come row by row
        filled = tokens.clone()
        filled[chosen] = self.logits(states).argmax(-1)
        reference = torch.where(chosen, targets, tokens)
        return [
            {
                "id": f"{int(batch['id'][0]):08d}",
                "kind": "filled",
                "text": with_masks(self.tokenizer, tokens.tolist()),
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
        rows, length = batch["tokens"].shape
        head = self.head.dense.weight.numel() + self.stem.embedding.weight.numel()
        chosen = int((batch["targets"] != IGNORE).sum())
        return float(rows * length * training_flops_per_token(self.config, length) + 6 * chosen * head)

    def predictions(self, inputs: PredictInput, options: MaskedLMPredictOptions) -> Iterator[dict[str, Any]]:
        return fill_or_score(self, inputs, options)
