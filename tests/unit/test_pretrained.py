"""init_from: what is taken, what is refused, and BERT's weights against transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import MagnetoError
from magneto.pretrained.bert import import_weights
from magneto.pretrained.hub import fetch
from magneto.pretrained.init_from import read_pretrained
from magneto.tasks.mlm import MLM
from magneto.tasks.text_classification import TextClassification
from magneto.training.checkpoint_io import export
from tests.toys.init_from import adopt, info_of, initialize_from

TEXTS = ["the cat sees a red house", "a dog and the cat see no house", "red dogs see all of the houses"]
BACKBONE = {"placement": "magneto", "num_layers": 2, "d_model": 16, "num_heads": 2, "max_positions": 32}
OPTIMIZER, SCHEDULER = {"name": "adamw", "lr": 1e-3}, {"name": "constant"}


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return TextTokenizer.train(TEXTS, kind="bpe", vocab_size=60).to_json()


def mlm(tokenizer: str, seed: int = 0, **backbone: Any) -> MLM:
    torch.manual_seed(seed)
    size = TextTokenizer.from_json(tokenizer).vocab_size
    info = info_of(MLM, tokenizer=tokenizer, vocab_size=size, block_size=16)
    return MLM(
        backbone={**BACKBONE, **backbone}, info=info, optimizer=OPTIMIZER, scheduler=SCHEDULER, total_steps=1
    )


def classifier(tokenizer: str, seed: int = 9, labels: tuple[str, ...] = ("0", "1"), **backbone: Any) -> Any:
    torch.manual_seed(seed)
    size = TextTokenizer.from_json(tokenizer).vocab_size
    info = info_of(
        TextClassification, tokenizer=tokenizer, vocab_size=size, max_tokens=16, labels=list(labels), range=[],
        metrics=["accuracy"], subsets=[""], pairs=True,
    )  # fmt: skip
    return TextClassification(
        backbone={**BACKBONE, **backbone}, info=info, optimizer=OPTIMIZER, scheduler=SCHEDULER, total_steps=1
    )


def test_equal_models_are_taken_whole(tokenizer: str, tmp_path: Path) -> None:
    source, task = mlm(tokenizer), mlm(tokenizer, seed=1)
    report = initialize_from(task, str(export(source, tmp_path / "export")))
    assert not report.new and not report.left and set(report.taken) == set(source.state_dict())
    for name, tensor in source.state_dict().items():
        assert torch.equal(task.state_dict()[name], tensor), name


def test_classifiers_take_the_encoder(tokenizer: str, tmp_path: Path) -> None:
    """And the report names what is new."""
    source, task = mlm(tokenizer), classifier(tokenizer)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    report = initialize_from(task, str(export(source, tmp_path / "export")))
    assert set(report.new) == {
        "segment",
        "pooler.dense.weight",
        "pooler.dense.bias",
        "head.weight",
        "head.bias",
    }
    assert all(name.startswith("head.") for name in report.left) and report.left
    for name, tensor in task.state_dict().items():
        expected = before[name] if name in report.new else source.state_dict()[name]
        assert torch.equal(tensor, expected), name
    assert "stem.embedding.weight" in str(report) and "pooler: 2" in str(report)


def test_heads_of_other_labels_stay_new(tokenizer: str, tmp_path: Path) -> None:
    source = export(classifier(tokenizer, labels=("no", "yes")), tmp_path / "export")
    assert "head.weight" in initialize_from(classifier(tokenizer, labels=("no", "yes")), str(source)).taken
    other = initialize_from(classifier(tokenizer, labels=("bad", "good")), str(source))
    assert {"head.weight", "head.bias"} == set(other.new) and "pooler.dense.weight" in other.taken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"placement": "pre_ln"}, r"placement: magneto \(pretrained\), pre_ln"),
        ({"d_model": 32}, r"d_model: 16 \(pretrained\), 32"),
        ({"max_positions": 64}, r"position.table: 32 x 16 \(pretrained\), 64 x 16"),
        ({"inner_ffn_norm": False}, "inner_ffn_norm: True"),
    ],
)
def test_misfits_are_named(tokenizer: str, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """What does not fit is named, and nothing is copied."""
    source = export(mlm(tokenizer), tmp_path / "export")
    task = classifier(tokenizer, **change)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    with pytest.raises(MagnetoError, match=message):
        initialize_from(task, str(source))
    assert all(torch.equal(before[name], tensor) for name, tensor in task.state_dict().items())


def test_another_tokenizer_is_refused(tokenizer: str, tmp_path: Path) -> None:
    source = export(mlm(tokenizer), tmp_path / "export")
    other = TextTokenizer.train(TEXTS, kind="bpe", vocab_size=50).to_json()
    with pytest.raises(MagnetoError, match="its tokenizer"):
        initialize_from(mlm(other), str(source))


@pytest.mark.parametrize("source", ["nowhere", "hf:nowhere/at-all-to-be-found"])
def test_missing_sources(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MagnetoError, match="nowhere"):
        read_pretrained(source)


@pytest.mark.parametrize(
    ("there", "asked_for"),
    [
        (("model.safetensors", "pytorch_model.bin"), ["model.safetensors"]),
        (("pytorch_model.bin",), ["model.safetensors", "pytorch_model.bin"]),
    ],
)
def test_older_weights_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], asked_for: list[str]
) -> None:
    """pytorch_model.bin, where there is no model.safetensors."""
    asked: list[str] = []

    def download(source: str, allow_patterns: list[str]) -> str:
        for name in allow_patterns:
            if name in there:
                (tmp_path / name).touch()
        asked.append(allow_patterns[-1])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch("someone/model") == tmp_path
    assert asked == asked_for and (tmp_path / asked_for[-1]).is_file()


def test_families_without_importer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(MagnetoError, match="'t5'.*bert"):
        read_pretrained(f"hf:{tmp_path}")


# ------------------------------------------------------------------ shape and tokenizer in the configuration


def config(tmp_path: Path, source: str | None) -> dict[str, Any]:
    shape = {
        "placement": "magneto",
        "architecture": "encoder",
        "num_layers": 6,
        "d_model": 256,
        "num_heads": 4,
    }
    return {
        "init_from": source, "size_name": "tiny", "data_dir": str(tmp_path / "data"), "backbone": shape,
        "data": {"tokenizer": {"file": None, "kind": "unigram", "vocab_size": 8000}},
    }  # fmt: skip


def test_shape_and_tokenizer_are_taken(tokenizer: str, tmp_path: Path) -> None:
    """They come with the weights."""
    source = str(export(mlm(tokenizer, position="rotary"), tmp_path / "export"))
    adopted = adopt(config(tmp_path, source), ["task=text_classification", f"init_from={source}"])
    assert {key: adopted["backbone"][key] for key in ("num_layers", "d_model", "position")} == {
        "num_layers": 2, "d_model": 16, "position": "rotary",
    }  # fmt: skip
    assert adopted["size_name"] == "2x16"
    file = Path(adopted["data"]["tokenizer"]["file"])
    assert file.is_relative_to(tmp_path / "data") and TextTokenizer.from_file(file).to_json() == tokenizer
    assert adopt(adopted, []) == adopted


@pytest.mark.parametrize("override", ["backbone.d_model=256", "size=tiny", "backbone.num_layers=6"])
def test_shapes_of_the_command_must_agree(tokenizer: str, tmp_path: Path, override: str) -> None:
    source = str(export(mlm(tokenizer), tmp_path / "export"))
    with pytest.raises(MagnetoError, match=rf"{override}.*\n.*Leave {override} out|\({override}\)"):
        adopt(config(tmp_path, source), [override])
    adopt(config(tmp_path, source), ["backbone=magneto"])  # that is what it is


def test_tokenizers_of_the_command_are_kept(tokenizer: str, tmp_path: Path) -> None:
    source = str(export(mlm(tokenizer), tmp_path / "export"))
    adopted = adopt(config(tmp_path, source), ["data.tokenizer.vocab_size=8000"])
    assert adopted["data"] == config(tmp_path, source)["data"]


# ------------------------------------------------------------------ BERT


transformers = pytest.importorskip("transformers")


def bert_config(**more: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 24,
    }  # fmt: skip
    return transformers.BertConfig(**{**sizes, **more})


def randomised(model: Any) -> Any:
    """Every parameter random: a zero bias or a unit norm would hide mistakes."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def saved(model: Any, folder: Path, tokenizer: str) -> str:
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer)
    return f"hf:{folder}"


TOKENS = torch.randint(5, 60, (3, 11), generator=torch.Generator().manual_seed(1))
REAL = torch.arange(11) < torch.tensor([11, 4, 7])[:, None]


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_masked_bert_has_equal_logits(tokenizer: str, tmp_path: Path, activation: str) -> None:
    theirs = randomised(transformers.BertForMaskedLM(bert_config(hidden_act=activation)))
    source = saved(theirs, tmp_path, tokenizer)
    backbone = read_pretrained(source).backbone.to_dict()
    task = mlm(tokenizer, **backbone).eval()
    report = initialize_from(task, source)
    assert not report.new and set(report.left) == {"segment"}
    with torch.no_grad():
        expected = theirs(TOKENS, attention_mask=REAL.long()).logits[REAL]
        found = task.logits(task(TOKENS, REAL, REAL))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_bert_without_head_is_equal(tokenizer: str, tmp_path: Path) -> None:
    """States, pooled vectors and second segments."""
    theirs = randomised(transformers.BertModel(bert_config()))
    source = saved(theirs, tmp_path, tokenizer)
    task = classifier(tokenizer, **read_pretrained(source).backbone.to_dict()).eval()
    report = initialize_from(task, source)
    assert set(report.new) == {"head.weight", "head.bias"} and not report.left
    second = torch.zeros_like(REAL)
    second[:, 3:] = True
    with torch.no_grad():
        out = theirs(TOKENS, attention_mask=REAL.long(), token_type_ids=second.long())
        hidden = task.backbone(task.stem(TOKENS) + second[..., None] * task.segment, REAL)
        task.pooler.pooling = "first"
        pooled = task.pooler(hidden, REAL)
    torch.testing.assert_close(hidden[REAL], out.last_hidden_state[REAL], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, out.pooler_output, atol=1e-5, rtol=1e-5)


def test_names_of_first_conversions(tokenizer: str, tmp_path: Path) -> None:
    """bert-base-uncased calls its LayerNorms gamma and beta, and carries next-sentence weights."""
    theirs = randomised(transformers.BertForPreTraining(bert_config()))
    source = saved(theirs, tmp_path, tokenizer).removeprefix("hf:")
    before = import_weights(source).state_dict
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in weights.items()
    }
    assert old.keys() != weights.keys()
    save_file(old, tmp_path / "model.safetensors")
    after = import_weights(source)
    assert after.tokenizer_json == tokenizer and before.keys() == after.state_dict.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.state_dict.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_act": "silu"}, "silu"),
        ({"num_hidden_layers": 4}, "encoder.layer.3"),
        ({"num_hidden_layers": 2}, "encoder.layer.2"),
    ],
)
def test_unsupported_berts_are_refused(
    tokenizer: str, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    source = saved(transformers.BertForMaskedLM(bert_config()), tmp_path, tokenizer).removeprefix("hf:")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(MagnetoError, match=message):
        import_weights(source)


def test_embeddings_of_unknown_tokens_are_refused(tokenizer: str, tmp_path: Path) -> None:
    source = saved(transformers.BertForMaskedLM(bert_config()), tmp_path / "bert", tokenizer)
    file = tmp_path / "bert/tokenizer.json"
    adopt(config(tmp_path, source), [])
    file.rename(tmp_path / "mine.json")
    for overrides in ([], ["data.tokenizer.vocab_size=60"]):
        with pytest.raises(MagnetoError, match=r"no tokenizer\.json.*data\.tokenizer\.file"):
            adopt(config(tmp_path, source), overrides)
    given = config(tmp_path, source)
    given["data"]["tokenizer"]["file"] = str(tmp_path / "mine.json")
    adopted = adopt(given, [f"data.tokenizer.file={tmp_path / 'mine.json'}"])
    assert adopted["data"] == given["data"] and adopted["backbone"]["d_model"] == 32
    images = config(tmp_path, source)
    images["data"] = {"image_size": 32}
    assert adopt(images, [])["data"] == {"image_size": 32}, "no text, no tokens"


def test_damaged_weights_are_named(tokenizer: str, tmp_path: Path) -> None:
    source = saved(transformers.BertModel(bert_config()), tmp_path, tokenizer).removeprefix("hf:")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(MagnetoError, match=r"model\.safetensors: damaged"):
        import_weights(source)
    file.unlink()
    with pytest.raises(MagnetoError, match="no weights"):
        import_weights(source)
