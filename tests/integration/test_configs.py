"""Every file of conf/ composes, and what it describes can be built."""

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from magneto import engine
from magneto.cli import CONF, options
from magneto.errors import UserError, from_mapping
from magneto.nn import BackboneConfig, build_backbone
from magneto.optim import OptimizerConfig, SchedulerConfig

ALONE = {"data": "speech"}  # a shared base, not to be chosen


def plain(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True, enum_to_str=True)


def choices(*groups: str) -> list[str]:
    return [
        f"{group}={option}" for group in groups for option in options(group) if ALONE.get(group) != option
    ]


def build(config: dict) -> None:
    from_mapping(OptimizerConfig, config["optimizer"], "optimizer")
    from_mapping(SchedulerConfig, config["scheduler"], "scheduler")
    BackboneConfig.from_dict(config["backbone"])
    engine._instantiate(config["data"], "data")
    engine._trainer_arguments(config)


EVERYTHING = choices(
    "backbone", "size", "optimizer", "scheduler", "trainer", "callbacks", "logger", "debug", "data"
)


@pytest.mark.parametrize("choice", EVERYTHING)
@pytest.mark.parametrize("task", options("task"))
def test_each_choice_composes_and_instantiates(task: str, choice: str, tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"audio_filepath": "a.wav", "text": "a"}\n')
    more = [f"data.sources.manifest.manifest={manifest}"] if choice == "data=manifest" else []
    build(plain(f"task={task}", choice, *more))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_each_experiment_composes_instantiates_and_names_its_task(experiment: str) -> None:
    config = plain(f"task={experiment.split('/')[0]}", f"experiment={experiment}")
    assert config["experiment_task"] == config["task"]["name"]
    build(config)


def test_every_field_of_the_backbone_can_be_overridden_from_the_command_line() -> None:
    assert set(plain("task=asr")["backbone"]) == {field.name for field in dataclasses.fields(BackboneConfig)}


@pytest.mark.parametrize("size", options("size"))
@pytest.mark.parametrize("backbone", options("backbone"))
def test_each_size_of_each_backbone_builds(size: str, backbone: str) -> None:
    import torch

    config = plain("task=asr", f"size={size}", f"backbone={backbone}")["backbone"]
    with torch.device("meta"):
        stack = build_backbone(BackboneConfig.from_dict(config))
    assert len(stack.layers) == config["num_layers"]


def test_an_experiment_for_another_task_is_refused() -> None:
    config = plain("task=asr")
    config["experiment_task"] = "mlm"
    with pytest.raises(UserError, match="task=mlm"):
        engine._check_task(config)


def test_the_task_wins_over_defaults_and_the_command_line_over_the_task() -> None:
    assert plain("task=asr")["data"]["name"] == "stamps"
    assert plain("task=asr", "data=fotaq")["data"]["name"] == "fotaq"
    assert plain("task=asr", "backbone.position=rotary")["backbone"]["position"] == "rotary"
