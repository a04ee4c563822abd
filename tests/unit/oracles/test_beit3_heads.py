"""The heads of task=vl_classification on a BEiT-3: what its fine-tuning computes from torchscale's encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magneto.data.tokenizers.text import TextTokenizer
from magneto.pretrained.init_from import read_pretrained
from magneto.tasks.vqa import VisionLanguageClassification
from tests.unit.oracles.weights import close

pytest.importorskip("torchscale")
pytest.importorskip("timm")  # which torchscale imports
from torchscale.architecture.config import EncoderConfig
from torchscale.model.BEiT3 import BEiT3

WORDS, IMAGE, PATCH, WIDTH = 50, 16, 8, 64
LENGTHS = torch.tensor([7, 4])
MASK = torch.arange(7) < LENGTHS[:, None]


@pytest.fixture(scope="module")
def encoder() -> Any:
    torch.manual_seed(0)
    config = EncoderConfig(
        img_size=IMAGE, patch_size=PATCH, vocab_size=WORDS, multiway=True, no_output_layer=True,
        encoder_embed_dim=WIDTH, encoder_attention_heads=1, encoder_ffn_embed_dim=96, encoder_layers=2,
        max_source_positions=20, normalize_output=False,
    )  # fmt: skip
    model = BEiT3(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def info(images: int, answers: int) -> dict[str, Any]:
    tokenizer = TextTokenizer.train(["is it red?"], kind="byte_bpe", vocab_size=262)
    return {
        "image_size": IMAGE, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "patch_size": PATCH, "fit": "crop",
        "eval_crop": 1.0, "labels": [str(n) for n in range(answers)], "examples": {}, "label_counts": {}, "corpus": {},
        "key": "", "tokenizer": tokenizer.to_json(), "vocab_size": WORDS, "max_tokens": 8, "lowercase": True,
        "images": images, "kinds": [""], "majority_answers": [0, 0], "questions": {}, "unanswerable": {}, "truncated": 0,
    }  # fmt: skip


def task_on(encoder: Any, head: dict[str, Tensor], folder: Path, images: int, answers: int) -> Any:
    weights = {f"beit3.{name}": tensor for name, tensor in encoder.state_dict().items()} | head
    torch.save({"model": weights}, folder / "tuned.pth")
    pretrained = read_pretrained(f"beit3:{folder / 'tuned.pth'}")
    task = VisionLanguageClassification(
        backbone=pretrained.backbone.to_dict(),
        info=info(images, answers),
        optimizer={"lr": 1.0},
        scheduler={"name": "constant"},
        total_steps=1,
    ).eval()
    unused = "stem.vision.mask_token"  # nothing is hidden here
    task.load_state_dict(
        {name: tensor for name, tensor in pretrained.weights.items() if name != unused}, strict=True
    )
    return task


def randomly(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def layer(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": randomly(outputs, inputs) / inputs**0.5, f"{name}.bias": randomly(outputs)}


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + 0.1 * randomly(width), f"{name}.bias": 0.1 * randomly(width)}


def apply(x: Tensor, head: dict[str, Tensor], *names: str) -> Tensor:
    """Norms and linear maps one after another, by the shape of their weights; `gelu` and `tanh` as they are."""
    for name in names:
        if name in ("gelu", "tanh"):
            x = getattr(F, name)(x) if name == "gelu" else x.tanh()
        elif head[f"{name}.weight"].ndim == 1:
            x = F.layer_norm(x, x.shape[-1:], head[f"{name}.weight"], head[f"{name}.bias"])
        else:
            x = F.linear(x, head[f"{name}.weight"], head[f"{name}.bias"])
    return x


IMAGES = randomly(2, 2, 3, IMAGE, IMAGE)
TOKENS = torch.randint(WORDS, (2, 7), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_questions(encoder: Any, tmp_path: Path) -> None:
    """A file of the fine-tuned model fits as it is, its heads included: the names are theirs."""
    head = {
        **norm("pooler.norm", WIDTH), **layer("pooler.dense", WIDTH, WIDTH), **layer("head.0", WIDTH, 2 * WIDTH),
        **norm("head.1", 2 * WIDTH), **layer("head.3", 2 * WIDTH, 5),
    }  # fmt: skip
    task = task_on(encoder, head, tmp_path, images=1, answers=5)
    out = encoder(textual_tokens=TOKENS, visual_tokens=IMAGES[:, 0], text_padding_position=~MASK)[
        "encoder_out"
    ]
    names = ("pooler.norm", "pooler.dense", "tanh", "head.0", "head.1", "gelu", "head.3")
    close(task(IMAGES[:, :1], TOKENS, MASK), apply(out[:, 0], head, *names))


@torch.no_grad()
def test_statements(encoder: Any, tmp_path: Path) -> None:
    """[CLS] and <s> of the pair with the left image, then those of the pair with the right one."""
    head = {
        **norm("pooler", 4 * WIDTH), **layer("head.0", 4 * WIDTH, 2 * WIDTH), **norm("head.1", 2 * WIDTH),
        **layer("head.3", 2 * WIDTH, 2),
    }  # fmt: skip
    task = task_on(encoder, head, tmp_path, images=2, answers=2)
    pooled = []
    for side in range(2):
        out = encoder(textual_tokens=TOKENS, visual_tokens=IMAGES[:, side], text_padding_position=~MASK)
        pooled += [out["encoder_out"][:, 0], out["encoder_out"][:, out["multiway_split_position"]]]
    theirs = apply(torch.cat(pooled, dim=1), head, "pooler", "head.0", "head.1", "gelu", "head.3")
    close(task(IMAGES, TOKENS, MASK), theirs)
    assert isinstance(task.head[2], nn.GELU)
