"""Causal language modelling (GPT): tokens -> embeddings -> decoder -> the next token (paper, section 4.1)."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from magneto.config.validate import from_mapping
from magneto.data.text.module import IGNORE, TextDataModule
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError, MagnetoError
from magneto.inference.inputs import PredictInput
from magneto.inference.sampling import Continuation, Decoding, generate, stream
from magneto.nn import (
    KVCache,
    Linear,
    TokenStem,
    build_backbone,
    chunked_cross_entropy,
    training_flops_per_token,
)
from magneto.tasks.base import TaskModule
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample

HELD_OUT_PROMPT = 32  # tokens of a held-out block, half of it at most, that a sample goes on from

log = logging.getLogger("magneto")


@dataclass(frozen=True, kw_only=True)
class CausalLMOptions:
    """What `conf/task/causal_lm.yaml` sets under `task`."""

    tie_embeddings: bool = True
    """The table of the embeddings is the output layer too."""
    label_smoothing: float = 0.0
    """Share of the target's mass that is spread over the vocabulary, in training; evaluation is without it."""
    prompts: tuple[str, ...] = ()
    """What the samples of each evaluation go on from; the others go on from held-out text."""
    sample: Mapping[str, Any] = field(default_factory=dict)
    """How samples are drawn: fields of `magneto.inference.sampling.Decoding`."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"task.label_smoothing={self.label_smoothing}: must be at least 0 and below 1.")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        from_mapping(Decoding, self.sample, "task.sample")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Decoding):
    """Options of `mode=predict`, in the configuration's group `predict`: those of `Decoding`, and one more."""

    batch: int = 16
    """Prompts gone on with at once, where there are several."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1:
            raise ConfigError(f"predict.batch={self.batch}: must be 1 or more.")


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


class CausalLM(TaskModule):
    """A decoder that predicts each token from those before it.

    Batches hold `tokens` and `targets` (B, T), the targets being the next tokens or IGNORE, and the UTF-8 `bytes` (B,)
    of the scored targets. Padding is on the right, where no real token can see it: the decoder needs no mask.
    """

    name = "causal_lm"
    example_input = 'prompt="Once upon a time"'
    monitor = "val/bits_per_byte"
    Options = CausalLMOptions
    Data = TextDataModule
    options: CausalLMOptions

    def build(self) -> None:
        """Stem, decoder, output layer; scores."""
        if self.config.architecture != "decoder":
            raise ConfigError(
                f"backbone.architecture={self.config.architecture}: task=causal_lm needs architecture=decoder."
            )
        block_size = self.info.block_size
        self.require_positions(block_size, f"data.block_size={block_size}", "lower data.block_size")
        self.tokenizer = TextTokenizer.from_json(self.info.tokenizer)
        self.stem = TokenStem(self.info.vocab_size, self.config)
        self.backbone = build_backbone(self.config)
        self.head = None
        if not self.options.tie_embeddings:
            self.head = Linear(self.config.d_model, self.info.vocab_size, roles=("head",), bias=False)
        self.scores["text"] = TextScores()
        self._sampled = False

    @property
    def output_weight(self) -> Tensor:
        """(V, d_model): the output layer."""
        return self.stem.embedding.weight if self.head is None else self.head.weight

    @property
    def context(self) -> int:
        """Tokens that generation can look back at."""
        return self.config.max_positions

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """(B, T) -> hidden states (B, T, d_model); `mask` (B, T) only for padding on the left."""
        hidden: Tensor = self.backbone(self.stem(tokens), mask, cache=cache)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d_model) -> fp32 (..., V)."""
        return F.linear(hidden, self.output_weight).float()

    def next_logits(self, tokens: Tensor, mask: Tensor | None, cache: KVCache) -> Tensor:
        """What `magneto.inference.sampling` asks for: (B, T) new tokens -> (B, V) fp32 logits of what follows the last."""
        return self.logits(self(tokens, mask, cache)[:, -1])

    def step(self, batch: Batch) -> StepOutput:
        """Cross-entropy summed over the scored tokens."""
        hidden, targets = self(batch["tokens"]), batch["targets"]
        scored = targets != IGNORE
        loss = chunked_cross_entropy(
            hidden[scored], self.output_weight, targets[scored],
            label_smoothing=self.options.label_smoothing if self.training else 0.0,
        )  # fmt: skip
        return StepOutput(loss.loss_sum, scored.sum(), outputs=loss.nll)

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        """Sums of the batch."""
        self.scores["text"].update(output.outputs.double().sum(), output.weight, batch["bytes"].sum())

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Blocks and their scored tokens."""
        return {"examples": float(len(batch["id"])), "tokens": float((batch["targets"] != IGNORE).sum())}

    def flops(self, batch: Batch) -> float:
        """Decoder and output layer, forward and backward, padding included."""
        size, length = batch["tokens"].shape
        per_token = training_flops_per_token(self.config, length) + 6 * self.output_weight.numel()
        return float(size * length * per_token)

    # ------------------------------------------------------------------ samples

    def on_validation_epoch_start(self) -> None:
        """Samples are drawn once in an evaluation."""
        self._sampled = False

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self._sampled = False

    def samples(self, batch: Batch, output: StepOutput) -> list[Sample]:
        """Continuations of the prompts of the options, then of the beginnings of blocks of the first batch."""
        if self._sampled or not self.trainer.is_global_zero:
            return []
        self._sampled = True
        shown: list[Sample] = [
            {"id": f"prompt-{number:02d}", "kind": "continuation", "prompt": prompt, "reference": None}
            for number, prompt in enumerate(self.options.prompts[: self.num_samples])
        ]
        prompts = [self.encode_prompt(sample["prompt"]) for sample in shown]
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
            found = generate(self, self.tokenizer, prompts, settings)
        return [
            sample | {"continuation": continuation.text}
            for sample, continuation in zip(shown, found, strict=True)
        ]

    # ------------------------------------------------------------------ use

    def encode_prompt(self, text: str) -> list[int]:
        """The text as the beginning of a document: after the token that ends the document before, if there is one."""
        start = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        ids = [*start, *self.tokenizer.encode(text)]
        if not ids:
            raise ConfigError(
                "prompt: is empty, and the tokenizer has no token for the beginning of a document."
            )
        return ids

    def predict(self, inputs: PredictInput, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Go on with one prompt, shown as it is written, or with several, batch by batch.

        A prompt that is longer than the context loses its beginning, and is named in the log.

        Raises:
            MagnetoError: an unknown or impossible option.
        """
        settings = from_mapping(PredictOptions, options, "predict")
        if any("\\n" in stop for stop in settings.stop):
            log.warning(
                "predict.stop holds a backslash and an n, which is no line break. In bash, a line break is written "
                "predict.stop=$'\\n'."
            )
        if inputs.prompts is not None and len(inputs.prompts) == 1:
            yield from self._stream(inputs.prompts[0], settings)
            return
        numbered = enumerate(inputs.lines(), start=1)
        while lines := list(islice(numbered, settings.batch)):
            prompts: dict[int, list[int]] = {}
            for number, text in lines:
                try:
                    prompts[number] = self._prompt(text, number)
                except MagnetoError as why:
                    inputs.unanswered(number, why)
            places = [number - 1 for number in prompts]
            found = generate(self, self.tokenizer, list(prompts.values()), settings, places) if places else []
            answers = dict(zip(prompts, found, strict=True))
            yield from (self._answer(text, answers.get(number)) for number, text in lines)

    def _stream(self, prompt: str, settings: Decoding) -> Iterator[dict[str, Any]]:
        begun = self._prompt(prompt, 1)
        yield {"piece": prompt}
        first = True
        for piece in stream(self, self.tokenizer, [begun], settings):
            if piece.text:
                yield {"piece": self._after(prompt, piece.text) if first else piece.text}
                first = False
            if piece.finished is not None:
                yield self._answer(prompt, piece.finished)

    def _answer(self, prompt: str, found: Continuation | None) -> dict[str, Any]:
        """A result; an empty one for a prompt that cannot be gone on with."""
        if found is None:
            return {"text": "", "prompt": prompt, "continuation": "", "tokens": 0, "reason": None}
        continuation = self._after(prompt, found.text)
        return {
            "text": prompt + continuation, "prompt": prompt, "continuation": continuation,
            "tokens": len(found.tokens), "reason": found.reason,
        }  # fmt: skip

    def _after(self, prompt: str, text: str) -> str:
        """The text, without the space that a prompt ends with where the tokenizer dropped it there."""
        bare = prompt.rstrip()
        dropped = bare != prompt and self.tokenizer.encode(bare) == self.tokenizer.encode(prompt)
        return text.removeprefix(" ") if dropped else text

    def _prompt(self, text: str, number: int) -> list[int]:
        ids = self.encode_prompt(text)
        if len(ids) > self.context:
            log.warning(
                "line %d of the input has %d tokens, the context holds %d: its beginning is left out",
                number, len(ids), self.context,
            )  # fmt: skip
        return ids

    def tokenizer_json(self) -> str | None:
        """The tokenizer as a `tokenizer.json`."""
        return str(self.info.tokenizer)
