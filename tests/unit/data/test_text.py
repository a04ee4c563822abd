"""The text data module: batches as the tasks expect them, the same everywhere, and skips that are counted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.text.base import Document, TextCorpus
from magneto.data.corpora.text.text_files import TextFilesReader
from magneto.data.text.module import IGNORE, TextDataModule
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import MagnetoError

TEXTS = [f"speech {number}: the war and the naïve peace of {number * 37} people, at length. " * 6
         for number in range(60)]  # fmt: skip
SIDES = ("train",) * 8 + ("val", "test")


class Speeches:
    """A source of plain texts, in which some are bad."""

    def __init__(self, texts: list[str] = TEXTS, sides: tuple[str | None, ...] = SIDES) -> None:
        self.texts, self.sides = texts, sides

    def fingerprint(self) -> dict[str, Any]:
        return {"texts": ascii(self.texts), "sides": list(self.sides)}

    def load(self, data_dir: Path) -> TextCorpus:
        documents = [
            Document(id=str(n), text=text, group=f"group {n // 2}", split=self.sides[n % len(self.sides)])
            for n, text in enumerate(self.texts)
        ]
        return TextCorpus(documents, [Skipped("x", "x.txt", "not UTF-8")], {"version": "1"})


def module(tmp_path: Path, source: Speeches | None = None, **settings: Any) -> TextDataModule:
    arguments: dict[str, Any] = {
        "data_dir": str(tmp_path),
        "tokenizer": {"kind": "byte_bpe", "vocab_size": 300},
        "block_size": 64,
        "batch_size": 4,
        **settings,
    }
    data = TextDataModule({"speeches": source or Speeches()}, **arguments)
    data.prepare()
    data.setup()
    return data


def run(data: TextDataModule, batches: int, **where: int) -> list[dict[str, torch.Tensor]]:
    data.configure_run(batches, **where)
    return list(data.train_dataloader())


def equal(first: list[dict[str, torch.Tensor]], second: list[dict[str, torch.Tensor]]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second, strict=True)
    )


def test_causal_batches_predict_the_next_token(tmp_path):
    data = module(tmp_path)
    row = data.train_set.row
    for batch in run(data, 2 * data.batches_per_epoch()):
        assert set(batch) == {"id", "tokens", "targets", "bytes"}, "packed blocks are full: no mask"
        assert batch["tokens"].shape == batch["targets"].shape == (len(batch["id"]), 64)
        assert torch.equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
        whole = torch.cat([batch["tokens"][:, :1], batch["targets"]], 1).numpy()
        assert all(any((row.tokens(p, 65) == block).all() for p in range(len(row))) for block in whole[:1])
        sizes = batch["bytes"].float() / 64
        assert (sizes - data.info.bytes["train"] / data.info.tokens["train"]).abs().max() < 0.1


def test_epoch_covers_the_text(tmp_path):
    """An epoch covers the text and blocks begin elsewhere in the next."""
    data = module(tmp_path)
    count = data.batches_per_epoch()
    batches = run(data, 2 * count)
    epochs = [batches[:count], batches[count:]]
    for epoch in epochs:
        ids = torch.cat([batch["id"] for batch in epoch])
        assert sorted(ids.tolist()) == list(range(len(data.train_set)))
        seen = torch.cat([batch["targets"] for batch in epoch])
        assert seen.numel() > data.info.tokens["train"] - 64
    blocks = [{tuple(block.tolist()) for batch in epoch for block in batch["targets"]} for epoch in epochs]
    assert not blocks[0] & blocks[1], "the same blocks again: the shift is missing"
    assert data.epoch_of(count - 1) == 0 and data.epoch_of(count) == 1


@pytest.mark.parametrize("kind", ["byte_bpe", "bpe"])
@pytest.mark.parametrize("documents", ["pack", "separate"])
@pytest.mark.parametrize("stride", [None, 16])
def test_evaluation_scores_each_token_once(tmp_path, documents, stride, kind):
    """Evaluation scores every token and byte once."""
    size = {"byte_bpe": 300, "bpe": 80}[kind]
    data = module(
        tmp_path, documents=documents, eval_stride=stride, tokenizer={"kind": kind, "vocab_size": size}
    )
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        scored = [batch["targets"] != IGNORE for batch in batches]
        assert sum(int(places.sum()) for places in scored) == data.info.tokens[split]
        assert sum(int(batch["bytes"].sum()) for batch in batches) == data.info.bytes[split]
        for batch, places in zip(batches, scored, strict=True):
            real = batch.get("mask", torch.ones_like(batch["tokens"], dtype=torch.bool))
            assert not (places & ~real).any() and (batch["tokens"][~real] == 0).all()
            both = places[:, :-1] & real[:, 1:]
            assert (batch["targets"][:, :-1][both] == batch["tokens"][:, 1:][both]).all()
        if stride:
            assert any((batch["targets"][:, 0] == IGNORE).any() for batch in batches), "no context is kept"


def test_separate_documents_are_padded(tmp_path):
    """Separate documents start after an end and are padded."""
    data = module(tmp_path, documents="separate", block_size=128)
    end = data.tokenizer.eos_id
    bounds = set(data.train_set.row.offsets.tolist())
    padded = 0
    for batch in run(data, data.batches_per_epoch()):
        assert batch["tokens"].numel() <= 4 * 128
        mask = batch.get("mask", torch.ones_like(batch["tokens"], dtype=torch.bool))
        padded += int((~mask).sum())
        assert (batch["targets"][~mask] == IGNORE).all() and (batch["targets"][mask] != IGNORE).all()
        for index, tokens, real in zip(batch["id"].tolist(), batch["tokens"], mask, strict=True):
            assert (tokens[0] == end) == (int(data.train_set.pieces.start[index]) in bounds)
            assert not (tokens[1:][real[1:]] == end).any(), "two documents in one block"
    assert padded


def test_masked_batches_hide_what_they_ask_for(tmp_path):
    data = module(tmp_path, masking={"probability": 0.15})
    special = torch.tensor(sorted(data.tokenizer.special_ids))
    first, chosen, total, masks = run(data, data.batches_per_epoch()), 0, 0, 0
    for batch in first:
        assert set(batch) == {"id", "tokens", "targets"} and batch["tokens"].shape[1] == 64
        asked = batch["targets"] != IGNORE
        original = torch.where(asked, batch["targets"], batch["tokens"])
        assert (original[:, 0] == data.tokenizer.bos_id).all()
        assert not torch.isin(batch["targets"][asked], special).any()
        chosen, total = chosen + int(asked.sum()), total + asked.numel()
        masks += int((batch["tokens"] == data.tokenizer.mask_id).sum())
        assert not (batch["tokens"][~asked] == data.tokenizer.mask_id).any()
    assert chosen / total == pytest.approx(0.15, abs=0.01) and masks / chosen == pytest.approx(0.8, abs=0.05)


def test_evaluation_may_hide_less_than_training(tmp_path):
    data = module(tmp_path, masking={"probability": 0.4, "eval_probability": 0.1})
    for loader, share in ((run(data, data.batches_per_epoch()), 0.4), (data.val_dataloader(), 0.1)):
        asked = torch.cat([(batch["targets"] != IGNORE).flatten() for batch in loader])
        assert asked.float().mean() == pytest.approx(share, abs=0.02)


def test_masks_by_seed_and_epoch(tmp_path):
    """Masks of an evaluation are the same for all seeds and others in each epoch of training."""
    one, two = (module(tmp_path, masking={}, seed=seed) for seed in (1, 2))
    assert equal(list(one.val_dataloader()), list(two.val_dataloader()))
    assert not equal(list(one.val_dataloader()), list(one.test_dataloader()))
    first, second = one.train_set[0, 0], one.train_set[1, 0]
    assert not np.array_equal(first["targets"] == IGNORE, second["targets"] == IGNORE)


def test_masked_evaluation_asks_once(tmp_path):
    """The last window is full, so it begins within the one before: what that one may ask for is not asked again."""
    data = module(tmp_path, masking={"probability": 0.9})
    start, length = data.val_set.pieces.start, data.val_set.pieces.length
    assert start[-1] < start[-2] + length[-2], "no overlap to test"
    asked = [
        start[index] + np.flatnonzero(data.val_set[0, index]["targets"] != IGNORE) - 1  # less 1 for <s>
        for index in range(len(data.val_set))
    ]
    places = np.concatenate(asked)
    assert len(places) == len(set(places.tolist())) and places.max() >= data.info.tokens["val"] - 10


def test_info(tmp_path):
    info = module(tmp_path).info
    assert info.vocab_size == 300 and info.documents == {"train": 48, "val": 6, "test": 6}
    assert info.bytes["val"] == sum(len(t.encode()) for n, t in enumerate(TEXTS) if n % 10 == 8)
    assert info.corpus == {"speeches": {"version": "1"}} and info.unknown == dict.fromkeys(SIDES, 0)


def test_equal_settings_share_the_folder(tmp_path):
    """Defaults may be written out."""
    whole = {"kind": "byte_bpe", "vocab_size": 300, "sample_mb": 100}
    assert module(tmp_path, tokenizer=whole, val_fraction=2e-2).folder == module(tmp_path).folder


def test_a_given_tokenizer_is_used(tmp_path):
    own = TextTokenizer.train(TEXTS, kind="bpe", vocab_size=77)
    (tmp_path / "own.json").write_text(own.to_json())
    data = module(tmp_path, tokenizer={"file": str(tmp_path / "own.json")})
    assert data.tokenizer == own and data.info.vocab_size == 77


def test_text_in_the_models_tokens(tmp_path):
    """A checkpoint with another tokenizer has the text in its own tokens."""
    model = module(tmp_path, tokenizer={"kind": "bpe", "vocab_size": 80}).info.to_dict()
    data = module(tmp_path)
    own = data.folder
    assert data.for_model(data.info.to_dict()).folder == own
    data = data.for_model(model)
    assert data.folder != own and data.info.tokenizer == model["tokenizer"]
    assert data.info.tokens == model["tokens"]
    assert sum(int(batch["bytes"].sum()) for batch in data.test_dataloader()) == data.info.bytes["test"]


@pytest.mark.parametrize(
    ("own", "stride", "expected"), [(64, None, 32), (64, 48, 32), (64, 20, 20), (16, 16, 32)]
)
@pytest.mark.parametrize("vocab_size", [300, 280])
def test_blocks_of_the_models_length(tmp_path, own, stride, expected, vocab_size):
    """A checkpoint has blocks of its own length."""
    model = module(
        tmp_path,
        tokenizer={"kind": "byte_bpe", "vocab_size": vocab_size},
        block_size=32,
        eval_stride=expected,
    )
    data = module(tmp_path, block_size=own, eval_stride=stride)
    data = data.for_model(model.info.to_dict())
    assert (
        replace(data.info, key=model.info.key) == model.info and (data.config.eval_stride or 32) == expected
    )
    for found, wanted in zip(data.test_dataloader(), model.test_dataloader(), strict=True):
        assert found["tokens"].shape[1] <= 32 and torch.equal(found["tokens"], wanted["tokens"])


@pytest.mark.parametrize("documents", ["pack", "separate"])
def test_a_test_set_alone_for_a_checkpoint(tmp_path, documents):
    """Also one that is shorter than a block, and without a training text or a vocabulary of its own."""
    model = module(tmp_path, documents=documents).info.to_dict()
    own = Speeches(TEXTS[:1], sides=("test",))
    settings = {"data_dir": str(tmp_path), "tokenizer": {"vocab_size": 60_000}, "documents": documents}
    data = TextDataModule({"speeches": own}, **settings)
    data = data.for_model({**model, "block_size": 100_000})
    (batch,) = data.test_dataloader()
    tokenizer = TextTokenizer.from_json(model["tokenizer"])
    assert tokenizer.decode(batch["targets"][0].tolist()) == TEXTS[0]
    assert int(batch["bytes"].sum()) == len(TEXTS[0].encode())
    with pytest.raises(
        MagnetoError, match=r"train and val splits.*A test set alone is .*mode=test checkpoint=RUN"
    ):
        TextDataModule({"speeches": own}, **settings).prepare()


def test_reasons_of_an_unusable_corpus(tmp_path):
    """Also where nothing is left to train a tokenizer on; the remedy is one that helps."""
    array, single, lines = tmp_path / "array.jsonl", tmp_path / "one.txt", tmp_path / "lines.txt"
    array.write_text('[\n{"text": "one"},\n{"text": "two"},\n]')
    single.write_text("one text of some words " * 50)
    lines.write_text("a line of its own\n" * 80)
    (tmp_path / "utf16.txt").write_text("a text", encoding="utf-16")
    for name, more, message in (
        ("array.jsonl", {}, r"0 are in the others; skipped: 4 not valid JSON.*Check the files"),
        ("utf16.txt", {}, r"0 are in the others; skipped: 1 not UTF-8.*their encoding"),
        ("one.txt", {}, r"make 1 group, too few to divide: name the files of .*per_line=true"),
        ("lines.txt", {"per_line": True}, r"make 1 group, too few to divide: name the files of"),
    ):
        source = TextFilesReader(str(tmp_path / name), **more)
        data = TextDataModule(
            {"mine": source}, data_dir=str(tmp_path / "data"), tokenizer={"vocab_size": 262}
        )
        with pytest.raises(MagnetoError, match=message):
            data.prepare()


def test_a_tokenizer_that_loses_text_is_warned_of(tmp_path, caplog):
    """Bits per byte compare only where the model is asked for all of the text."""
    texts = [*TEXTS[:-2], "Two  spaces. \nAnd a line.", TEXTS[-1]]
    plain = module(tmp_path, Speeches(texts))
    assert "loses something" not in caplog.text
    module(tmp_path, Speeches(texts), tokenizer={"kind": "bpe", "vocab_size": 80}, masking={})
    assert "loses something" not in caplog.text, "of masked models nobody asks that"
    lowered = json.loads(plain.tokenizer.to_json())
    lowered["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "lowered.json").write_text(json.dumps(lowered))
    data = module(tmp_path, Speeches(texts), tokenizer={"file": str(tmp_path / "lowered.json")})
    held_out = [document.text for split in ("val", "test") for document in data.documents(split)]
    lost = sum(text != text.lower() for text in held_out)
    assert lost and f"of {lost} held-out documents the tokenizer loses something" in caplog.text


def test_bad_documents_are_counted_and_listed(tmp_path):
    texts = [*TEXTS, "", " \n ", "nul\0nul", "half \ud800 a character"]
    data = module(tmp_path, Speeches(texts))
    report = json.loads((data.folder / "prepare_report.json").read_text())
    assert report["skipped_by_reason"] == {
        "empty": 2,
        "not UTF-8": 1,
        "NUL characters: binary, or text of another encoding": 1,
        "half a character (an unpaired surrogate)": 1,
    }
    assert sum(data.info.documents.values()) == 60


def test_documents_are_split_by_group(tmp_path):
    """Documents without a stated side are divided by group."""
    data = module(tmp_path, Speeches(sides=(None,)), val_fraction=0.2, test_fraction=0.2)
    sides: dict[int, set[str]] = {}
    for split in ("train", "val", "test"):
        table = data.table(split)
        for row in range(len(table)):
            number = int(table.row(row, "id")["id"].split("/")[1])
            sides.setdefault(number // 2, set()).add(split)
    assert len(sides) == 30 and all(len(found) == 1 for found in sides.values()), "a group is torn apart"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": {"file": "nowhere.json"}}, "nowhere.json"),
        ({"tokenizer": {"vocab_size": 60_000}}, "more than the training text supports"),
        ({"block_size": 100_000}, "fewer than data.block_size=100000"),
    ],
)
def test_settings_that_the_text_does_not_support(tmp_path, settings, message):
    with pytest.raises(MagnetoError, match=message):
        module(tmp_path, **settings)


def test_masking_needs_a_mask(tmp_path):
    plain = json.loads(TextTokenizer.train(TEXTS, kind="bpe", vocab_size=77).to_json())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["content"] != "[MASK]"]
    plain["model"]["vocab"]["[NONE]"] = plain["model"]["vocab"].pop("[MASK]")
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    settings = {"file": str(tmp_path / "plain.json")}
    assert module(tmp_path, tokenizer=settings).tokenizer.mask_id is None
    with pytest.raises(MagnetoError, match="no mask token"):
        module(tmp_path, tokenizer=settings, masking={})
