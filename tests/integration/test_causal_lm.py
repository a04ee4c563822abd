"""Causal language models, end to end: learn, measure, resume, generate."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate

from magneto.commands import build
from magneto.data.text.module import IGNORE, TextDataModule
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import MagnetoError
from magneto.tasks.causal_lm import TextScores
from magneto.tasks.registry import load_task
from magneto.training import monitor
from tests.toys.babble import BITS_PER_BYTE, WORDS
from tests.toys.runs import SHORT, drive, folders, values

LEARN = ("trainer.max_steps=250", "trainer.val_check_interval=250", "optimizer.lr=1e-2")


@pytest.fixture
def run_lm(run_text):
    """Runs of this task."""
    return lambda *more: run_text(
        "task=causal_lm", "data.eval_stride=16", "task.sample={max_new_tokens: 8}", *more
    )


@pytest.mark.slow
def test_it_learns_a_language_to_its_entropy(run_lm) -> None:
    result = run_lm(*LEARN, "name=one")
    metrics = result["metrics"]
    assert BITS_PER_BYTE < metrics["test/bits_per_byte"] < 1.25 * BITS_PER_BYTE
    assert metrics["test/perplexity"] == pytest.approx(math.exp(metrics["test/loss"]), rel=1e-4)
    assert set(metrics) >= {"val/bits_per_byte", "val/perplexity", "val/loss"}
    # What it writes is that language: no word that does not follow from the one before.
    found = run_lm(
        "mode=predict", f"checkpoint={result['folder']}/export", "prompt='baku cedo difa'", "predict.max_new_tokens=60",
        "predict.temperature=0.7",
    )["results"][0]  # fmt: skip
    words = (found["prompt"] + found["continuation"]).split()[:-1]  # the last may be cut
    places = [WORDS.index(word) for word in words]
    steps = [(b - a) % len(WORDS) for a, b in pairwise(places)]
    assert len(steps) > 20 and set(steps) == {1, 3}


def test_z_loss_is_in_the_training_loss_alone(run_lm) -> None:
    """At the first step the logarithm of the denominator is about that of the vocabulary's size."""
    short = ("trainer.max_steps=1", "trainer.val_check_interval=1", "optimizer.lr=1e-9")
    plain = run_lm(*short, "name=plain")
    penalised = run_lm(*short, "task.z_loss=0.1", "name=penalised")
    added = penalised["probe"]["first_loss"] - plain["probe"]["first_loss"]
    assert 0.1 * math.log(280) ** 2 < added < 0.2 * math.log(280) ** 2
    assert penalised["metrics"]["val/loss"] == pytest.approx(plain["metrics"]["val/loss"], rel=1e-4)


def test_share_of_the_peak_is_logged(run_lm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device is one that Lightning knows; a CPU is not."""
    short = ("trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1")
    assert not any("mfu" in row[1] for row in values(run_lm(*short, "name=cpu")["folder"], leave_out="lr"))
    monkeypatch.setattr(monitor, "peak_flops", lambda device, dtype: 1e12)
    rows = {
        row[1]: float(row[2])
        for row in values(run_lm(*short, "name=gpu")["folder"], leave_out="lr")
        if row[0] == "2"
    }
    assert rows["throughput/mfu"] == pytest.approx(rows["throughput/model_flops_per_s"] / 1e12)


@pytest.mark.parametrize("window", ["null", "4"])
def test_documents_of_a_block_are_apart(run_lm, window: str) -> None:
    """With document_mask what a block holds before a document changes nothing in it, else it does."""
    for masked in (True, False):
        result = run_lm(
            f"task.document_mask={str(masked).lower()}", f"backbone.attention_window={window}", f"name=m{masked}",
            "trainer.max_steps=4", "trainer.val_check_interval=4",
        )  # fmt: skip
        task = load_task(Path(result["folder"]) / "export")
        end = task.tokenizer.eos_id
        tokens = torch.tensor([[9, 8, 7, 6, end, *range(10, 20)], [3, 4, end, 4, end, *range(10, 20)]])
        batch = {"tokens": tokens, "targets": tokens.roll(-1, 1), "bytes": torch.ones(2)}
        assert task.documents(tokens)[1].tolist() == [1, 1, 1, 2, 2] + [3] * 10
        nll = task.step(batch).outputs.view(2, -1)
        assert torch.allclose(nll[0, 5:-1], nll[1, 5:-1], atol=1e-5) == masked


def test_perplexity_against_plain_torch(run_lm) -> None:
    """Each test token once, with a window that slides by 16 of 32 tokens, by plain torch on the document texts."""
    result = run_lm("name=one", "trainer.max_steps=8")
    task = load_task(Path(result["folder"]) / "export")
    settings = yaml.safe_load((Path(result["folder"]) / "config.yaml").read_text())["data"]
    folder = next(Path(settings["data_dir"]).glob("prepared/text-*"))
    info = json.loads((folder / "info.json").read_text())
    # The row of tokens as the documents make it: each ends with </s>, and so does what was before the first.
    data = instantiate({k: v for k, v in settings.items() if k != "name"}, _convert_="all")
    assert isinstance(data, TextDataModule)
    documents = list(data.documents("test"))
    tokenizer = TextTokenizer.from_json(task.info.tokenizer)
    row = [2]
    for document in documents:
        row += [*tokenizer.encode(document.text), 2]
    nats, scored = 0.0, 0
    for stop in [*range(32, len(row) - 1, 16), len(row) - 1]:
        window = row[max(0, stop - 32) : stop + 1]
        with torch.no_grad():
            log_probs = task.logits(task(torch.tensor([window[:-1]]))).log_softmax(-1)[0]
        for place in range(len(window) - 1 - (stop - scored), len(window) - 1):
            nats -= float(log_probs[place, window[place + 1]])
        scored = stop
    assert scored == info["tokens"]["test"]
    bytes_of_text = sum(len(document.text.encode()) for document in documents)
    assert result["metrics"]["test/perplexity"] == pytest.approx(math.exp(nats / scored), rel=1e-5)
    assert result["metrics"]["test/bits_per_byte"] == pytest.approx(
        nats / math.log(2) / bytes_of_text, rel=1e-5
    )


def test_scores_of_two_processes_add_up() -> None:
    whole, parts = TextScores(), [TextScores(), TextScores()]
    for number, (nats, tokens, size) in enumerate([(10.0, 4, 9), (7.5, 3, 11), (1.25, 2, 4)]):
        for scores in (whole, parts[number % 2]):
            scores.update(torch.tensor(nats), torch.tensor(tokens), torch.tensor(size))
    both = TextScores()
    both.update(*(sum(getattr(part, name) for part in parts) for name in ("nats", "tokens", "bytes")))
    assert {k: float(v) for k, v in both.compute().items()} == {
        k: float(v) for k, v in whole.compute().items()
    }
    assert float(whole.compute()["perplexity"]) == pytest.approx(math.exp(18.75 / 9))
    assert float(whole.compute()["bits_per_byte"]) == pytest.approx(18.75 / math.log(2) / 24)


def predicted(run_lm, capsys, source: Path, *more: str) -> tuple[list[dict[str, Any]], str]:
    capsys.readouterr()
    results = run_lm("mode=predict", f"checkpoint={source}", "predict.max_new_tokens=12", *more)["results"]
    return results, capsys.readouterr().out


def test_lines_are_continued_in_order(run_lm, capsys, tmp_path: Path) -> None:
    """In batches of two; greedy, so that a prompt gives the same wherever it stands."""
    source = Path(run_lm("name=one")["folder"]) / "export"
    prompts = ["baku", "cedo difa fogi gahu", "", "difa"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    greedy = "predict.temperature=0"
    found, shown = predicted(
        run_lm, capsys, source, f"input={tmp_path / 'prompts.txt'}", "predict.batch=2", greedy
    )
    assert [one["prompt"] for one in found] == prompts
    assert shown == "".join((one["prompt"] + one["continuation"]).rstrip("\n") + "\n" for one in found)
    for prompt, one in zip(prompts, found, strict=True):
        alone = predicted(run_lm, capsys, source, f"prompt='{prompt}'", greedy)[0]
        assert alone[0]["continuation"] == one["continuation"]


def test_compiled_steps_write_the_same(run_lm, capsys, tmp_path: Path) -> None:
    """One prompt and several, sampled; the step runs uncompiled here, which gives no rounding of its own."""
    source = Path(run_lm("name=one", "trainer.max_steps=8")["folder"]) / "export"
    (tmp_path / "prompts.txt").write_text("baku\ncedo difa fogi gahu\ndifa\n")
    for given in ("prompt=baku", f"input={tmp_path / 'prompts.txt'}"):
        settings = (given, "predict.batch=2", "predict.max_new_tokens=40")
        expected = predicted(run_lm, capsys, source, *settings)
        with torch.compiler.set_stance("force_eager"):
            assert predicted(run_lm, capsys, source, *settings, "predict.compile=true") == expected


def test_samples_of_prompts_and_held_out_text(run_lm) -> None:
    """Samples go on from prompts and from held out text."""
    folder = Path(run_lm("task.prompts=[baku,difa]", "callbacks.samples=5", "trainer.max_steps=8")["folder"])
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for split in ("val", "test"):
        shown = [row for row in rows if row["split"] == split]
        assert [row["prompt"] for row in shown[:2]] == ["baku", "difa"] and len(shown) == 5
        assert all(row["kind"] == "continuation" and isinstance(row["continuation"], str) for row in shown)
        assert all(row["reference"] for row in shown[2:]) and shown[0]["reference"] is None


def test_checkpoint_keeps_its_block_size(run_lm) -> None:
    """Its own length is taken: here all that the positions reach."""
    result = run_lm("name=one", "trainer.max_steps=4")
    test = ("mode=test", f"checkpoint={result['folder']}/export")
    expected = {key: value for key, value in result["metrics"].items() if key.startswith("test/")}
    assert run_lm(*test, "data.block_size=48")["metrics"] == pytest.approx(expected)


def test_a_test_set_alone_gives_the_same_scores(run_lm, tmp_path: Path) -> None:
    """Neither a training text nor a vocabulary of its own is needed to test a trained model."""
    first = run_lm("trainer.max_steps=2", "name=one")
    config = yaml.safe_load((Path(first["folder"]) / "config.yaml").read_text())
    data = build.build_data(config["data"])
    rows = [json.dumps({"text": document.text}) for document in data.documents("test")]
    (tmp_path / "test.jsonl").write_text("".join(f"{row}\n" for row in rows))
    command = [
        "task=causal_lm", "data=text_files", f"data.corpora.text_files.test={tmp_path / 'test.jsonl'}",
        "data.eval_stride=16", *folders(tmp_path / "data", tmp_path), *SHORT,
    ]  # fmt: skip
    tested = drive(command, "mode=test", f"checkpoint={first['folder']}/export")["metrics"]
    assert tested["test/bits_per_byte"] == pytest.approx(first["metrics"]["test/bits_per_byte"], rel=1e-5)


def test_untied_and_smoothed(run_lm) -> None:
    result = run_lm(
        "task.tie_embeddings=false", "task.label_smoothing=0.1", "trainer.max_steps=4", "name=one"
    )
    task = load_task(Path(result["folder"]) / "export")
    assert task.head is not None and task.head.weight is not task.stem.embedding.weight
    # Evaluation is without smoothing: the loss is the logarithm of the perplexity.
    assert math.log(result["metrics"]["test/perplexity"]) == pytest.approx(result["metrics"]["test/loss"])


def test_padding_changes_no_loss(run_lm) -> None:
    """The hidden states at real places are those of the row without its padding."""
    task = load_task(Path(run_lm("trainer.max_steps=1", "name=one")["folder"]) / "export")
    tokens = torch.randint(5, 280, (2, 20))
    targets = tokens.roll(-1, 1)
    targets[1, 9:] = IGNORE
    whole = task.step({"tokens": tokens, "targets": targets})
    first = task.step({"tokens": tokens[:1], "targets": targets[:1]})
    second = task.step({"tokens": tokens[1:, :9], "targets": targets[1:, :9]})
    torch.testing.assert_close(whole.loss_sum, first.loss_sum + second.loss_sum)
    assert whole.weight == 29


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.max_positions=16", "max_positions=16"),
        ("task.label_smoothing=1", "label_smoothing=1"),
        ("+task.sample.temprature=1", "temperature"),
    ],
)
def test_mistake_has_one_message(run_lm, override: str, message: str) -> None:
    """A mistake gets one message with its remedy."""
    with pytest.raises(MagnetoError, match=message):
        run_lm(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [("predict.top_p=3", "top_p=3"), ("predict.batch=0", "batch=0")],
)
def test_a_mistake_in_predict_too(run_lm, override: str, message: str) -> None:
    export = Path(run_lm("trainer.max_steps=1", "name=one")["folder"]) / "export"
    with pytest.raises(MagnetoError, match=message):
        run_lm("mode=predict", f"checkpoint={export}", "prompt=baku", override)
