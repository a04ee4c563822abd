"""Translation during validation: decoding beside compiled layers."""

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.translation.dataset import Marks, TranslationInfo
from magneto.tasks.mt import MT


def test_decoding_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are compiled for training; the lengths of a search, which differ from token to token, make no graphs."""
    tokenizer = TextTokenizer.train(["the cat sat on the mat"], kind="byte_bpe", vocab_size=270).to_json()
    info = TranslationInfo(
        source_tokenizer=tokenizer, target_tokenizer=tokenizer, shared=True, directions=["en-fr"], tag=False,
        max_tokens=16, pairs={"val": 2}, per_direction={}, words={}, tokens={}, corpora={}, key="",
    )  # fmt: skip
    torch.manual_seed(0)
    task = MT(
        backbone={"architecture": "encoder_decoder", "num_layers": 1, "decoder_layers": 1, "d_model": 32,
                  "num_heads": 4, "position": "rotary", "max_positions": 64},
        info=info.to_dict(), optimizer={"lr": 1e-3}, scheduler={"name": "constant"}, total_steps=1,
        val_sentences=None,
    ).eval()  # fmt: skip
    monkeypatch.setattr(MT, "trainer", SimpleNamespace(testing=False))
    for _, layer in task.named_layers():
        layer.compile(backend="eager")
    marks = Marks(info)
    items = [
        {
            "id": number, "direction": 0, "source": marks.source(ids, 0), **marks.target(ids), "source_text": text,
            "target_text": text,
        }
        for number, text in enumerate(("the cat", "on the mat sat"))
        for ids in [info.source_text_tokenizer.encode(text)]
    ]  # fmt: skip
    batch = marks.padding()(items)
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        output = task.step(batch)
        graphs = counters["stats"]["unique_graphs"]
        assert graphs > 0
        translations = task.evaluate(batch, output)
    assert counters["stats"]["unique_graphs"] == graphs
    assert len(translations) == 2
    torch._dynamo.reset()
