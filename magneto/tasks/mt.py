"""Machine translation: encoder-decoder, teacher forcing with label smoothing, beam search (paper, section 4.3)."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from magneto.data.translation.dataset import IGNORE
from magneto.data.translation.module import TranslationDataModule
from magneto.inference.beam_search import Hypothesis, beam_search
from magneto.inference.inputs import PredictInput
from magneto.inference.translation import TranslationPredictOptions, one_line, translate
from magneto.metrics.translation import (
    SCORES,
    TranslationScores,
    sacrebleu_bleu,
    write_scores,
    write_translations,
)
from magneto.nn import (
    EncoderDecoder,
    KVCache,
    Linear,
    TokenStem,
    build_backbone,
    chunked_cross_entropy,
    training_flops_per_token,
)
from magneto.tasks.base import Task
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample
from magneto.training.sharding import gathered

log = logging.getLogger("magneto")


@dataclass(frozen=True, kw_only=True)
class MTOptions:
    """Options under `task`, see `conf/task/mt.yaml`."""

    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the target's mass that is spread over the vocabulary, in training; `val/loss` is without it."""
    z_loss: Annotated[float, Ge(0)] = 0.0
    """Weight of the square of the logarithm of the softmax's denominator in the training loss (PaLM: 1e-4)."""
    tie_output: bool = True
    """The table of the target's embeddings is the output layer too."""
    beam: Annotated[int, Ge(1)] = 4
    """Beams of the search on the test split, and of `mode=predict` unless it says otherwise."""
    length_penalty: Annotated[float, Ge(0)] = 1.0
    """Exponent of the length in a hypothesis's score, see magneto/inference/beam_search.py."""
    max_length_ratio: Annotated[float, Gt(0)] = 2.0
    """An output has at most this many times the tokens of its source, and ten more."""
    val_sentences: Annotated[int, Ge(0)] | None = 500
    """Sentences, spread evenly, that are translated greedily at each validation for `val/bleu`, about; null: all."""
    bleu_tokenize: str | None = None
    """sacrebleu's tokenizer of BLEU; null: by the target language, as sacrebleu's command line chooses it."""

    def __post_init__(self) -> None:
        if self.bleu_tokenize is not None:
            sacrebleu_bleu(self.bleu_tokenize)


@dataclass
class DecoderState:
    """State of the decoder between two steps: the encoded sources of its rows, and its cache."""

    memory: Tensor
    memory_mask: Tensor
    cache: KVCache

    def reorder(self, index: Tensor, *, memory: bool = True) -> None:
        """Reorder as `KVCache.reorder`. The memory itself is read in the first step only, and stays as it is."""
        self.cache.reorder(index, memory=memory)
        if memory:
            self.memory_mask = self.memory_mask[index]


class MT(Task):
    """Encoder-decoder over the token ids of `info`.

    Batches hold `source` (B, S) with `source_mask`, `target_in` and `target_out` (B, T), and for evaluation the texts
    `source_text` and `target_text` and the `direction` (B,), an index into `info["directions"]`.
    """

    name = "mt"
    example_input = "input=lines.txt"
    monitor = "val/loss"
    Options = MTOptions
    Data = TranslationDataModule
    PredictOptions = TranslationPredictOptions
    requires: ClassVar = {"architecture": "encoder_decoder"}
    primary_metric = "bleu"
    options: MTOptions
    barred: Tensor

    def build(self) -> None:
        most = self.info.longest_text(self.config.max_positions)
        self.require_positions(
            self.info.longest,
            f"data.max_tokens={self.info.max_tokens}, {self.info.longest} with special tokens and padding,",
            f"set data.max_tokens to at most {most}",
        )
        self.target_tokenizer = self.info.target_text_tokenizer
        self.bos, self.eos = self.target_tokenizer.require("bos"), self.target_tokenizer.require("eos")
        self.source_stem = TokenStem(
            self.info.source_vocab_size, self.config, padding_id=self.info.source_text_tokenizer.pad_id
        )
        if self.info.shared:
            # Not registered under a second name: the state dict and an export hold every tensor once.
            self.__dict__["target_stem"] = self.source_stem
        else:
            self.target_stem = TokenStem(
                self.info.target_vocab_size, self.config, padding_id=self.target_tokenizer.pad_id
            )
        backbone = build_backbone(self.config)
        assert isinstance(backbone, EncoderDecoder)
        self.backbone = backbone
        self.head = (
            None
            if self.options.tie_output
            else Linear(self.config.d_model, self.info.target_vocab_size, roles=("head",), bias=False)
        )
        barred = torch.zeros(self.info.target_vocab_size)
        barred[sorted(self.target_tokenizer.special_ids - {self.eos})] = -torch.inf
        self.register_buffer("barred", barred, persistent=False)
        self.scores["translation"] = TranslationScores(self.info.directions, self.options.bleu_tokenize)

    @property
    def output_weight(self) -> Tensor:
        """(V, D), the output layer."""
        return self.target_stem.embedding.weight if self.head is None else self.head.weight

    # ------------------------------------------------------------------ training and evaluation

    def forward(self, source: Tensor, source_mask: Tensor, target_in: Tensor) -> Tensor:
        """(B, S) and (B, T) token ids -> (B, T, D), the decoder's output before the output layer."""
        hidden: Tensor = self.backbone(
            # Targets are padded on the right, where no real token looks: they need no mask.
            self.source_stem(source),
            self.target_stem(target_in),
            source_mask,
        )
        return hidden

    def step(self, batch: Batch) -> StepOutput:
        """Cross-entropy summed over the target tokens; smoothed in training, and the plain one beside it as `nll`."""
        hidden = self(batch["source"], batch["source_mask"], batch["target_in"])
        loss = chunked_cross_entropy(
            self.at_targets(batch, hidden), self.output_weight, self.at_targets(batch, batch["target_out"]),
            label_smoothing=self.options.label_smoothing if self.training else 0.0,
            z_loss=self.options.z_loss if self.training else 0.0,
        )  # fmt: skip
        weight = (batch["target_out"] != IGNORE).sum()
        return StepOutput(loss.loss_sum, weight, logs={"nll": loss.nll.sum()} if self.training else {})

    def target_mask(self, batch: Batch) -> Tensor:
        mask: Tensor = batch["target_out"] != IGNORE
        return mask

    def search(
        self, source: Tensor, mask: Tensor, *, beam: int, length_penalty: float = 1.0, n_best: int = 1
    ) -> list[list[Hypothesis]]:
        """The `n_best` translations of each row of source (B, S), by beam search; token ids in the target vocabulary."""
        memory = self.backbone.encode(self.source_stem(source), mask)
        limit = (mask.sum(1) * self.options.max_length_ratio + 10).long()
        if self.config.position in ("learned", "sinusoidal", "rotary"):
            limit = limit.clamp(max=self.config.max_positions)
        start = torch.full_like(source[:, 0], self.bos)
        return beam_search(
            self._next_token, DecoderState(memory, mask, KVCache()), start, eos=self.eos, beam=beam,
            max_length=limit, length_penalty=length_penalty, n_best=n_best,
        )  # fmt: skip

    def _next_token(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """(R, 1) tokens -> (R, V) log probabilities of what follows; special tokens but the end have none."""
        hidden = self.backbone.decode(
            self.target_stem(tokens), None, state.memory, state.memory_mask, state.cache
        )
        logits = F.linear(hidden[:, -1], self.output_weight).float()
        return (logits + self.barred).log_softmax(dim=-1)

    def evaluate(self, batch: Batch, output: StepOutput) -> dict[int, str]:
        """Translate: on the test split all by beam search, else some greedily; count for the scores.

        Returns:
            The translations by their rows of the batch.
        """
        testing = bool(self.trainer.testing)
        rows = list(range(len(batch["id"]))) if testing else self._chosen(batch["id"])
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        best: list[list[Hypothesis]] = []
        # The changing shapes of single tokens would have the layers compiled again and again.
        with gathered(self), torch.compiler.set_stance("force_eager"):
            if rows:
                best = self.search(
                    batch["source"][index], batch["source_mask"][index],
                    beam=self.options.beam if testing else 1, length_penalty=self.options.length_penalty,
                )  # fmt: skip
        texts = [
            one_line(self.target_tokenizer.decode(hypotheses[0].tokens)) if hypotheses else ""
            for hypotheses in best
        ]
        self.scores["translation"].update(
            texts, [batch["target_text"][row] for row in rows], batch["id"][index], batch["direction"][index],
            scores=SCORES if testing else ("bleu",),
            sources=[batch["source_text"][row] for row in rows] if testing else None,
        )  # fmt: skip
        return dict(zip(rows, texts, strict=True))

    def _chosen(self, ids: Tensor) -> list[int]:
        """Return the rows of a validation batch that are translated: those of every n-th example of the split."""
        if self.options.val_sentences is None:
            return list(range(len(ids)))
        if not self.options.val_sentences:
            return []
        stride = max(1, round(self.info.pairs["val"] / self.options.val_sentences))
        return [row for row, id in enumerate(ids.tolist()) if id % stride == 0]

    def samples(self, batch: Batch, output: StepOutput, evaluated: dict[int, str]) -> list[Sample]:
        """Return source, reference and hypothesis of what was translated."""
        ids, directions = batch["id"].tolist(), batch["direction"].tolist()
        return [
            {
                "id": f"{ids[row]:08d}",
                "kind": "translation",
                "direction": self.info.directions[directions[row]],
                "source": batch["source_text"][row],
                "reference": batch["target_text"][row],
                "hypothesis": hypothesis,
            }
            for row, hypothesis in evaluated.items()
        ]

    def setup(self, stage: str) -> None:
        """Log once what a user should know of BLEU's tokenizer."""
        scores = self.scores["translation"]
        assert isinstance(scores, TranslationScores)
        for remark in scores.remarks:
            log.warning("%s", remark)
        scores.remarks = []

    def after_evaluation(self, split: str) -> None:
        """Write the translations of the test split into the run's folder: line n of each file belongs together.

        `test.src`, `test.hyp`, `test.ref`: plain text, so that `sacrebleu test.ref -i test.hyp -m bleu chrf ter` gives
        the run's numbers, for Chinese with `-l en-zh`; of several directions also `test/en-fr.src` and so on;
        `test.scores.json`: the scores with sacrebleu's signatures.
        """
        if split != "test":
            return
        scores = self.scores["translation"]
        assert isinstance(scores, TranslationScores)
        lines = scores.lines()
        signatures = scores.signatures()
        for name, signature in signatures.items():
            log.info("test/%s is sacrebleu's, signature %s", name, signature)
        if self.samples_file is None:  # a run has its main process write; mode=test has no folder
            return
        folder = self.samples_file.parent
        write_translations(folder, lines, self.info.directions)
        tested = {name.removeprefix("test/"): value for name, value in self.evaluated.items()}
        write_scores(folder / "test.scores.json", tested, signatures)

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Pairs, and target tokens."""
        return {"examples": float(len(batch["id"])), "tokens": float((batch["target_out"] != IGNORE).sum())}

    def flops(self, batch: Batch) -> float:
        size, source = batch["source"].shape
        target = batch["target_in"].shape[1]
        encoder = source * training_flops_per_token(self.config, source, side="encoder")
        decoder = training_flops_per_token(self.config, target, side="decoder", memory_length=source)
        return float(size * (encoder + target * (decoder + 6 * self.output_weight.numel())))

    def predictions(
        self, inputs: PredictInput, options: TranslationPredictOptions
    ) -> Iterator[dict[str, Any]]:
        return translate(self, inputs, options, self.options.beam, self.options.length_penalty)

    def tokenizer_json(self) -> str | None:
        """The shared tokenizer as a `tokenizer.json`; two of them stand in config.json alone."""
        return self.info.source_tokenizer if self.info.shared else None
