"""Every file of conf/ composes, and what it describes can be built."""

import dataclasses
import functools
import inspect
from pathlib import Path

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from magneto.commands import build, trainer
from magneto.config.groups import CONF, options
from magneto.config.parts import (
    CallbacksConfig,
    LoggerConfig,
    OptimizerConfig,
    SchedulerConfig,
    TrainerConfig,
)
from magneto.config.validate import from_mapping
from magneto.errors import MagnetoError
from magneto.nn import BackboneConfig, build_backbone
from magneto.tasks.registry import task_class


def plain(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True, enum_to_str=True)


def choices(*groups: str) -> list[str]:
    return [f"{group}={option}" for group in groups for option in options(group)]


def make(config: dict) -> None:
    from_mapping(OptimizerConfig, config["optimizer"], "optimizer")
    from_mapping(SchedulerConfig, config["scheduler"], "scheduler")
    task = task_class(config["task"]["_target_"])
    BackboneConfig.from_dict(config["backbone"] | task.shape_from(config["backbone"], config["data"]))
    build.build_data(config["data"])
    options = {key: value for key, value in config["task"].items() if key not in ("_target_", "name")}
    from_mapping(task.Options, options, "task")
    from_mapping(CallbacksConfig, config["callbacks"], "callbacks")
    from_mapping(LoggerConfig, config["logger"], "logger")
    inspect.signature(L.Trainer).bind(
        **trainer.trainer_arguments(from_mapping(TrainerConfig, config["trainer"], "trainer"))
    )


NEEDED = {
    "manifest": ["data.corpora.manifest.manifest=m.jsonl"],
    "translation_files": ["data.corpora.files.tsv=pairs.tsv"],
    "text_files": ["data.corpora.text_files.path=texts"],
    "glue": ["data.corpus.folder=glue"],
    "hub_images": ["data.corpora.hub_images.name=images"],
    "ade20k": ["data.corpora.ade20k.folder=texts"],
    "hub_masks": ["data.corpora.hub_masks.name=masks"],
    "image_folder": ["data.corpora.image_folder.folder=texts"],
    "vqa": [
        "data.corpora.vqa.questions={train: a.json, val: a.json}",
        "data.corpora.vqa.annotations={train: a.json, val: a.json}",
        "data.corpora.vqa.folder=texts",
    ],
    "nlvr2": [
        "data.corpora.nlvr2.files={train: a.json, val: a.json}",
        "data.corpora.nlvr2.folders={train: texts, val: texts}",
    ],
    "imagenet": ["data.corpora.imagenet.folder=texts"],
    "webdataset": ["data.corpora.webdataset.shards=texts/*.tar"],
    "caption_file": ["data.corpora.captions.file=m.jsonl"],
    "coco_captions": ["data.corpora.coco.annotations=m.jsonl", "data.corpora.coco.folder=texts"],
    "hub_captions": ["data.corpora.hub.name=images"],
    "webdataset_speech": ["data.corpora.webdataset.shards=texts/*.tar"],
    "webdataset_captions": ["data.corpora.webdataset.shards=texts/*.tar"],
    "tsv": ["data.corpus.train=a.tsv", "data.corpus.val=a.tsv", "data.corpus.test=a.tsv"],
}


def needed(data: str) -> list[str]:
    """Overrides without which a corpus cannot be chosen: those that name the user's own files."""
    return NEEDED.get(data, [])


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that `needed` names."""
    monkeypatch.chdir(tmp_path)
    Path("m.jsonl").write_text('{"audio_filepath": "a.wav", "text": "a"}\n')
    Path("a.tsv").write_text("sentence\tlabel\na\tx\n")
    Path("pairs.tsv").write_text("a\tb\n")
    for folder in ("texts", "glue"):
        Path(folder).mkdir()
        Path(folder, "train.tsv").write_text("")


@functools.cache
def kind(choice: str) -> str:
    """The class of the data that `task=...` or `data=...` chooses."""
    return str(plain(choice)["data"]["_target_"])


@pytest.mark.parametrize("task", options("task"))
def test_each_task_instantiates(task: str) -> None:
    make(plain(f"task={task}"))


@pytest.mark.parametrize(
    "choice",
    choices("backbone", "size", "optimizer", "scheduler", "trainer", "callbacks", "logger", "debug"),
)
def test_each_choice_instantiates(choice: str) -> None:
    make(plain("task=asr", choice))


@pytest.mark.parametrize("data", options("data"))
def test_data_fit_tasks_of_their_kind(data: str) -> None:
    """And no others. Images have patches of a sensible size: attention is quadratic in their number."""
    fitting = [task for task in options("task") if kind(f"task={task}") == kind(f"data={data}")]
    assert fitting
    for task in fitting:
        config = plain(f"task={task}", f"data={data}", *needed(data))
        build.check_task(config)
        make(config)
        if "image" in kind(f"data={data}"):
            grid, rest = divmod(config["data"]["image_size"], config["data"]["patch_size"])
            assert not rest and 49 <= grid**2 <= 196
    other = next(task for task in options("task") if task not in fitting)
    with pytest.raises(MagnetoError, match=rf"task={other} needs data of the kind \w+, and data="):
        build.check_task(plain(f"task={other}", f"data={data}"))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_each_experiment_instantiates(experiment: str) -> None:
    """And names its task."""
    corpus = {
        "mlm/bert_base": "text_files",
        "text_classification/glue": "glue",
        "beit/beit_base_12l": "imagenet",
        "beit/beit_large_24l": "imagenet",
        "image_classification/imagenet_beit_base": "imagenet",
        "image_classification/imagenet_beit_large": "imagenet",
        "visual_tokenizer/vqkd_base": "imagenet",
        "segmentation/ade20k_base": "ade20k",
        "vl_classification/beit3_vqa": "vqa",
        "vl_classification/beit3_nlvr2": "nlvr2",
        "vl/beit3_base_24l": "webdataset_captions",
        "vl/coco_beit3_base": "coco_captions",
    }.get(experiment, "")
    folder = experiment.split("/")[0]  # a study chooses its task itself
    task = [f"task={folder}"] if folder in options("task") else []
    config = plain(*task, f"experiment={experiment}", *needed(corpus))
    assert config["experiment_task"] == config["task"]["name"]
    make(config)


@pytest.mark.parametrize("task", options("task"))
def test_predict_group_has_the_task_options(task: str) -> None:
    """And the group that is taken without `task=` has those of all tasks."""
    config = plain(f"task={task}")
    fields = dataclasses.fields(task_class(config["task"]["_target_"]).PredictOptions)
    assert set(config["predict"]) == {field.name for field in fields}
    assert set(config["predict"]) <= set(plain("mode=predict")["predict"])
    assert not any(config["predict"].values()), "defaults stand in the dataclass"


def test_every_field_of_the_backbone_is_a_key() -> None:
    assert set(plain("task=asr")["backbone"]) == {field.name for field in dataclasses.fields(BackboneConfig)}


@pytest.mark.parametrize("size", options("size"))
@pytest.mark.parametrize("backbone", options("backbone"))
def test_each_size_of_each_backbone_builds(size: str, backbone: str) -> None:
    import torch

    config = plain("task=asr", f"size={size}", f"backbone={backbone}")["backbone"]
    with torch.device("meta"):
        stack = build_backbone(BackboneConfig.from_dict(config))
    assert len(stack.layers) == config["num_layers"]


def test_stamp_questions_hold_out_as_captions() -> None:
    """task=vl_classification starts from task=vl: a stamp of its test is none that was trained on with its caption."""
    shares = [
        {OmegaConf.load(CONF / "data" / f"{name}.yaml")[f"{split}_fraction"] for split in ("val", "test")}
        for name in ("stamps_emoji", "stamp_questions", "stamp_statements")
    ]
    assert shares[0] == shares[1] == shares[2]


def test_experiments_of_another_task() -> None:
    config = plain("task=asr")
    config["experiment_task"] = "mlm"
    with pytest.raises(MagnetoError, match="task=mlm"):
        build.check_task(config)


def test_order_of_precedence() -> None:
    """The task wins over defaults, and the command line over the task."""
    assert plain("task=asr")["data"]["name"] == "stamps"
    assert plain("task=asr", "data=librispeech")["data"]["name"] == "librispeech"
    assert plain("task=asr", "backbone.position=rotary")["backbone"]["position"] == "rotary"
