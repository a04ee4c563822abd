"""Speech recognition with a transducer, the paper's recogniser (section 6).

    log-mel frames -> stem -> encoder -> joint network with an LSTM predictor -> characters or subwords

It needs no more frames than tokens, and its predictor makes each token depend on those before it; both are what
CTC lacks.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from magneto.errors import ConfigError
from magneto.inference.asr import Decoder
from magneto.inference.transducer import transducer_beam_search, transducer_greedy
from magneto.nn.transducer import Joint, Predictor
from magneto.tasks.asr import ASR, ASROptions
from magneto.training.module import Batch, StepOutput


@dataclass(frozen=True, kw_only=True)
class AsrTransducerOptions(ASROptions):
    """Options under `task`, see `conf/task/asr_transducer.yaml`."""

    beam_width: Annotated[int, Ge(1)] = 4
    """Hypotheses kept by the beam search."""
    max_per_frame: Annotated[int, Ge(1)] = 10
    """Tokens of one frame at most, of the greedy search."""
    predictor_width: Annotated[int, Ge(1)] | None = None
    """Of the embeddings and the LSTM; None: d_model."""
    predictor_layers: Annotated[int, Ge(1)] = 2
    """Layers of the LSTM (paper, section 6)."""
    predictor_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """On the input of the LSTM and between its layers."""
    joint_width: Annotated[int, Ge(1)] | None = None
    """Width inside the joint network; None: d_model."""
    ctc_weight: Annotated[float, Ge(0)] = 0.3
    """Weight of an auxiliary CTC loss on the encoder (Boyer et al., ASRU 2021), added to the transducer's."""

    def __post_init__(self) -> None:
        """Check that layers with a loss of their own have a head."""
        super().__post_init__()
        if self.intermediate_losses and not self.ctc_weight:
            raise ConfigError(
                f"task.intermediate_losses={self.intermediate_losses}: these are CTC losses, whose weight is "
                "task.ctc_weight=0. Set task.intermediate_losses to 0, or give them a weight."
            )


class AsrTransducer(ASR):
    """Transducer over the tokens of `info["tokenizer"]`; class 0 is the blank. Batches are those of `ASR`."""

    name = "asr_transducer"
    Options = AsrTransducerOptions
    options: AsrTransducerOptions

    def build(self) -> None:
        super().build()
        del self.scores["probe/blank_ratio"]  # of CTC
        if not self.options.ctc_weight:
            self.head = None
        options, width = self.options, self.config.d_model
        predictor_width = options.predictor_width or width
        self.predictor = Predictor(
            self.tokenizer.vocab_size, predictor_width, options.predictor_layers, options.predictor_dropout
        )
        self.joint = Joint(width, predictor_width, options.joint_width or width, self.tokenizer.vocab_size)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, mels) and (B,) -> states of the encoder (B, T', d_model) and their lengths (B,), T' = ceil(T / 4)."""
        return self.encode(features, lengths)[0], self.stem.output_lengths(lengths)

    def step(self, batch: Batch) -> StepOutput:
        """Loss summed over the utterances, with that of CTC; the weight is their number of target tokens."""
        lengths, targets = self.stem.output_lengths(batch["feature_lengths"]), batch["targets"]
        hidden, between = self.encode(batch["features"], batch["feature_lengths"])
        loss = self.joint.loss(
            hidden, self.predictor.prefixes(targets), targets, lengths, batch["target_lengths"]
        ).sum()
        logs: dict[str, Tensor] = {}
        if self.options.ctc_weight:
            outputs = [*between, self.log_probs(hidden)]
            ctc, logs = self.ctc_loss(outputs if self.training else outputs[-1:], lengths, batch)
            logs = {**logs, "transducer_loss": loss.detach(), "ctc_loss": ctc.detach()}
            loss = loss + self.options.ctc_weight * ctc
        return StepOutput(loss, batch["target_lengths"].sum(), outputs=(hidden.detach(), lengths), logs=logs)

    def flops(self, batch: Batch) -> float:
        rows, frames = (
            len(batch["id"]),
            int(self.stem.output_lengths(torch.tensor(batch["features"].shape[1]))),
        )
        prefixes = batch["targets"].shape[1] + 1
        read = rows * prefixes * self.predictor.training_flops_per_token()
        return super().flops(batch) + read + self.joint.training_flops(rows, frames, prefixes)

    def evaluate(self, batch: Batch, output: StepOutput) -> list[str]:
        """Count errors, and return the transcripts."""
        return self.count_errors(batch, output)

    def transcripts(self, outputs: Tensor, lengths: Tensor, decoder: Decoder, beam_width: int) -> list[str]:
        model = self.predictor, self.joint, outputs, lengths
        if decoder == "greedy":
            tokens = transducer_greedy(*model, max_per_frame=self.options.max_per_frame)
        else:
            best = transducer_beam_search(*model, beam_width=beam_width)
            tokens = [hypotheses[0].tokens if hypotheses else [] for hypotheses in best]
        return [self.tokenizer.decode(ids) for ids in tokens]
