"""task=text_classification, end to end: learn, start from a masked LM, resume, label lines, write for GLUE."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magneto.errors import MagnetoError
from tests.toys.runs import SHORT, SMALL, drive, folders

FRUIT, TOOLS = ["apple", "pear", "plum", "fig"], ["saw", "drill", "plane", "file"]
OTHER = ["the", "a", "red", "old", "big", "on", "in", "and", "sees", "has"]
Run = Callable[..., dict[str, Any]]


def words(random: np.random.Generator, kind: list[str]) -> str:
    """Six words, of which one says what it is about."""
    found = [str(word) for word in random.choice(OTHER, 5)]
    found.insert(int(random.integers(6)), str(random.choice(kind)))
    return " ".join(found)


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in the layouts of SST-2 (fruit or tool), RTE (both texts about one kind?) and STS-B (how many fruits?)."""
    folder = tmp_path_factory.mktemp("glue")
    random = np.random.default_rng(0)
    headers = {
        "SST-2": "sentence\tlabel",
        "RTE": "index\tsentence1\tsentence2\tlabel",
        "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    }
    for task, header in headers.items():
        (folder / task).mkdir()
        for split, count in (("train", 160), ("dev", 40)):
            rows = [header]
            for number in range(count):
                first, second = (int(kind) for kind in random.integers(0, 2, 2))
                a, b = (words(random, (FRUIT, TOOLS)[kind]) for kind in (first, second))
                rows.append(
                    {
                        "SST-2": f"{a}\t{first}",
                        "RTE": f"{number}\t{a}\t{b}\t{'entailment' if first == second else 'not_entailment'}",
                        "STS-B": "\t".join(
                            [str(number), *["x"] * 6, a, b, f"{5 - 2.5 * (first + second):.3f}"]
                        ),
                    }[task]
                )
            (folder / task / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def compose_and_run(prepared_dir: Path, tmp_path: Path) -> Run:
    return lambda task, *more: drive([f"task={task}", *folders(prepared_dir, tmp_path), *SHORT], *more)


@pytest.fixture
def run(compose_and_run: Run, glue: Path) -> Run:
    """`run("SST-2", ...)`: a small, deterministic run on one of the made-up tasks."""

    def call(task: str, *more: str) -> dict[str, Any]:
        return compose_and_run(
            "text_classification", "data=glue", f"data.corpus.folder={glue}", f"data.corpus.task={task}",
            "data.max_tokens=48", "data.batch_size=16",
            *([] if any("init_from" in o for o in more) else
              ["data.tokenizer.kind=bpe", "data.tokenizer.vocab_size=70", *SMALL]),
            *more,
        )  # fmt: skip

    return call


LEARN = ("trainer.max_steps=150", "trainer.val_check_interval=150", "optimizer.lr=4e-3", "backbone.dropout=0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric", "least", "pooling"),
    [
        ("SST-2", "accuracy", 0.95, "mean"),
        ("SST-2", "accuracy", 0.95, "first"),
        ("STS-B", "pearson", 0.9, "mean"),
    ],
)
def test_it_learns_what_is_in_the_words(run: Run, task: str, metric: str, least: float, pooling: str) -> None:
    result = run(task, *LEARN, f"task.pooling={pooling}")
    assert result["metrics"][f"test/{metric}"] > least
    monitored = "score" if task == "STS-B" else metric  # the mean, where there are several
    assert result["monitor"]["metric"] == f"val/{monitored}" and result["monitor"]["mode"] == "max"


def test_lines_are_labelled_in_batches(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is printed behind its class and the probability of it."""
    folder = Path(run("SST-2", "name=one")["folder"])
    lines = tmp_path / "lines.txt"
    lines.write_text("the red apple\na big old saw\n" * 20)
    capsys.readouterr()
    found = run("SST-2", "mode=predict", f"checkpoint={folder}", f"input={lines}")["results"]
    first = found[0]
    assert len(found) == 40 and first["input"] == "the red apple"
    assert first["label"] in "01" and 0.5 <= first["probability"] <= 1
    assert (
        capsys.readouterr().out.splitlines()[0] == f"{first['label']}\t{first['probability']}\tthe red apple"
    )


def test_a_table_alone_gives_the_same_scores(run: Run, glue: Path, tmp_path: Path) -> None:
    """Neither a training table nor a vocabulary of its own is needed to test a trained model."""
    first = run("SST-2", "trainer.max_steps=2", "name=one")
    own = ["task=text_classification", "data=tsv", f"data.corpus.test={glue / 'SST-2/dev.tsv'}"]
    tested = drive(
        [*own, *folders(tmp_path / "data", tmp_path), *SHORT],
        "mode=test",
        f"checkpoint={Path(first['folder']) / 'export'}",
    )["metrics"]
    for name in ("test/loss", "test/accuracy"):
        assert tested[name] == pytest.approx(first["metrics"][name], rel=1e-5), name


def test_file_for_the_glue_server(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A test file of glue becomes what its server takes."""
    source = Path(run("RTE", "name=one", "trainer.max_steps=2")["folder"]) / "export"
    file = tmp_path / "test.tsv"
    rows = [f"{number}\tthe apple\ta saw" for number in range(70)]
    file.write_text("\n".join(["index\tsentence1\tsentence2", *rows]) + "\n")
    capsys.readouterr()
    run("RTE", "mode=predict", f"checkpoint={source}", f"input={file}", "predict.glue=RTE")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "index\tprediction" and len(printed) == 71
    assert {line.split("\t")[1] for line in printed[1:]} <= {"entailment", "not_entailment"}
    assert [line.split("\t")[0] for line in printed[1:]] == list(map(str, range(70)))
    with pytest.raises(MagnetoError, match="not trained on that task"):
        file.write_text("index\tsentence\n0\ta\n")
        run("RTE", "mode=predict", f"checkpoint={source}", f"input={file}", "predict.glue=CoLA")
    with pytest.raises(MagnetoError, match="two texts with a tab"):
        run("RTE", "mode=predict", f"checkpoint={source}", "prompt='only one'")
    with pytest.raises(MagnetoError, match="needs input="):
        run("RTE", "mode=predict", f"checkpoint={source}", "prompt=a", "predict.glue=RTE")


def test_pretrained_shape_and_tokenizer(run: Run, compose_and_run: Run, glue: Path) -> None:
    """One command from a masked LM to a classifier: no size and no vocabulary is said twice."""
    text = glue / "text"
    for split in ("train", "val", "test"):
        (text / split).mkdir(parents=True, exist_ok=True)
        lines = (glue / "SST-2/train.tsv").read_text().splitlines()[1:]
        (text / split / "all.txt").write_text(" ".join(line.split("\t")[0] for line in lines))
    pretrained = compose_and_run(
        "mlm", "data=text_files", *(f"data.corpora.text_files.{s}={text / s}" for s in ("train", "val", "test")),
        "data.tokenizer.kind=bpe", "data.tokenizer.vocab_size=60", "data.block_size=32", "data.batch_size=8",
        "name=pretrained", "backbone=pre_ln", *SMALL,
    )  # fmt: skip
    folder = Path(pretrained["folder"])
    results = [
        run("SST-2", f"init_from={source}", f"name=tuned{number}", "trainer.max_steps=4")
        for number, source in enumerate((folder / "export", folder / "checkpoints/best.ckpt"))
    ]
    for result in results:
        config = json.loads((Path(result["folder"]) / "export/config.json").read_text())["hyper_parameters"]
        assert (config["backbone"]["placement"], config["backbone"]["num_layers"]) == ("pre_ln", 2)
        assert config["backbone"]["dropout"] == 0.1  # the task's own: dropout is no part of the shape
        assert config["info"]["tokenizer"] == (folder / "export/tokenizer.json").read_text()
        log = (Path(result["folder"]) / "log.txt").read_text()
        assert "tensors (stem.embedding.weight, backbone:" in log
        assert "newly initialised: pooler: 2, head: 2" in log
    # Best and exported weights are the same here, and so are the runs.
    assert results[0]["metrics"] == results[1]["metrics"]
    with pytest.raises(MagnetoError, match="d_model: 32"):
        run("SST-2", f"init_from={folder / 'export'}", "backbone.d_model=64")
    with pytest.raises(MagnetoError, match="its tokenizer"):
        run(
            "SST-2",
            f"init_from={folder / 'export'}",
            "data.tokenizer.kind=bpe",
            "data.tokenizer.vocab_size=70",
        )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task.pooling=max",), "mean"),
        (("task.head_dropout=1",), "head_dropout"),
        (("backbone.max_positions=40",), "set data.max_tokens to 40"),
        (("data.tokenizer.vocab_size=7000",), "7000"),
        (("data.corpus.folder=nowhere",), "nowhere"),
    ],
)
def test_a_mistake_gets_one_message(run: Run, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        run("SST-2", *overrides)
