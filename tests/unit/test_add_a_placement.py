"""docs/add_a_placement.md: its files are a placement, outside of the package and in its table."""

import re
from pathlib import Path
from typing import Any

import pytest

from magneto.errors import ConfigError
from magneto.nn import PLACEMENTS, BackboneConfig, Placement, build_backbone
from tests.toys.runs import drive

PAGE = (Path(__file__).parents[2] / "docs/add_a_placement.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


OUTSIDE, ROW, FORMULA, TEST = blocks("python")
OUTSIDE_YAML, INSIDE_YAML = blocks("yaml")


@pytest.fixture(params=["outside", "inside"])
def calm_attention(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the files of the page in place and return the override for the YAML file to be found."""
    (tmp_path / "conf/backbone").mkdir(parents=True)
    yaml = tmp_path / "conf/backbone/calm_attention.yaml"
    if request.param == "outside":
        (tmp_path / "my_placements.py").write_text(OUTSIDE)
        monkeypatch.syspath_prepend(str(tmp_path))
        yaml.write_text(OUTSIDE_YAML)
    else:
        rows = eval(f"{{{ROW}}}", {"Placement": Placement})
        monkeypatch.setattr("magneto.nn.placement.PLACEMENTS", {**PLACEMENTS, **rows})
        yaml.write_text(INSIDE_YAML)
    return f"hydra.searchpath=[file://{tmp_path}/conf]"


def test_page_placement_trains(calm_attention: str, text_overrides: list[str]) -> None:
    """Three steps and an export, from which the model of the placement is built again."""
    overrides = [
        calm_attention,
        "task=causal_lm",
        *text_overrides,
        "trainer.max_steps=3",
        "task.sample={max_new_tokens: 4}",
    ]
    result = drive([*overrides, "backbone=calm_attention"])
    assert result["status"] == "finished" and result["backbone"].endswith("calm_attention")
    assert result["metrics"]["test/loss"] > 0
    model = build_backbone(BackboneConfig.from_dict(result["config"]["backbone"]))
    names = dict(model.named_parameters())
    for part in ("self_attention.pre_norm", "self_attention.branch_norm", "feed_forward.pre_norm"):
        assert f"layers.1.{part}.weight" in names


@pytest.mark.parametrize("calm_attention", ["outside"], indirect=True)
def test_page_test_and_formula(calm_attention: str) -> None:
    """The test of the page passes, and its formula is a gain."""
    names: dict[str, Any] = {}
    exec(TEST, names)
    names["test_calm_attention_formula"]()
    exec(FORMULA, names)
    config = BackboneConfig(num_layers=8)
    row = names["half_normed"]
    assert row.gain_out(config.depth("encoder")) == 0.25
    assert [row.pre(config.depth("encoder", layer)) for layer in (4, 5)] == [False, True]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "no_such_module.calm_attention",
            "cannot be imported: No module named 'no_such_module'. Set PYTHONPATH",
        ),
        ("magneto.nn.no_such_row", "cannot be imported: module 'magneto.nn' has no attribute"),
        ("magneto.nn.Encoder", "is a type. Set it to a magneto.nn.Placement"),
    ],
)
def test_wrong_import_path_raises(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BackboneConfig(placement=path)
