"""init_from with images: patches come with the weights, other sizes are resized, other kinds refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from magneto.errors import MagnetoError
from magneto.nn.config import BackboneConfig
from magneto.nn.vision.renormalise import Renormalisation
from magneto.nn.vision.resize import resized_positions, resized_relative_grid
from magneto.nn.vision.visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from magneto.tasks.base import Task
from magneto.tasks.beit import BEiT
from magneto.tasks.image_classification import ImageClassification
from magneto.tasks.visual_tokenizer import VisualTokenization
from magneto.training.checkpoint_io import export
from magneto.training.optim import build_optimizer
from tests.toys.init_from import adopt, initialize_from

BACKBONE = {"placement": "magneto", "num_layers": 2, "d_model": 16, "num_heads": 2, "ffn_dim": 32}


def build(task: type[Task], seed: int = 0, size: int = 16, **more: Any) -> Any:
    torch.manual_seed(seed)
    info = {
        "image_size": size, "patch_size": 4, "channels": 1, "labels": ["a", "b", "c"], "mean": [0.5], "std": [0.2],
        "fit": "crop", "eval_crop": 1.0, "examples": {}, "label_counts": {}, "corpus": {}, "key": "",
    }  # fmt: skip
    info |= {key: more.pop(key) for key in tuple(more) if key in info}
    shape = BACKBONE | {"position": "relative_2d"} | more.pop("backbone", {})
    arguments = {"optimizer": {"name": "adamw", "lr": 1.0}, "scheduler": {"name": "constant"}} | more
    model = task(backbone=shape, info=info, total_steps=1, **arguments)
    with torch.no_grad():  # what starts at zero would hide mistakes
        for name, parameter in model.named_parameters():
            if name.endswith("table"):
                parameter.normal_()
    return model


def classifier(**more: Any) -> ImageClassification:
    return build(ImageClassification, seed=9, **more)


@pytest.mark.parametrize("position", ["relative_2d", "learned", "sinusoidal", "rotary", "none"])
@pytest.mark.parametrize("size", [16, 24, 12])
def test_classifiers_take_beit_of_any_size(tmp_path: Path, position: str, size: int) -> None:
    """The positions are resized to the images."""
    shape = {"position": position}
    source = build(BEiT, target="pixels", backbone=shape)
    task = classifier(size=size, backbone=shape)
    report = initialize_from(task, str(export(source, tmp_path / "export")))
    assert set(report.new) <= {"head.linear.weight", "head.linear.bias"}
    assert set(report.left) == {"head.weight", "head.bias", "stem.mask_token"}
    before, after = source.state_dict(), task.state_dict()
    for name in report.taken:
        expected = before[name]
        if name in report.resized:
            resize = resized_relative_grid if position == "relative_2d" else resized_positions
            expected = resize(expected, size // 4)
        torch.testing.assert_close(after[name], expected)
    assert bool(report.resized) == (size != 16 and position in ("relative_2d", "learned"))
    assert task(torch.randn(2, 1, size, size)).shape == (2, 3)


def test_other_patches_do_not_fit(tmp_path: Path) -> None:
    """Nor do other channels fit the stem."""
    source = str(export(build(BEiT, target="pixels"), tmp_path / "export"))
    for other in ({"patch_size": 8}, {"channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}):
        with pytest.raises(MagnetoError, match=r"stem.projection.weight: 16 x 16 \(pretrained\)"):
            initialize_from(classifier(**other), source)


def config(source: str, **data: Any) -> dict[str, Any]:
    backbone = {"placement": "magneto", "architecture": "encoder", "num_layers": 6, "d_model": 256}
    data = {"name": "cifar10", "image_size": 32, "patch_size": 8, "channels": 1} | data
    return {
        "init_from": source,
        "backbone": backbone,
        "data": data,
        "size_name": "tiny",
        "data_dir": "unused",
    }


def test_patches_come_with_the_weights(tmp_path: Path) -> None:
    """And the size of the images with the data."""
    source = str(export(build(BEiT, target="pixels"), tmp_path / "export"))
    adopted = adopt(config(source), [])
    assert adopted["data"]["patch_size"] == 4 and adopted["data"]["image_size"] == 32
    assert adopt(adopted, []) == adopted
    adopt(config(source, patch_size=4), ["data.patch_size=4"])


def test_backbones_of_the_command_without_grid(tmp_path: Path) -> None:
    """The command may name the backbone before the grid is known."""
    source = build(BEiT, target="pixels")
    given = config(str(export(source, tmp_path / "export")))
    given["backbone"]["position"] = "relative_2d"
    adopted = adopt(given, ["task=image_classification", "backbone=magneto"])
    assert adopted["backbone"]["num_layers"] == source.config.num_layers
    given["backbone"]["placement"] = "pre_ln"
    with pytest.raises(MagnetoError, match="placement: magneto .pretrained., pre_ln .backbone=pre_ln"):
        adopt(given, ["backbone=pre_ln"])


@pytest.mark.parametrize(
    ("data", "override", "message"),
    [
        ({}, "data.patch_size=8", "reads patches of 4 pixels.*data.patch_size=8. Leave it out"),
        ({"channels": 3}, "data=cifar10", "are grey, and data=cifar10 gives them in colour. Set data.channels to 1"),
    ],
)  # fmt: skip
def test_other_images_are_refused_with_the_remedy(
    tmp_path: Path, data: dict[str, Any], override: str, message: str
) -> None:
    source = str(export(build(BEiT, target="pixels"), tmp_path / "export"))
    with pytest.raises(MagnetoError, match=message):
        adopt(config(source, **data), [override])


def test_the_model_of_the_targets_is_the_runs_own(tmp_path: Path) -> None:
    settings = {"target": "random_projection", "random_codes": 16}
    first, second = build(BEiT, **settings), build(BEiT, seed=1, **settings)
    source = str(export(first, tmp_path / "export"))
    with torch.no_grad():
        for tensor in second.target.state_dict().values():
            tensor.add_(1)
    other = {name: tensor.clone() for name, tensor in second.state_dict().items()}
    report = initialize_from(second, source)
    for name, tensor in second.state_dict().items():
        if name.startswith("target."):
            assert torch.equal(tensor, other[name]) and name not in report.taken
    assert not any(name.startswith("head.") for name in report.taken), "its outputs stand for other codes"
    same = build(BEiT, seed=2, **settings)
    same.target.load_state_dict(first.target.state_dict())
    assert {"head.weight", "head.bias"} <= set(initialize_from(same, source).taken)


@pytest.mark.parametrize(("stem", "reads"), [("linear", "projection"), ("convolutional", "convolutions.0")])
def test_other_moments_change_the_stem(stem: str, reads: str, tmp_path: Path) -> None:
    """Images of another mean and deviation give the same features."""
    shape = {"backbone": {"image_stem": stem}}
    first = build(BEiT, target="pixels", mean=[0.5], std=[0.2], **shape)
    source = str(export(first, tmp_path / "export"))
    second = build(BEiT, seed=1, target="pixels", mean=[0.1], std=[0.4], **shape)
    report = initialize_from(second, source)
    assert report.renormalised == (f"stem.{reads}.weight", f"stem.{reads}.bias")
    assert f"for their mean and deviation: stem.{reads}.weight" in str(report)
    pixels = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        theirs, ours = first.stem((pixels - 0.5) / 0.2), second.stem((pixels - 0.1) / 0.4)
    of_first, of_second = (model.state_dict()[f"stem.{reads}.bias"] for model in (first, second))
    assert torch.allclose(theirs, ours, atol=1e-5) and not torch.equal(of_first, of_second)
    same = build(BEiT, seed=2, target="pixels", **shape)
    assert not initialize_from(same, source).renormalised
    assert torch.equal(same.state_dict()[f"stem.{reads}.bias"], of_first)


def test_tokenizers_of_another_corpus(tmp_path: Path) -> None:
    """They read images that are normalised in another way."""
    given = build(VisualTokenization, codes=16, width=8, mean=[0.5], std=[0.2]).eval()
    source = str(export(given, tmp_path / "tokenizer"))
    sizes = given.tokenizer.config.to_dict()
    task = build(BEiT, seed=1, tokenizer=source, visual_tokenizer=sizes, mean=[0.1], std=[0.4])
    task.initialize()
    pixels = torch.rand(4, 1, 16, 16)
    codes = given.tokenizer.codes((pixels - 0.5) / 0.2)
    assert codes.unique().numel() > 4 and torch.equal(task.target.codes((pixels - 0.1) / 0.4), codes)


@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_codes_of_other_moments_are_equal(kind: str) -> None:
    """A tokenizer gives the same codes of images that are normalised in another way."""
    torch.manual_seed(0)
    backbone = BackboneConfig.from_dict(BACKBONE | {"position": "relative_2d", "grid": 4})
    of_features: dict[str, Any] = {"teacher_width": 6, "backbone": backbone}
    tokenizer = VisualTokenizer(
        VisualTokenizerConfig(
            image_size=16, channels=3, codes=32, width=8, **(of_features if kind == "features" else {})
        )
    ).eval()
    theirs, ours = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]), ([0.1, 0.6, 0.3], [0.4, 0.1, 0.25])
    pixels = torch.rand(2, 3, 16, 16)

    def given(moments: tuple[list[float], list[float]]) -> torch.Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in moments)
        return (pixels - mean) / std

    codes, made = tokenizer.codes(given(theirs)), tokenizer.decode(tokenizer.codes(given(theirs)))
    assert not torch.equal(codes, tokenizer.codes(given(ours)))
    change = Renormalisation.between(theirs, ours)
    assert change is not None and Renormalisation.between(ours, ours) is None
    tokenizer.renormalise(change)
    assert torch.equal(codes, tokenizer.codes(given(ours)))
    again = tokenizer.decode(codes)
    if kind == "pixels":
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in theirs)
        own_mean, own_std = (torch.tensor(values).view(1, 3, 1, 1) for values in ours)
        made, again = made * std + mean, again * own_std + own_mean
    assert torch.allclose(made, again, atol=1e-5)


@pytest.mark.parametrize("position", ["relative_2d", "learned"])
def test_learning_rates_fall_to_the_stem(position: str) -> None:
    """As in BEiT's fine-tuning: the head and relative positions whole, then a factor for each layer down to the stem."""
    task = classifier(
        backbone={"position": position}, optimizer={"name": "adamw", "lr": 1.0, "layer_decay": 0.5}
    )
    rates = {
        id(parameter): group["lr"]
        for group in build_optimizer(task, task.optimizer_config).param_groups
        for parameter in group["params"]
    }
    found = {name: rates[id(parameter)] for name, parameter in task.named_parameters()}
    for name, rate in found.items():
        if name.startswith("stem.") or name == "backbone.position.table":
            assert rate == 0.125, name
        elif name.startswith("backbone.layers."):
            assert rate == (0.25, 0.5)[int(name.split(".")[2])], name
        else:
            assert rate == 1.0, name
