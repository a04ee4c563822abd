"""Speech recognition with CTC (Graves et al. 2006): log-mel frames -> convolutional stem -> encoder -> characters.

The paper's own recogniser (section 6) is a transducer, `task=asr_transducer`; CTC keeps its encoder, where the placements
differ, and leaves out the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import soundfile
import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torchmetrics import MeanMetric

from magneto.data.io.audio import BadAudio, load_audio
from magneto.data.speech.module import SpeechDataModule
from magneto.data.tokenizers.ctc import CTCTokenizer
from magneto.errors import ConfigError
from magneto.inference.asr import AsrPredictOptions, Decoder, transcribe
from magneto.inference.ctc import BLANK, ctc_beam_search, ctc_blank_ratio, ctc_greedy
from magneto.inference.inputs import PredictInput
from magneto.metrics.error_rate import ErrorRate, align, mark_errors
from magneto.nn import AudioStem, Encoder, Linear, VGGStem, training_flops_per_token
from magneto.tasks.base import Task
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample


@dataclass(frozen=True, kw_only=True)
class ASROptions:
    """Options under `task`, see `conf/task/asr.yaml`."""

    decoder: Decoder = "greedy"
    """greedy (best path) or beam (prefix beam search), for evaluation and `mode=predict`."""
    beam_width: Annotated[int, Ge(1)] = 16
    """Prefixes kept by the beam search."""
    intermediate_losses: Annotated[int, Ge(0)] = 0
    """Layers, evenly spread, whose outputs learn to transcribe too (intermediate CTC: Lee and Watanabe 2021)."""
    intermediate_weight: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Share of their mean loss in the training loss."""
    self_conditioning: bool = False
    """Whether later layers read what these layers transcribe (self-conditioned CTC: Nozaki and Komatsu 2021)."""

    def __post_init__(self) -> None:
        """Check that there is something to read."""
        if self.self_conditioning and not self.intermediate_losses:
            raise ConfigError(
                "task.self_conditioning=true: no layer transcribes before the last one. Set task.intermediate_losses to 1 "
                "or more."
            )


MAX_PLAYED_S = 30.0
"""Longer recordings are not among the examples that loggers play."""


class ASR(Task):
    """CTC over the tokens of `info["tokenizer"]`; class 0 is the blank.

    Batches hold `features` (B, T, mels), `feature_lengths` (B,), `targets` (B, U) with their `target_lengths` (B,), and for
    evaluation the reference `text` and `language` of each utterance.
    """

    name = "asr"
    example_input = "input=recording.wav"
    monitor = "val/cer"
    Options = ASROptions
    Data = SpeechDataModule
    PredictOptions = AsrPredictOptions
    requires: ClassVar = {"architecture": "encoder"}
    reads = "file"
    options: ASROptions
    backbone: Encoder

    def build(self) -> None:
        self.tokenizer = CTCTokenizer.from_dict(self.info.tokenizer)
        stem = VGGStem if self.config.vgg_stem else AudioStem
        self.stem = stem(self.info.features["num_mels"], self.config)
        self.backbone = Encoder(self.config)
        self.head: Linear | None = Linear(self.config.d_model, self.tokenizer.vocab_size, roles=("head",))
        self.condition: Linear | None = None
        if self.options.self_conditioning:
            self.condition = Linear(self.tokenizer.vocab_size, self.config.d_model, roles=("head",))
        self.scores["errors"] = ErrorRate(groups=self.info.languages)
        self.scores["probe/blank_ratio"] = MeanMetric()

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, mels) and (B,) -> fp32 log probabilities (B, T', V) and their lengths (B,), T' = ceil(T / 4)."""
        return self._log_probs(features, lengths)[-1], self.stem.output_lengths(lengths)

    @property
    def intermediate_layers(self) -> tuple[int, ...]:
        """Indices of the layers with a loss of their own: of 6 layers and two losses, 1 and 3 (after a third and two)."""
        depth, count = self.config.num_layers, self.options.intermediate_losses
        after = {round(depth * part / (count + 1)) for part in range(1, count + 1)}
        return tuple(sorted(layer - 1 for layer in after if 0 < layer < depth))

    def _log_probs(self, features: Tensor, lengths: Tensor) -> list[Tensor]:
        """Log probabilities (B, T', V) after each layer with a loss of its own, where they matter, and after the last."""
        hidden, outputs = self.encode(features, lengths)
        return [*outputs, self.log_probs(hidden)]

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the states after the last layer (B, T', d_model), and what layers with a loss of their own transcribe.

        The latter are log probabilities (B, T', V); there are none where they do not matter.
        """
        hidden, mask = self.stem(features, lengths)
        layers = self.intermediate_layers if self.training or self.condition is not None else ()
        if not layers:
            return self.backbone(hidden, mask), []
        norm = self.backbone.final_norm or nn.Identity()  # the one head reads what the one norm makes
        outputs: list[Tensor] = []

        def transcribe_between(x: Tensor) -> Tensor:
            outputs.append(self.log_probs(norm(x)))
            if self.condition is None:
                return x
            return x + self.condition(outputs[-1].exp()).to(x.dtype)  # (B, T', d_model)

        return self.backbone(hidden, mask, between=dict.fromkeys(layers, transcribe_between)), outputs

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Return what CTC reads, fp32 (..., V)."""
        assert self.head is not None, "a task without a loss of CTC has no head for it"
        # Autocast would compute the softmax in fp32 anyway; the loss must have it so on every device.
        return self.head(hidden).float().log_softmax(dim=-1)

    def step(self, batch: Batch) -> StepOutput:
        """CTC loss summed over the utterances; the weight is their number of target tokens."""
        lengths = self.stem.output_lengths(batch["feature_lengths"])
        outputs = self._log_probs(batch["features"], batch["feature_lengths"])
        loss, logs = self.ctc_loss(outputs if self.training else outputs[-1:], lengths, batch)
        return StepOutput(
            loss, batch["target_lengths"].sum(), outputs=(outputs[-1].detach(), lengths), logs=logs
        )

    def ctc_loss(
        self, outputs: list[Tensor], lengths: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the log probabilities of several layers, the last one's weight apart, and what to log.

        A text that does not fit into the frames of its recording has no gradient.
        """
        *intermediate, loss = (
            F.ctc_loss(
                log_probs.transpose(0, 1), batch["targets"], lengths, batch["target_lengths"],
                blank=BLANK, reduction="sum", zero_infinity=True,
            )
            for log_probs in outputs
        )  # fmt: skip
        logs = {}
        if intermediate:
            logs["ctc_loss_last_layer"] = loss.detach()
            share = self.options.intermediate_weight
            loss = (1 - share) * loss + share * torch.stack(intermediate).mean()
        return loss, logs

    def evaluate(self, batch: Batch, output: StepOutput) -> list[str]:
        """Count errors and the share of blanks (near 1 the model has not learnt), and return the transcripts."""
        log_probs, lengths = output.outputs
        self.scores["probe/blank_ratio"].update(ctc_blank_ratio(log_probs, lengths), lengths.sum())
        return self.count_errors(batch, output)

    def count_errors(self, batch: Batch, output: StepOutput) -> list[str]:
        """Return the transcripts of a batch, whose errors are counted."""
        outputs, lengths = output.outputs
        found = self.transcripts(outputs, lengths, self.options.decoder, self.options.beam_width)
        self.scores["errors"].update(batch["text"], found, batch["id"], self._languages(batch))
        return found

    def transcripts(self, outputs: Tensor, lengths: Tensor, decoder: Decoder, beam_width: int) -> list[str]:
        """Return the texts of a batch, from what `forward` returns.

        Args:
            outputs: (B, T', V) log probabilities.
            lengths: (B,) int64, frames of each row.
            decoder: greedy or beam.
            beam_width: hypotheses kept by the beam search.
        """
        if decoder == "greedy":
            tokens = ctc_greedy(outputs, lengths)
        else:
            best = ctc_beam_search(outputs, lengths, beam_width=beam_width)
            tokens = [hypotheses[0].tokens if hypotheses else [] for hypotheses in best]
        return [self.tokenizer.decode(ids) for ids in tokens]

    def samples(self, batch: Batch, output: StepOutput, evaluated: list[str]) -> list[Sample]:
        """Return reference, hypothesis, and their difference marked."""
        return [
            {
                "id": f"{int(id):08d}",
                "kind": "transcript",
                "language": language,
                "reference": reference,
                "hypothesis": hypothesis,
                "marked": mark_errors(reference, hypothesis),
                "errors": sum(edit.op != "equal" for edit in align(reference, hypothesis, "character")),
            }
            for id, language, reference, hypothesis in zip(
                batch["id"], self._languages(batch), batch["text"], evaluated, strict=True
            )
        ]

    def recording(self, sample: Sample) -> Path | None:
        """Write the recording below the run's folder, once, as Ogg Vorbis: a tenth of the size of its samples."""
        assert self.samples_file is not None
        file = self.samples_file.parent / "samples" / f"{sample['id']}.ogg"
        if file.exists():
            return file
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rate = int(self.info.features["sample_rate"])
        try:
            audio = data.audio(int(sample["id"]))
            if audio is None:
                return None
            samples = load_audio(audio, rate, longest=MAX_PLAYED_S).numpy()
            file.parent.mkdir(exist_ok=True)
            soundfile.write(file, samples, rate)
        except (BadAudio, OSError, RuntimeError):  # moved since it was prepared, too long, a full disk
            return None
        return file

    def _languages(self, batch: Batch) -> list[str]:
        return [self.info.languages[index] for index in batch["language"].tolist()]

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Utterances and seconds of sound."""
        seconds = float(batch["feature_lengths"].sum()) * self.info.features["hop_ms"] / 1000
        return {"examples": float(len(batch["id"])), "audio_seconds": seconds}

    def flops(self, batch: Batch) -> float:
        frames = int(self.stem.output_lengths(torch.tensor(batch["features"].shape[1])))
        per_frame = training_flops_per_token(self.config, frames) + self.stem.training_flops_per_token()
        if self.head is not None:
            per_frame += 6 * self.head.weight.numel()
        if self.condition is not None:
            per_frame += 6 * self.condition.weight.numel() * len(self.intermediate_layers)
        return float(len(batch["id"]) * frames * per_frame)

    def predictions(self, inputs: PredictInput, options: AsrPredictOptions) -> Iterator[dict[str, Any]]:
        decoder, width = (
            options.decoder or self.options.decoder,
            options.beam_width or self.options.beam_width,
        )
        return transcribe(self, inputs, decoder, width)

    def tokenizer_json(self) -> str | None:
        """The subwords as the `tokenizers` library reads them; characters stand in config.json alone."""
        subwords = self.info.tokenizer["subwords"]
        return None if subwords is None else str(subwords)
