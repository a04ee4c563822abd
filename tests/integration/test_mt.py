"""Translation, end to end through `magneto.commands.run`: learn, resume, average, score as sacrebleu does, translate."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from magneto.commands import build, run
from magneto.config.groups import CONF
from magneto.data.translation.module import TranslationDataModule
from magneto.errors import MagnetoError
from magneto.metrics.translation import TranslationScores
from magneto.tasks.registry import load_task
from tests.toys.runs import SHORT, drive, folders
from tests.toys.translation import toy_translation, translation_files


def plain_data(config: dict) -> TranslationDataModule:
    """The run's data, ready to give its test batches."""
    data = build.build_data(config["data"])
    assert isinstance(data, TranslationDataModule)
    data.setup()
    return data


LEARN = (
    "trainer.max_steps=240", "trainer.val_check_interval=120", "optimizer=adamw", "optimizer.lr=1e-2", "backbone.d_model=48",
    "data.batch_tokens=800", "backbone.dropout=0", "scheduler.warmup=20",
)  # fmt: skip


@pytest.fixture
def overrides(translation_overrides: list[str]) -> list[str]:
    return translation_overrides


@pytest.fixture(scope="module")
def learnt(
    toy_translation_files: Path, prepared_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The result of a run that has learnt the toy language."""
    runs_dir = tmp_path_factory.mktemp("learnt")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [*toy_translation(toy_translation_files, prepared_dir, runs_dir), *LEARN, "name=learnt"]
        return run.run(compose("config", overrides))


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_unseen_sentences_are_translated(learnt, toy_translation_files: Path) -> None:
    """It learns to translate sentences it never saw."""
    folder, metrics = Path(learnt["folder"]), learnt["metrics"]
    assert metrics["test/bleu"] > 90, metrics
    assert metrics["test/chrf"] > 90 and metrics["test/ter"] < 10 and metrics["val/bleu"] > 90
    # What was translated lies in the run's folder, line by line with its source and its reference.
    corpora, references = (lines(toy_translation_files / f"test.{language}") for language in ("en", "fr"))
    assert dict(zip(lines(folder / "test.src"), lines(folder / "test.ref"), strict=True)) == dict(
        zip(corpora, references, strict=True)
    )
    samples = [json.loads(line) for line in lines(folder / "samples.jsonl")]
    assert {sample["split"] for sample in samples} == {"val", "test"}
    shown = dict(zip(lines(folder / "test.src"), lines(folder / "test.hyp"), strict=True))
    for sample in samples:
        assert sample["kind"] == "translation" and sample["direction"] == "en-fr"
        if sample["split"] == "test":
            assert shown[sample["source"]] == sample["hypothesis"]


def test_sacrebleu_itself_gives_the_same_numbers(run) -> None:
    # Half learnt: no score is at the end of its scale.
    result = run(*LEARN, "trainer.max_steps=60", "trainer.val_check_interval=60")
    folder = Path(result["folder"])
    command = [sys.executable, "-m", "sacrebleu", str(folder / "test.ref"), "-i", str(folder / "test.hyp")]
    done = subprocess.run(
        [*command, "-m", "bleu", "chrf", "ter", "-w", "6"], capture_output=True, text=True, check=True
    )
    recorded = json.loads((folder / "test.scores.json").read_text())
    for entry in json.loads(done.stdout):
        name = {"BLEU": "bleu", "chrF2": "chrf", "TER": "ter"}[entry["name"]]
        assert result["metrics"][f"test/{name}"] == pytest.approx(entry["score"], abs=1e-5)
        assert entry["signature"] == recorded[name]["signature"]
        assert recorded[name][name] == result["metrics"][f"test/{name}"]
    assert 5 < result["metrics"]["test/bleu"] < 95


def test_average_is_tested_and_exported(run) -> None:
    """The average of the last validations is tested and exported."""
    result = run("name=one", "callbacks.average_last=2", "optimizer.lr=1e-2")
    folder = Path(result["folder"])
    kept = sorted((folder / "checkpoints").glob("weights-*"))
    assert [path.name for path in kept] == ["weights-00000016.safetensors", "weights-00000020.safetensors"]
    first, second = map(load_file, kept)
    exported, average = load_task(folder / "export"), load_task(folder / "checkpoints/average.ckpt")
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    moved = 0
    for name, weight in exported.state_dict().items():
        assert torch.equal(second[name], last[name])
        assert torch.allclose(weight, (first[name] + second[name]) / 2, atol=1e-7)
        assert torch.equal(weight, average.state_dict()[name])
        moved += not torch.equal(weight, second[name])
    assert moved
    again = run("mode=test", f"checkpoint={folder}/checkpoints/average.ckpt")
    tested = {key: value for key, value in result["metrics"].items() if key.startswith("test/")}
    assert again["metrics"] == pytest.approx(tested)
    assert "average of the weights after steps 16, 20" in (folder / "log.txt").read_text()


def test_lines_are_translated_in_order(run, learnt, toy_translation_files: Path, tmp_path, capsys) -> None:
    folder = Path(learnt["folder"])
    source = tmp_path / "input.txt"
    sentences = lines(toy_translation_files / "test.en")
    sentences[3] = "the cat"  # lengths differ, so that sorting by length would show
    sentences[7] = ""
    sentences.append("the old bird likes the red tree and the cat")
    source.write_text("".join(f"{line}\n" for line in sentences), encoding="utf-8")
    printed = []
    for batch in (1, 5):
        capsys.readouterr()
        result = run("mode=predict", f"checkpoint={folder}", f"input={source}", f"predict.batch={batch}")
        printed.append(capsys.readouterr().out.splitlines())
        assert [entry["source"] for entry in result["results"]] == sentences
    assert printed[0] == printed[1]
    assert printed[0][7] == ""
    right = sum(
        ours == theirs
        for ours, theirs in zip(printed[0], lines(toy_translation_files / "test.fr"), strict=False)
    )
    assert right > 30  # of 38

    found = run(
        "mode=predict", f"checkpoint={folder}", "prompt=the red boat sees the old cat", "predict.n_best=3",
        "predict.beam=5", "predict.length_penalty=0.5", f"output={tmp_path / 'out.jsonl'}",
    )["results"]  # fmt: skip
    assert [entry["rank"] for entry in found] == [1, 2, 3]
    assert found[0]["score"] > found[1]["score"] > found[2]["score"]
    assert len({entry["translation"] for entry in found}) == 3
    assert len(lines(tmp_path / "out.jsonl")) == 3


def test_two_tagged_directions(run, toy_translation_files: Path) -> None:
    """Two directions with tags have scores of their own."""
    back = translation_files(toy_translation_files, "fr", "en", "back")
    result = run(
        "name=both", "data.tag=true", "trainer.max_steps=6",
        "+data.corpora.back={_target_:magneto.data.corpora.translation.translation_files.TranslationFilesReader,direction:fr-en}",
        *(f"+{override}" for override in back),
    )  # fmt: skip
    assert set(result["metrics"]) >= {
        "test/bleu/en-fr", "test/bleu/fr-en", "test/bleu_mean", "test/chrf/en-fr", "test/ter/fr-en", "val/bleu/en-fr",
    }  # fmt: skip
    folder = Path(result["folder"])
    assert sorted(path.name for path in (folder / "test").iterdir()) == [
        f"{direction}.{side}" for direction in ("en-fr", "fr-en") for side in ("hyp", "ref", "src")
    ]
    assert sorted(lines(folder / "test/fr-en.ref")) == sorted(lines(toy_translation_files / "test.en"))
    assert sorted(lines(folder / "test.hyp")) == sorted(
        lines(folder / "test/fr-en.hyp") + lines(folder / "test/en-fr.hyp")
    )
    model = f"checkpoint={folder}/export"
    (french,) = run("mode=predict", model, "prompt=the cat", "predict.target=fr")["results"]
    (english,) = run("mode=predict", model, "prompt=le chat", "predict.target=en")["results"]
    assert french["source"] == "the cat" and english["source"] == "le chat"
    with pytest.raises(MagnetoError, match=r"predict\.target=de.*en, fr"):
        run("mode=predict", model, "prompt=the cat", "predict.target=de")
    with pytest.raises(MagnetoError, match=r"several languages.*predict\.target= to one of en, fr"):
        run("mode=predict", model, "prompt=the cat")


@pytest.mark.parametrize("shared", [True, False])
def test_translator_starts_from_another(run, tmp_path: Path, shared: bool) -> None:
    """Its tokenizers come along, though this corpus would give others, and is too small for the default vocabulary."""
    first = run(
        "name=one",
        f"data.tokenizer.shared={str(shared).lower()}",
        "data.tokenizer.vocab_size=80",
        "trainer.max_steps=8",
    )
    source = Path(first["folder"]) / "export"
    corpus = {}
    for split, count in (("train", 30), ("val", 4), ("test", 4)):
        rows = [
            f"the {split} sees {chr(97 + n)}{n} cats\tle {split} voit {chr(97 + n)}{n} chats"
            for n in range(count)
        ]
        (tmp_path / f"{split}.tsv").write_text("".join(f"{row}\n" for row in rows))
        corpus[split] = f"data.corpora.files.{split}={{tsv:{tmp_path / split}.tsv}}"
    again = drive(
        [
            "task=mt", "data=translation_files", *corpus.values(), "data.clean.templates=false",
            *folders(tmp_path / "data", tmp_path), *SHORT, "callbacks.average_last=null",
        ],
        f"init_from={source}", "name=two", "trainer.max_steps=2", "optimizer.lr=1e-12",
    )  # fmt: skip
    task, tuned = load_task(source), load_task(Path(again["folder"]) / "export")
    for key in ("source_tokenizer", "target_tokenizer", "shared"):
        assert getattr(tuned.info, key) == getattr(task.info, key)
    assert tuned.info.corpora != task.info.corpora
    for name, weight in task.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], weight)
    assert ": loaded " in (Path(again["folder"]) / "log.txt").read_text()


def test_a_test_set_alone_gives_the_same_scores(run, toy_translation_files: Path, tmp_path: Path) -> None:
    """Neither train and val files nor a vocabulary of its own are needed to test a trained model."""
    first = run("trainer.max_steps=6", "name=one")
    source, target = (toy_translation_files / f"test.{language}" for language in ("en", "fr"))
    files = f"data.corpora.files.test={{source:{source},target:{target}}}"
    command = ["task=mt", "data=translation_files", files, *folders(tmp_path / "data", tmp_path), *SHORT]
    tested = drive(command, "mode=test", f"checkpoint={Path(first['folder']) / 'export'}")["metrics"]
    for name in ("test/loss", "test/bleu", "test/chrf", "test/ter"):
        assert tested[name] == pytest.approx(first["metrics"][name], rel=1e-5), name
    with pytest.raises(
        MagnetoError, match=r"left for the train and val splits.*A test set alone is for .*mode=test"
    ):
        drive(command, "mode=prepare")


def test_a_published_test_set_is_scored_whole(run, tmp_path: Path, caplog) -> None:
    """Names, numbers and lines beyond the positions are lines of it as any other."""
    first = run("name=short", "trainer.max_steps=2", "data.max_tokens=30", "backbone.max_positions=32")
    long = " ".join(["the cat sees a bird"] * 12)
    sides = [
        "the red boat\tle bateau rouge",
        "Taxi\tTaxi",
        "10:30\t10:30",
        f"{long}\t{long}",
        "the red boat\tle bateau",
    ]
    (tmp_path / "test.tsv").write_text("".join(f"{line}\n" for line in sides))
    command = [
        "task=mt", "data=translation_files", f"data.corpora.files.test={{tsv:{tmp_path / 'test.tsv'}}}",
        "data.max_tokens=200", *folders(tmp_path / "data", tmp_path), *SHORT,
    ]  # fmt: skip
    references: list[str] = []
    update = TranslationScores.update

    def noted(self: TranslationScores, hypotheses: Any, texts: list[str], *rest: Any, **named: Any) -> None:
        references.extend(texts)
        update(self, hypotheses, texts, *rest, **named)

    with pytest.MonkeyPatch.context() as patch, caplog.at_level("WARNING"):
        patch.setattr(TranslationScores, "update", noted)
        drive(command, "mode=test", f"checkpoint={Path(first['folder']) / 'export'}")
    assert sorted(references) == sorted(line.split("\t")[1] for line in sides)
    assert "1 pairs of the val and test sides that the corpus states have more than 30 tokens" in caplog.text


def test_separate_vocabularies(run) -> None:
    """Separate vocabularies and an output layer of its own."""
    result = run("data.tokenizer.shared=false", "data.tokenizer.vocab_size=80", "trainer.max_steps=8")
    task = load_task(Path(result["folder"]) / "export")
    assert task.source_stem is not task.target_stem
    untied = run("task.tie_output=false", "trainer.max_steps=8")
    assert load_task(Path(untied["folder"]) / "export").head is not None
    tied = load_task(Path(run("trainer.max_steps=8")["folder"]) / "export")
    assert tied.source_stem is tied.target_stem and tied.head is None
    assert untied["parameters"] - tied.num_parameters == tied.output_weight.numel()


def test_smoothing_is_for_training_alone(run, rows_of) -> None:
    """`val/loss` is the plain loss of the weights that stand in the checkpoint, whatever the training smooths."""
    smooth = run("trainer.max_steps=4", "name=smooth", "task.label_smoothing=0.3")
    again = run("trainer.max_steps=4", "name=plain", "task.label_smoothing=0")
    for result, smoothed in ((smooth, True), (again, False)):
        last = {name: float(value) for _, name, value in rows_of(result["folder"])[1:]}
        assert (last["train/loss"] > 1.001 * last["train/nll"] > 0) == smoothed
    checkpoint = f"checkpoint={smooth['folder']}/checkpoints/best.ckpt"
    tested = run("mode=test", checkpoint, "task.label_smoothing=0.3")["metrics"]["test/loss"]
    task = load_task(Path(smooth["folder"]) / "export")
    data = plain_data(smooth["config"])
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in data.test_dataloader():
            hidden = task(batch["source"], batch["source_mask"], batch["target_in"])
            logits = hidden @ task.output_weight.T
            wanted = batch["target_out"]
            total += float(F.cross_entropy(logits[wanted >= 0], wanted[wanted >= 0], reduction="sum"))
            count += int((wanted >= 0).sum())
    assert smooth["metrics"]["test/loss"] == pytest.approx(total / count, rel=1e-5)
    assert tested == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.beam=0", r"task\.beam=0"),
        ("task.bleu_tokenize=13b", "13a"),
        ("callbacks.average_last=1", "average_last"),
    ],
)
def test_mistake_has_one_message(run, override: str, message: str) -> None:
    """A mistake gets one message with its remedy."""
    with pytest.raises(MagnetoError, match=message):
        run(override)


@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal"])
def test_texts_beyond_positions_are_refused(run, position: str) -> None:
    """128 tokens and </s> are 136 in a batch, whose lengths are rounded up to 8."""
    with pytest.raises(MagnetoError, match=r"data\.max_tokens=128, 136 .*max_positions=135.*to at most 127"):
        run(f"backbone.position={position}", "backbone.max_positions=135")
    run(f"backbone.position={position}", "backbone.max_positions=136", "trainer.max_steps=1", "name=fits")


def test_two_ways_of_averaging_are_refused(run) -> None:
    with pytest.raises(MagnetoError, match=r"average_last.*ema_decay"):
        run("callbacks.average_last=2", "callbacks.ema_decay=0.9")
