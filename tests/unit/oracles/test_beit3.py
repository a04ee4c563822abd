"""BEiT-3's files: the same outputs as torchscale's `BEiT3`, which wrote them, and what is refused."""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magneto.errors import MagnetoError
from magneto.nn import BackboneConfig, Encoder, PatchStem, TokenStem, VisionLanguageStem
from magneto.pretrained.beit3 import import_weights
from magneto.pretrained.init_from import read_pretrained
from magneto.tasks.registry import load_task
from magneto.tasks.vision_language import VisionLanguage
from tests.toys.captions import SIZE, caption_settings, write_squares
from tests.toys.init_from import adopt, initialize_from
from tests.toys.runs import SHORT, drive, folders
from tests.unit.oracles.weights import close

pytest.importorskip("torchscale")
pytest.importorskip("timm")  # which torchscale imports
from torchscale.architecture.config import EncoderConfig
from torchscale.model.BEiT3 import BEiT3

WORDS, IMAGE, PATCH, WIDTH = 50, 24, 8, 128
LENGTHS = torch.tensor([11, 4, 7])
REAL = torch.arange(11) < LENGTHS[:, None]


def random_numbers(*shape: int, high: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(shape, generator=generator)
        if high is None
        else torch.randint(high, shape, generator=generator)
    )


IMAGES, TOKENS = random_numbers(3, 3, IMAGE, IMAGE), random_numbers(3, 11, high=WORDS)
MASKED = random_numbers(3, 9, high=2).bool()


def beit3(**more: Any) -> Any:
    """Their model with every parameter random: a zero bias or a unit norm would hide mistakes."""
    torch.manual_seed(0)
    config = EncoderConfig(
        img_size=IMAGE, patch_size=PATCH, vocab_size=WORDS, multiway=True, no_output_layer=True,
        encoder_embed_dim=WIDTH, encoder_attention_heads=WIDTH // 64, encoder_ffn_embed_dim=96, encoder_layers=3,
        max_source_positions=20, **more,
    )  # fmt: skip
    model = BEiT3(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save(model: Any, folder: Path, **more: Any) -> str:
    weights = {f"beit3.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": weights | more}, folder / "beit3.pth")
    return f"beit3:{folder / 'beit3.pth'}"


class Ours(nn.Module):
    """Stem and backbone as a task has them."""

    def __init__(self, config: BackboneConfig, image_size: int = IMAGE) -> None:
        super().__init__()
        self.config = config
        self.hparams = {
            "info": {"tokenizer": "{}", "labels": [], "image_size": image_size, "patch_size": PATCH}
        }
        vision = PatchStem(image_size, PATCH, 3, config.d_model, mask_token=True)
        self.stem = VisionLanguageStem(vision, TokenStem(WORDS, config), config)
        self.backbone = Encoder(config)
        self.head = nn.Linear(config.d_model, 2)

    def forward(
        self,
        images: Tensor | None = None,
        tokens: Tensor | None = None,
        real: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> Any:
        x, count = self.stem(images, tokens, masked)
        mask = None if real is None else F.pad(real, (0 if images is None else count, 0), value=True)
        return self.backbone(x, mask, num_vision_tokens=count)


def loaded(source: str) -> Ours:
    task: Any = Ours(read_pretrained(source).backbone)
    report = initialize_from(task, source)
    assert set(report.new) == {"head.weight", "head.bias"} and not report.left
    return task.eval()


@pytest.mark.parametrize("normalize_output", [True, False])
@torch.no_grad()
def test_images_texts_and_pairs_agree(normalize_output: bool, tmp_path: Path) -> None:
    theirs = beit3(normalize_output=normalize_output)
    ours = loaded(save(theirs, tmp_path))
    assert (ours.backbone.final_norm is None) != normalize_output

    def out(**inputs: Any) -> Tensor:
        return theirs(**inputs)["encoder_out"]

    close(ours(IMAGES), out(visual_tokens=IMAGES), "images")
    close(ours(None, TOKENS), out(textual_tokens=TOKENS), "texts")
    a, b = ours(None, TOKENS, REAL), out(textual_tokens=TOKENS, text_padding_position=~REAL)
    close(a[REAL], b[REAL], "padded texts")
    close(ours(IMAGES, TOKENS), out(textual_tokens=TOKENS, visual_tokens=IMAGES), "pairs")
    inputs = {"textual_tokens": TOKENS, "visual_tokens": IMAGES, "text_padding_position": ~REAL}
    a, b = ours(IMAGES, TOKENS, REAL, MASKED), out(**inputs, vision_masked_position=MASKED)
    seen = F.pad(REAL, (10, 0), value=True)
    close(a[seen], b[seen], "padded pairs with hidden patches")


def test_configuration_follows_from_the_weights(tmp_path: Path) -> None:
    pretrained = read_pretrained(save(beit3(), tmp_path))
    found = pretrained.backbone
    assert (found.placement, found.multiway, found.position) == ("magneto", "full", "none")
    assert (found.num_layers, found.d_model, found.num_heads, found.ffn_width) == (3, WIDTH, 2, 96)
    assert found.max_positions == 18, "two of the twenty rows are never read"
    assert import_weights(str(tmp_path / "beit3.pth"), head_dim=32).backbone["num_heads"] == 4
    ours = {
        "architecture": "encoder",
        "num_layers": 6,
        "d_model": 256,
        "num_heads": 4,
        "multiway": "feed_forward",
    }
    config = {
        "init_from": pretrained.source, "size_name": "tiny", "data_dir": str(tmp_path), "backbone": ours, "data": {}
    }  # fmt: skip
    adopted = adopt(config, ["task=vl"])
    assert BackboneConfig.from_dict(adopted["backbone"]) == found and adopted["size_name"] == "3x128"
    with pytest.raises(
        MagnetoError, match="multiway: full .pretrained., feed_forward .backbone.multiway=feed_forward"
    ):
        adopt(config, ["backbone.multiway=feed_forward"])


def test_files_of_a_fine_tuning_are_read_too(tmp_path: Path) -> None:
    """With heads, half precision, an output layer, and the arguments of the training; or the bare weights."""
    model = beit3()
    heads = {"vision_head.weight": torch.randn(8, WIDTH), "logit_scale": torch.tensor(2.0)}
    expected = read_pretrained(save(model, tmp_path)).weights
    weights = {f"beit3.{name}": tensor.half() for name, tensor in model.state_dict().items()} | heads
    weights["beit3.encoder.output_projection.weight"] = torch.randn(WORDS, WIDTH)
    file = tmp_path / "tuned.pth"
    torch.save({"model": weights, "args": argparse.Namespace(lr=1e-4), "epoch": 3}, file)
    found = read_pretrained(f"beit3:{file}").weights
    assert found.keys() == expected.keys() | heads.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-3, rtol=2e-3)
    torch.save(model.state_dict(), file)
    bare = read_pretrained(f"beit3:{file}").weights
    assert all(torch.equal(bare[name], tensor) for name, tensor in expected.items())


def test_positions_of_another_image_size(tmp_path: Path) -> None:
    """As the authors' fine-tuning does with the rows from 3 on of their table, of which 2 are unused and one is [CLS]'s."""
    model = beit3()
    source = save(model, tmp_path)
    task: Any = Ours(read_pretrained(source).backbone, image_size=40)
    initialize_from(task, source)
    unused_and_class, grid = model.state_dict()["encoder.embed_positions.A.weight"].split((3, 9))
    larger = F.interpolate(grid.T.reshape(1, WIDTH, 3, 3), size=(5, 5), mode="bicubic", align_corners=False)
    assert torch.equal(task.stem.vision_position[0], unused_and_class[2])
    close(task.stem.vision_position[1:], larger[0].flatten(1).T)


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [
        ("beit3.encoder.layers.1.ffn.B.fc2.bias", r"lack encoder\.layers\.1\.ffn\.B\.fc2\.bias"),
        ("beit3.encoder.layers.", "lack encoder.layers"),
        ("beit3.text_embed", "lack text_embed.weight: not a whole BEiT-3"),
        ("beit3.encoder.layers.0.self_attn.inner_attn_ln", "lack encoder.layers.0.self_attn.inner_attn_ln.A"),
    ],
)
def test_what_is_missing_is_named(leave_out: str, message: str, tmp_path: Path) -> None:
    save(beit3(), tmp_path)
    file = tmp_path / "beit3.pth"
    weights = torch.load(file, weights_only=True)["model"]
    torch.save({"model": {k: v for k, v in weights.items() if not k.startswith(leave_out)}}, file)
    with pytest.raises(MagnetoError, match=message):
        import_weights(str(file))


def test_what_is_no_beit3_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MagnetoError, match="there is no such file"):
        read_pretrained(f"beit3:{tmp_path / 'nowhere.pth'}")
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"not a checkpoint")
    with pytest.raises(MagnetoError, match="damaged.pth: cannot be read as a BEiT-3"):
        import_weights(str(damaged))
    torch.save({"model": SimpleNamespace()}, damaged)  # could run code when read
    with pytest.raises(MagnetoError, match="damaged.pth: cannot be read as a BEiT-3"):
        import_weights(str(damaged))
    torch.save({"model": {"epoch": 3}}, damaged)
    with pytest.raises(MagnetoError, match="holds no weights"):
        import_weights(str(damaged))
    source = save(beit3(), tmp_path, **{"beit3.encoder.moe.weight": torch.zeros(2)})
    with pytest.raises(MagnetoError, match=r"no BEiT-3 has: encoder\.moe\.weight"):
        read_pretrained(source)
    with pytest.raises(MagnetoError, match="width of 128 does not divide into heads of 48"):
        import_weights(source.removeprefix("beit3:"), head_dim=48)


def test_a_run_starts_from_it(prepared_dir: Path, tmp_path: Path) -> None:
    """task=vl takes shape, weights and, of models that were fine-tuned for retrieval, heads and temperature."""
    settings = ["task=vl", *caption_settings(write_squares(tmp_path / "squares")), "data.patch_size=8"]
    settings += [*folders(prepared_dir, tmp_path), *SHORT, "trainer.max_steps=1", "optimizer.lr=1e-12"]
    small = ("backbone.num_layers=1", "backbone.d_model=32", "backbone.num_heads=1")
    info = load_task(Path(drive(settings, *small, "name=first")["folder"]) / "export").info
    config = EncoderConfig(
        img_size=SIZE, patch_size=8, vocab_size=info.vocab_size, multiway=True, no_output_layer=True,
        encoder_embed_dim=WIDTH, encoder_attention_heads=WIDTH // 64, encoder_ffn_embed_dim=96, encoder_layers=2,
        max_source_positions=20,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = BEiT3(config).eval()
    heads = {name: torch.randn(48, WIDTH) for name in ("vision_head.weight", "language_head.weight")}
    source = save(theirs, tmp_path, **heads, logit_scale=torch.tensor(3.0))
    with pytest.raises(MagnetoError, match="no tokenizer.json that says which tokens.*data.tokenizer.file"):
        drive(settings, f"init_from={source}")
    (tmp_path / "beit3.json").write_text(info.tokenizer)
    settings.append(f"data.tokenizer.file={tmp_path / 'beit3.json'}")
    result = drive(settings, f"init_from={source}", "task.embedding_width=48", "name=second")
    ours = load_task(Path(result["folder"]) / "export").eval()
    assert isinstance(ours, VisionLanguage) and float(ours.logit_scale) == pytest.approx(3.0)
    # Theirs are normalised by a mean and deviation of a half, ours by those of the corpus.
    images, tokens = random_numbers(3, 3, SIZE, SIZE), random_numbers(3, 11, high=info.vocab_size)
    with torch.no_grad():
        seen = theirs(visual_tokens=images)["encoder_out"][:, 0] @ heads["vision_head.weight"].T
        read = theirs(textual_tokens=tokens, text_padding_position=~REAL)["encoder_out"][:, 0]
        same = ours.info.normalise((images / 2 + 0.5) * 255)
        close(ours.image_vectors(same), F.normalize(seen, dim=-1), "images")
        close(
            ours.text_vectors(tokens, REAL),
            F.normalize(read @ heads["language_head.weight"].T, dim=-1),
            "texts",
        )
    fewer = save(theirs, tmp_path, **{"beit3.text_embed.weight": torch.zeros(40, WIDTH)})
    with pytest.raises(MagnetoError, match=r"stem.text.embedding.weight: 40 x 128 \(pretrained\), \d+ x 128"):
        drive(settings, f"init_from={fewer}")
