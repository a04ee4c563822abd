"""Every file of conf/ composes, and what it describes can be built."""

import dataclasses
import inspect
from pathlib import Path

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from magneto.commands import build, preflight, trainer
from magneto.config.groups import CONF, options
from magneto.config.parts import CallbacksConfig, LoggerConfig, OptimizerConfig, SchedulerConfig
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
    inspect.signature(L.Trainer).bind(**trainer.trainer_arguments(trainer.trainer_config(config["trainer"])))


EVERYTHING = choices("backbone", "size", "optimizer", "scheduler", "trainer", "callbacks", "logger", "debug")


NEEDED = {
    "manifest": ["data.corpora.manifest.manifest=m.jsonl"],
    "translation_files": ["data.corpora.files.tsv=pairs.tsv"],
    "text_files": ["data.corpora.text_files.path=texts"],
    "glue": ["data.corpus.folder=glue"],
    "hub_images": ["data.corpora.hub_images.name=images"],
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


DATA = [option for option in options("data")]
TARGETS = {option: plain(f"data={option}")["data"]["_target_"] for option in DATA}


@pytest.mark.parametrize("choice", EVERYTHING)
@pytest.mark.parametrize("task", options("task"))
def test_each_choice_composes_and_instantiates(task: str, choice: str) -> None:
    make(plain(f"task={task}", choice))


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("task", options("task"))
def test_each_task_takes_its_kind_of_data_and_refuses_the_others(task: str, data: str) -> None:
    fitting = TARGETS[data] == plain(f"task={task}")["data"]["_target_"]
    config = plain(f"task={task}", f"data={data}", *(needed(data) if fitting else []))
    if fitting:
        preflight.check_task(config)
        make(config)
    else:
        with pytest.raises(MagnetoError, match=rf"task={task} needs data of the kind \w+, and data="):
            preflight.check_task(config)


IMAGES = [
    (task, data)
    for task in options("task")
    for data in DATA
    if TARGETS[data] == plain(f"task={task}")["data"]["_target_"] and "image" in TARGETS[data]
]


@pytest.mark.parametrize(("task", "data"), IMAGES)
def test_each_corpus_of_images_has_patches_of_a_sensible_size(task: str, data: str) -> None:
    """Attention is quadratic in their number: 224 pixels in patches of 4 would be 3,136 of them."""
    config = plain(f"task={task}", f"data={data}", *needed(data))["data"]
    grid, rest = divmod(config["image_size"], config["patch_size"])
    assert not rest and 49 <= grid**2 <= 196


@pytest.mark.parametrize("experiment", options("experiment"))
def test_each_experiment_composes_instantiates_and_names_its_task(experiment: str) -> None:
    corpus = {
        "mlm/bert_base": "text_files",
        "text_classification/glue": "glue",
        "beit/beit_base_12l": "imagenet",
        "beit/beit_large_24l": "imagenet",
        "image_classification/imagenet_beit_base": "imagenet",
        "image_classification/imagenet_beit_large": "imagenet",
        "visual_tokenizer/vqkd_base": "imagenet",
        "vl_classification/beit3_vqa": "vqa",
        "vl_classification/beit3_nlvr2": "nlvr2",
        "vl/beit3_base_24l": "webdataset_captions",
        "vl/coco_beit3_base": "coco_captions",
    }.get(experiment, "")
    config = plain(f"task={experiment.split('/')[0]}", f"experiment={experiment}", *needed(corpus))
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


def test_questions_about_the_stamps_hold_out_what_their_captions_do() -> None:
    """task=vl_classification starts from task=vl: a stamp of its test is none that was trained on with its caption."""
    shares = [
        {OmegaConf.load(CONF / "data" / f"{name}.yaml")[f"{split}_fraction"] for split in ("val", "test")}
        for name in ("stamps_emoji", "stamp_questions", "stamp_statements")
    ]
    assert shares[0] == shares[1] == shares[2]


def test_an_experiment_for_another_task_is_refused() -> None:
    config = plain("task=asr")
    config["experiment_task"] = "mlm"
    with pytest.raises(MagnetoError, match="task=mlm"):
        preflight.check_task(config)


def test_the_task_wins_over_defaults_and_the_command_line_over_the_task() -> None:
    assert plain("task=asr")["data"]["name"] == "stamps"
    assert plain("task=asr", "data=librispeech")["data"]["name"] == "librispeech"
    assert plain("task=asr", "backbone.position=rotary")["backbone"]["position"] == "rotary"
