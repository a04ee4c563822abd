"""Causal language modelling (GPT): tokens -> embeddings -> decoder -> the next token (paper, section 4.1)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor
from torchmetrics import Metric

from magneto.config.validate import from_mapping
from magneto.data.text.module import IGNORE, TextDataModule
from magneto.data.tokenizers.text import TextTokenizer
from magneto.inference.causal_lm import CausalLMPredictOptions, continue_prompts, encode_prompt
from magneto.inference.inputs import PredictInput
from magneto.inference.sampling import Decoding, generate
from magneto.nn import (
    KVCache,
    Linear,
    StaticKVCache,
    TokenStem,
    build_backbone,
    chunked_cross_entropy,
    training_flops_per_token,
)
from magneto.tasks.base import Task
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample
from magneto.training.sharding import gathered

HELD_OUT_PROMPT = 32  # tokens of a held-out block, half of it at most, that a sample continues


@dataclass(frozen=True, kw_only=True)
class CausalLMOptions:
    """Options under `task`, see `conf/task/causal_lm.yaml`."""

    tie_embeddings: bool = True
    """The table of the embeddings is the output layer too."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the target's mass that is spread over the vocabulary, in training; evaluation is without it."""
    z_loss: Annotated[float, Ge(0)] = 0.0
    """Weight of the square of the logarithm of the softmax's denominator in the training loss (PaLM: 1e-4)."""
    document_mask: bool = False
    """In blocks of several documents (data.documents=pack) a token attends to its own document alone."""
    prompts: tuple[str, ...] = ()
    """Prompts of the samples of each evaluation; the other samples continue held-out text."""
    sample: Mapping[str, Any] = field(default_factory=dict)
    """Sampling of these: fields of `magneto.inference.sampling.Decoding`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        from_mapping(Decoding, self.sample, "task.sample")


class TextScores(Metric):
    """Perplexity and bits per byte of a whole split, from sums: independent of batching and of the processes.

    Bits per byte are comparable across tokenizers that lose no text, perplexities are not: a token may be a letter or a
    word.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    nats: Tensor
    tokens: Tensor
    bytes: Tensor

    def __init__(self, **kwargs: Any) -> None:
        """`kwargs` go to torchmetrics."""
        super().__init__(**kwargs)
        for name, kind in (("nats", torch.float64), ("tokens", torch.int64), ("bytes", torch.int64)):
            self.add_state(name, default=torch.zeros((), dtype=kind), dist_reduce_fx="sum")

    def update(self, nats: Tensor, tokens: Tensor, bytes: Tensor) -> None:
        """Sums over a batch: negative log-likelihood of the scored tokens, their number, the bytes they stand for."""
        self.nats += nats.double()
        self.tokens += tokens
        self.bytes += bytes

    def compute(self) -> dict[str, Tensor]:
        """`perplexity` and `bits_per_byte`; nan where nothing was scored."""
        return {
            "perplexity": (self.nats / self.tokens).exp(),
            "bits_per_byte": self.nats / math.log(2) / self.bytes,
        }


class CausalLM(Task):
    """A decoder that predicts each token from those before it.

    Batches hold `tokens` and `targets` (B, T), the targets being the next tokens or IGNORE, and the UTF-8 `bytes` (B,)
    of the scored targets. Padding is on the right, where no real token can see it: the decoder needs no mask.
    """

    name = "causal_lm"
    example_input = 'prompt="Once upon a time"'
    monitor = "val/bits_per_byte"
    Options = CausalLMOptions
    Data = TextDataModule
    PredictOptions = CausalLMPredictOptions
    requires: ClassVar = {"architecture": "decoder"}
    options: CausalLMOptions

    def build(self) -> None:
        block_size = self.info.block_size
        self.require_positions(block_size, f"data.block_size={block_size}", "lower data.block_size")
        self.tokenizer = TextTokenizer.from_json(self.info.tokenizer)
        if self.options.document_mask:
            self.tokenizer.require("eos")
        self.stem = TokenStem(self.info.vocab_size, self.config)
        self.backbone = build_backbone(self.config)
        self.head = None
        if not self.options.tie_embeddings:
            self.head = Linear(self.config.d_model, self.info.vocab_size, roles=("head",), bias=False)
        self.scores["text"] = TextScores()

    @property
    def output_weight(self) -> Tensor:
        """(V, d_model): the output layer."""
        return self.stem.embedding.weight if self.head is None else self.head.weight

    @property
    def context(self) -> int:
        """Tokens that generation can look back at."""
        return self.config.max_positions

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, cache: KVCache | StaticKVCache | None = None
    ) -> Tensor:
        """(B, T) -> hidden states (B, T, d_model); `mask` (B, T) only for padding on the left, or of documents."""
        return self.backbone(self.stem(tokens), mask, cache=cache)

    def documents(self, tokens: Tensor) -> Tensor:
        """Return the number of each token's document in its block, from 1: (B, T) int64. `</s>` ends a document."""
        ends = tokens.eq(self.tokenizer.eos_id or 0)
        return ends.cumsum(1) - ends.long() + 1

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d_model) -> fp32 (..., V)."""
        return F.linear(hidden, self.output_weight).float()

    def next_logits(self, tokens: Tensor, mask: Tensor | None, cache: KVCache | StaticKVCache) -> Tensor:
        """Next token, for `magneto.inference.sampling`: (B, T) new tokens -> (B, V) fp32 logits of what follows the last."""
        return self.logits(self(tokens, mask, cache)[:, -1])

    def step(self, batch: Batch) -> StepOutput:
        """Cross-entropy summed over the scored tokens."""
        tokens, targets = batch["tokens"], batch["targets"]
        hidden = self(tokens, self.documents(tokens) if self.options.document_mask else None)
        loss = chunked_cross_entropy(
            self.at_targets(batch, hidden), self.output_weight, self.at_targets(batch, targets),
            label_smoothing=self.options.label_smoothing if self.training else 0.0,
            z_loss=self.options.z_loss if self.training else 0.0,
        )  # fmt: skip
        return StepOutput(loss.loss_sum, (targets != IGNORE).sum(), outputs=loss.nll)

    def target_mask(self, batch: Batch) -> Tensor:
        mask: Tensor = batch["targets"] != IGNORE
        return mask

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        self.scores["text"].update(output.outputs.double().sum(), output.weight, batch["bytes"].sum())

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Blocks and their scored tokens."""
        return {"examples": float(len(batch["id"])), "tokens": float((batch["targets"] != IGNORE).sum())}

    def flops(self, batch: Batch) -> float:
        size, length = batch["tokens"].shape
        per_token = training_flops_per_token(self.config, length) + 6 * self.output_weight.numel()
        return float(size * length * per_token)

    # ------------------------------------------------------------------ samples

    def samples(self, batch: Batch, output: StepOutput, evaluated: None) -> list[Sample]:
        """Return continuations of the prompts of the options and of held-out blocks, of the first batch alone."""
        if not self.first_batch:
            return []
        with gathered(self):
            return self._continuations(batch) if self.trainer.is_global_zero else []

    def _continuations(self, batch: Batch) -> list[Sample]:
        shown: list[Sample] = [
            {"id": f"prompt-{index:02d}", "kind": "continuation", "prompt": prompt, "reference": None}
            for index, prompt in enumerate(self.options.prompts[: self.num_samples])
        ]
        prompts = [encode_prompt(self.tokenizer, sample["prompt"]) for sample in shown]
        settings = from_mapping(Decoding, self.options.sample, "task.sample")
        for row in range(min(self.num_samples - len(shown), len(batch["id"]))):
            tokens = batch["tokens"][row]
            tokens = (tokens if "mask" not in batch else tokens[batch["mask"][row]]).tolist()
            cut = min(HELD_OUT_PROMPT, -(-len(tokens) // 2))
            prompts.append(tokens[:cut])
            rest = tokens[cut : cut + settings.max_new_tokens]
            shown.append(
                {
                    "id": f"text-{int(batch['id'][row]):08d}",
                    "kind": "continuation",
                    "prompt": self.tokenizer.decode(prompts[-1]),
                    "reference": self.tokenizer.decode(rest),
                }
            )
        # Single tokens gain nothing from autocast, and their changing shapes would have layers compiled again and again.
        with torch.autocast(self.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            made = generate(self, self.tokenizer, prompts, settings)
        return [
            sample | {"continuation": continuation.text}
            for sample, continuation in zip(shown, made, strict=True)
        ]

    def predictions(self, inputs: PredictInput, options: CausalLMPredictOptions) -> Iterator[dict[str, Any]]:
        return continue_prompts(self, inputs, options)
