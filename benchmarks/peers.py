"""What a user would pick instead of magneto for each task: a transformers model, trained by the Hugging Face Trainer.

Each peer has the width and depth of magneto's default, sees the same prepared corpus through the same batches, and is
scored by the same metric on the same split. Schedule, warmup, weight decay and clipping are the Trainer's usual ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

from magneto.data.collate import IGNORE
from magneto.data.module import DataModule
from magneto.data.tokenizers.ctc import CTCTokenizer
from magneto.data.tokenizers.text import TextTokenizer
from magneto.metrics.error_rate import ErrorRate
from magneto.metrics.retrieval import RetrievalScores
from magneto.metrics.translation import TranslationScores
from magneto.tasks.base import Task

Batch = dict[str, Any]


@dataclass
class Peer:
    """A model of transformers for one task, its inputs from a batch of magneto's data, and its score.

    Args:
        ours: magneto's trained task: its shape, and for BEiT the tokenizer whose codes are the targets.
        data: the prepared data that both learn from.
    """

    ours: Task
    data: DataModule
    name: ClassVar[str]
    rates: ClassVar[tuple[float, float, float]]
    """Learning rates to choose from on validation data."""

    def model(self) -> nn.Module:
        """Return a fresh model, initialised by transformers."""
        raise NotImplementedError

    def inputs(self, batch: Batch) -> Batch:
        """Return the arguments of the model's forward; it returns an output with `loss`."""
        raise NotImplementedError

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> float:
        """Return the task's metric over a split, as magneto measures it."""
        raise NotImplementedError

    @property
    def info(self) -> Any:
        """Of the prepared data."""
        return self.data.info

    @property
    def shape(self) -> dict[str, int]:
        """Width, depth and heads of magneto's model, in the words of transformers' configurations."""
        config = self.ours.config
        return {
            "hidden_size": config.d_model,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "intermediate_size": config.ffn_width,
        }


class GPT2(Peer):
    """Causal LM: bits per byte, each scored token once."""

    name, rates = "GPT-2", (5e-4, 1e-3, 2e-3)

    def model(self) -> nn.Module:
        config = self.ours.config
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=self.info.vocab_size,
                n_positions=self.info.block_size,
                n_embd=config.d_model,
                n_layer=config.num_layers,
                n_head=config.num_heads,
                n_inner=config.ffn_width,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=None,
                eos_token_id=None,
            )
        )

    def inputs(self, batch: Batch) -> Batch:
        # GPT-2's own labels are moved by one; ours are moved already.
        return {"input_ids": batch["tokens"], "shift_labels": batch["targets"], "labels": batch["targets"]}

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> float:
        nats, size = 0.0, 0
        for batch in batches:
            logits = model(input_ids=batch["tokens"]).logits.float()
            nats += float(F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum"))
            size += int(batch["bytes"].sum())
        return nats / size / float(torch.log(torch.tensor(2.0)))


class BERT(Peer):
    """Masked LM: accuracy over the masks of magneto's evaluation, in percent."""

    name, rates = "BERT", (5e-4, 1e-3, 2e-3)

    def model(self) -> nn.Module:
        return hf.BertForMaskedLM(
            hf.BertConfig(
                vocab_size=self.info.vocab_size,
                max_position_embeddings=self.info.block_size + 2,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                **self.shape,
            )
        )

    def inputs(self, batch: Batch) -> Batch:
        mask = {"attention_mask": batch["mask"]} if "mask" in batch else {}
        return {"input_ids": batch["tokens"], "labels": batch["targets"], **mask}

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> float:
        right = chosen = 0
        for batch in batches:
            hidden = batch["targets"] != IGNORE
            answers = model(**self.inputs(batch)).logits.argmax(-1)
            right += int((answers == batch["targets"])[hidden].sum())
            chosen += int(hidden.sum())
        return 100 * right / chosen


class Marian(Peer):
    """Translation: BLEU of beam search with magneto's beam."""

    name, rates = "Marian", (3e-4, 1e-3, 2e-3)

    def model(self) -> nn.Module:
        config, info = self.ours.config, self.info
        source, target = (
            TextTokenizer.from_json(text) for text in (info.source_tokenizer, info.target_tokenizer)
        )
        self.target = target
        depth = {"encoder_layers": config.num_layers, "decoder_layers": config.decoder_layers}
        sides = {
            f"{side}_{key}": value
            for side in ("encoder", "decoder")
            for key, value in {"attention_heads": config.num_heads, "ffn_dim": config.ffn_width}.items()
        }
        return hf.MarianMTModel(
            hf.MarianConfig(
                vocab_size=source.vocab_size,
                decoder_vocab_size=target.vocab_size,
                share_encoder_decoder_embeddings=bool(info.shared),
                max_position_embeddings=1024,
                d_model=config.d_model,
                dropout=0.1,
                pad_token_id=target.require("pad"),
                bos_token_id=target.require("bos"),
                eos_token_id=target.require("eos"),
                decoder_start_token_id=target.require("bos"),
                forced_eos_token_id=None,
                **depth,
                **sides,
            )
        )

    def inputs(self, batch: Batch) -> Batch:
        return {
            "input_ids": batch["source"],
            "attention_mask": batch["source_mask"].long(),
            "decoder_input_ids": batch["target_in"],
            "labels": batch["target_out"],
        }

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> float:
        assert isinstance(model, hf.MarianMTModel)
        scores = TranslationScores(self.info.directions)
        for batch in batches:
            longest = int(batch["source_mask"].sum(1).max() * self.ours.options.max_length_ratio) + 10
            found = model.generate(
                input_ids=batch["source"],
                attention_mask=batch["source_mask"].long(),
                num_beams=self.ours.options.beam,
                max_new_tokens=longest,
            )
            special = self.target.special_ids
            texts = [self.target.decode([t for t in row if t not in special]) for row in found.tolist()]
            scores.update(texts, batch["target_text"], batch["id"], batch["direction"], scores=("bleu",))
        return scores.compute()["bleu"]


class Beit(Peer):
    """BEiT: accuracy of the codes of hidden patches, in percent; the codes are magneto's tokenizer's."""

    name, rates = "BEiT", (5e-4, 1e-3, 2e-3)

    def model(self) -> nn.Module:
        info = self.info
        return hf.BeitForMaskedImageModeling(
            hf.BeitConfig(
                vocab_size=self.ours.head.out_features,
                image_size=info.image_size,
                patch_size=info.patch_size,
                num_channels=info.channels,
                use_mask_token=True,
                use_shared_relative_position_bias=True,
                **self.shape,
            )
        )

    def inputs(self, batch: Batch) -> Batch:
        with torch.no_grad():
            labels = self.ours.targets(batch["image"], batch["masked"])
        return {"pixel_values": batch["image"], "bool_masked_pos": batch["masked"], "labels": labels}

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> float:
        right = hidden = 0
        for batch in batches:
            inputs = self.inputs(batch)
            answers = model(**inputs).logits.argmax(-1)[batch["masked"]]
            right += int((answers == inputs["labels"]).sum())
            hidden += len(answers)
        return 100 * right / hidden


class Wav2Vec2BERT(Peer):
    """Speech: CER of greedy CTC from the same log-mel features, two frames joined to one as this model expects them."""

    name, rates = "Wav2Vec2-BERT, CTC", (3e-4, 1e-3, 2e-3)

    def model(self) -> nn.Module:
        self.tokenizer = CTCTokenizer.from_dict(self.info.tokenizer)
        shape = self.shape
        return hf.Wav2Vec2BertForCTC(
            hf.Wav2Vec2BertConfig(
                vocab_size=self.tokenizer.vocab_size,
                feature_projection_input_dim=2 * self.info.feature_dim,
                output_hidden_size=shape["hidden_size"],
                classifier_proj_size=shape["hidden_size"],
                pad_token_id=0,  # CTC's blank
                bos_token_id=None,
                eos_token_id=None,
                ctc_loss_reduction="mean",
                ctc_zero_infinity=True,
                layerdrop=0.0,
                apply_spec_augment=False,  # the batches are augmented already
                **shape,
            )
        )

    def inputs(self, batch: Batch) -> Batch:
        features = batch["features"]
        features = F.pad(features, (0, 0, 0, features.size(1) % 2))
        lengths = (batch["feature_lengths"] + 1) // 2
        frames = torch.arange(features.size(1) // 2, device=features.device)
        targets = batch["targets"]
        real = torch.arange(targets.size(1), device=targets.device) < batch["target_lengths"][:, None]
        return {
            "input_features": features.reshape(len(features), len(frames), -1),
            "attention_mask": (frames < lengths[:, None]).long(),
            "labels": targets.masked_fill(~real, IGNORE),
        }

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> float:
        errors = ErrorRate()
        for batch in batches:
            inputs = self.inputs(batch)
            best = model(**inputs).logits.argmax(-1)
            rows = zip(best.tolist(), inputs["attention_mask"].sum(1).tolist(), strict=True)
            texts = [self.tokenizer.decode(_collapsed(row[:length])) for row, length in rows]
            errors.update(batch["text"], texts, batch["id"])
        return errors.compute()["cer"]


class DualEncoder(Peer):
    """Vision-language: the mean of R@1 both ways of a ViT and a BERT, in percent."""

    name, rates = "ViT and BERT, contrastive", (3e-4, 1e-3, 2e-3)

    def model(self) -> nn.Module:
        info = self.info
        vision = hf.ViTConfig(
            image_size=info.image_size, patch_size=info.patch_size, num_channels=info.channels, **self.shape
        )
        text = hf.BertConfig(
            vocab_size=info.vocab_size, max_position_embeddings=max(64, info.max_tokens), **self.shape
        )
        config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(
            vision, text, projection_dim=self.shape["hidden_size"]
        )
        return hf.VisionTextDualEncoderModel(config)

    def inputs(self, batch: Batch) -> Batch:
        return {
            "input_ids": batch["tokens"],
            "attention_mask": batch["mask"].long(),
            "pixel_values": batch["image"],
            "return_loss": True,
        }

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> float:
        scores = RetrievalScores([], self.shape["hidden_size"])
        for batch in batches:
            out = model(**self.inputs(batch))
            scores.update(
                batch["image_id"], batch["caption"], batch["language"], out.image_embeds, out.text_embeds
            )
        return 100 * scores.compute()["r1"]


def _collapsed(row: list[int]) -> list[int]:
    """Return the labels of a CTC path: repetitions and blanks taken away."""
    return [label for before, label in zip([0, *row], row, strict=False) if label not in (0, before)]


PEERS: dict[str, type[Peer]] = {
    "causal_lm": GPT2,
    "mlm": BERT,
    "mt": Marian,
    "beit": Beit,
    "asr": Wav2Vec2BERT,
    "vl": DualEncoder,
}
