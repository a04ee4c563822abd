"""task=vl end to end: learns both losses, resumes, finds images and captions, starts from itself and from BEiT-3."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from magneto.commands import build
from magneto.data.collate import IGNORE
from magneto.errors import MagnetoError
from magneto.tasks.registry import load_task
from magneto.tasks.vision_language import VisionLanguage
from tests.toys.captions import KINDS, SIZE, caption_settings, write_squares
from tests.toys.runs import SHORT, SMALL, drive, folders, training_losses, values

Run = Callable[..., dict[str, Any]]
MASKED = (
    "task.losses={masked: 1, contrastive: 0}",
    "data.masking={}",
    "backbone.fusion_layers=1",
    "task.default_tokenizer={codes: 32, code_width: 8, width: 16, blocks: 1, steps: 30, batch_size: 24}",
)
BOTH = (*MASKED, "task.losses={masked: 1, contrastive: 1}")
LONGER = (
    "trainer.max_steps=120",
    "trainer.val_check_interval=60",
    "optimizer.lr=4e-3",
    "backbone.drop_path=0",
)
STILL = ("trainer.max_steps=1", "optimizer.lr=1e-12")


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("squares"))


def settings(squares: Path, prepared_dir: Path, folder: Path) -> list[str]:
    return ["task=vl", *caption_settings(squares), *folders(prepared_dir, folder), *SMALL, *SHORT]


@pytest.fixture
def run(squares: Path, prepared_dir: Path, tmp_path: Path) -> Run:
    """`run("seed=2", ...)`: a small, deterministic run of task=vl."""
    return partial(drive, settings(squares, prepared_dir, tmp_path))


@pytest.fixture(scope="session")
def trained(squares: Path, prepared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run in both languages that has learnt what there is to learn."""
    folder = tmp_path_factory.mktemp("trained")
    return drive(
        settings(squares, prepared_dir, folder),
        "name=trained",
        *LONGER,
        "data.languages=[en,fr]",
        "callbacks.samples=3",
    )


def batches_and_task(folder: Path) -> tuple[list[dict[str, Any]], VisionLanguage]:
    """The test batches of a run and its model."""
    task = load_task(folder / "export")
    assert isinstance(task, VisionLanguage)
    data = build.build_data(yaml.safe_load((folder / "config.yaml").read_text())["data"])
    data.setup("test")
    return list(data.test_dataloader()), task


# ------------------------------------------------------------------ contrastive learning


def test_retrieval_in_two_languages(trained: dict[str, Any]) -> None:
    """It finds images and captions in two languages."""
    metrics = trained["metrics"]
    assert trained["monitor"]["metric"] == "val/r1" and trained["monitor"]["mode"] == "max"
    facts = trained["data_facts"]["evaluation"]["test"]
    assert facts["images"] == KINDS and facts["captions"] == 2 * KINDS
    assert not {
        name for name in metrics if name.split("/")[1] in ("images", "captions", "chance", "gallery", "facts")
    }
    # One of 48 captions and of 24 images is drawn; two captions fit an image.
    assert facts["chance"] == pytest.approx(1 / KINDS)
    assert metrics["test/r1"] > 0.7
    assert (
        metrics["test/image_to_text/r1"]
        <= metrics["test/image_to_text/r5"]
        <= metrics["test/image_to_text/r10"]
    )
    both = [metrics[f"test/text_to_image/r1/{language}"] for language in ("en", "fr")]
    assert np.mean(both) == pytest.approx(metrics["test/text_to_image/r1"])


# ------------------------------------------------------------------ masked data modelling


@pytest.mark.parametrize(
    ("losses", "target"),
    [
        ("masked", "codes"),
        ("masked", "pixels"),
        ("masked", "random_projection"),
        ("both", "codes"),
        ("both", "pixels"),
    ],
)
def test_every_combination_of_losses_learns(run: Run, losses: str, target: str) -> None:
    result = run(
        *(MASKED if losses == "masked" else BOTH), f"task.target={target}", "task.random_codes=32",
        "trainer.max_steps=30", "trainer.val_check_interval=30", "optimizer.lr=3e-3",
    )  # fmt: skip
    metrics, curve = result["metrics"], training_losses(result["folder"])
    assert np.mean(curve[-4:]) < 0.9 * curve[0]
    assert result["monitor"]["metric"] == ("val/loss" if losses == "masked" else "val/r1")
    assert ("test/r1" in metrics) == (losses == "both")
    assert {"test/accuracy/texts", "test/accuracy/pair_texts"} <= metrics.keys()
    assert (
        ("test/accuracy/images" in metrics)
        == ("test/accuracy/pair_images" in metrics)
        == (target != "pixels")
    )
    logged = {name for _, name, _ in values(result["folder"])}
    assert ({"train/masked", "train/contrastive"} <= logged) == (losses == "both")
    assert result["throughput"]["model_flops_per_s"] > 0


def test_the_probe_looks_at_every_pass_of_a_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five with both losses: images, texts, and again images, texts, pairs."""
    passes: list[torch.Tensor] = []
    step = VisionLanguage.step

    def watched(self: VisionLanguage, batch: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():  # an evaluation, and the probe's own pass
            return step(self, batch)
        handle = self.backbone.layers[0].register_forward_hook(
            lambda module, given, output: passes.append(output[0] if isinstance(output, tuple) else output)
        )
        made = step(self, batch)
        handle.remove()
        return made

    monkeypatch.setattr(VisionLanguage, "step", watched)
    result = run(*BOTH, "task.target=pixels", "trainer.max_steps=1")
    assert len(passes) == 5
    seen = torch.cat([hidden.detach().flatten() for hidden in passes])
    logged = {name: float(value) for _, name, value in values(result["folder"]) if name.startswith("probe/")}
    assert logged["probe/activation_max/layer_00"] == pytest.approx(float(seen.abs().max()))
    assert logged["probe/activation_rms/layer_00"] == pytest.approx(float(seen.square().mean().sqrt()))


@torch.no_grad()
def test_a_third_of_a_batch_is_of_each_kind(run: Run) -> None:
    """The loss is that of three forward passes, put together by hand."""
    batches, task = batches_and_task(Path(run(*MASKED, "trainer.max_steps=2")["folder"]))
    batch = batches[0]
    task.eval()
    output = task.step(batch)
    texts, patches = [], []
    for row in range(len(batch["id"])):
        one = {key: value[row : row + 1] for key, value in batch.items() if isinstance(value, torch.Tensor)}
        kind = ("image", "text", "pair")[row % 3]
        hidden, split = task.encode(
            None if kind == "text" else one["image"],
            {"image": None, "text": one["masked_tokens"], "pair": one["pair_tokens"]}[kind],
            None if kind == "image" else one["mask"],
            None if kind == "text" else one["masked"],
        )
        if kind != "text":
            outputs = task.image_head(hidden[:, 1:split][one["masked"]])
            patches.append(
                F.cross_entropy(outputs, task.target.codes(one["image"])[one["masked"]], reduction="none")
            )
        if kind != "image":
            targets = one["targets" if kind == "text" else "pair_targets"]
            chosen = task.text_head(hidden[:, split:][targets != IGNORE])
            logits = task.stem.text.logits(chosen) + task.text_head.output_bias
            texts.append(F.cross_entropy(logits, targets[targets != IGNORE], reduction="none"))
    expected = torch.cat(patches).mean() + torch.cat(texts).mean()
    torch.testing.assert_close(output.loss_sum / output.weight, expected, atol=2e-4, rtol=2e-4)


# ------------------------------------------------------------------ runs


def test_masked_then_contrastive(run: Run) -> None:
    """The shape comes with the weights; stem and backbone are taken as a whole."""
    source = Path(run("name=first", *MASKED)["folder"]) / "export"
    result = run("name=second", f"init_from={source}", *STILL)
    before, after = load_task(source).state_dict(), load_task(Path(result["folder"]) / "export").state_dict()
    assert "backbone.layers.1.feed_forward.fusion.branch.fc1.weight" in after
    body = [name for name in after if name.startswith(("stem.", "backbone."))]
    assert body and all(torch.allclose(after[name], before[name], atol=1e-6) for name in body)
    assert "vision_head.weight" in after and "image_head.weight" not in after
    with pytest.raises(MagnetoError, match="trained with task.losses.contrastive=0"):
        run("mode=predict", f"checkpoint={source}", "input=.", "predict.query=red")


def test_code_head_stays_with_its_codebook(run: Run) -> None:
    """The head of codes stays with its codebook."""
    source = Path(run("name=first", *MASKED)["folder"]) / "export"
    head = load_task(source).state_dict()["image_head.weight"]
    others = ("task.target=random_projection", f"task.random_codes={len(head)}")
    for name, overrides in (("same", ()), ("other", others)):
        folder = run(f"name={name}", *MASKED, f"init_from={source}", *STILL, *overrides)["folder"]
        taken = load_task(Path(folder) / "export").state_dict()["image_head.weight"]
        assert torch.allclose(taken, head, atol=1e-6) == (name == "same")


def test_languages_of_the_checkpoint_are_tested(trained: dict[str, Any], run: Run) -> None:
    """English alone, by the tokenizer and the languages of the checkpoint, scores as in the test of both."""
    english = run("mode=test", f"checkpoint={trained['folder']}/export")["metrics"]
    assert english["test/text_to_image/r1"] == pytest.approx(trained["metrics"]["test/text_to_image/r1/en"])


def test_small_test_set_alone(
    trained: dict[str, Any], run: Run, squares: Path, tmp_path: Path, prepared_dir: Path
) -> None:
    """Few captions of a test set alone are enough to be tested on."""
    lines = (squares / "captions.jsonl").read_text().splitlines(keepends=True)
    file = tmp_path / "few.jsonl"
    file.write_text("".join(line for line in lines if '"test"' in line))
    own = (f"data.corpora.captions.file={file}", f"data.corpora.captions.folder={squares}")
    many = ("data.tokenizer.vocab_size=4096", f"data.image_size={2 * SIZE}", "data.languages=[en,fr]")
    tested = run("mode=test", f"checkpoint={trained['folder']}/export", *own, *many)["metrics"]
    expected = {key: value for key, value in trained["metrics"].items() if key.startswith("test/")}
    assert tested == pytest.approx(expected)
    with pytest.raises(MagnetoError, match="is for evaluation only: use it with mode=test checkpoint=RUN"):
        run("name=refused", *own)


def test_copies_of_a_image_count_as_one(
    trained: dict[str, Any], run: Run, squares: Path, tmp_path: Path
) -> None:
    """An image under two names, with a caption each, is found as one with both captions is."""
    lines = [json.loads(line) for line in (squares / "captions.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["split"] == "test"]
    scores = []
    for name in ("{image}", "copies/{language}/{image}"):
        for line in lines:
            line["file"] = name.format(**line)
            (tmp_path / line["file"]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / line["file"]).write_bytes((squares / line["image"]).read_bytes())
        listed = [{**line, "image": line["file"]} for line in lines]
        file = tmp_path / f"{len(scores)}.jsonl"
        file.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in listed), encoding="utf-8"
        )
        own = (f"data.corpora.captions.file={file}", "data.languages=[en,fr]")
        result = run("mode=test", f"checkpoint={trained['folder']}/export", *own)
        scores.append(result["metrics"])
        assert result["evaluation"]["test"]["images"] == KINDS
    assert scores[1] == pytest.approx({**scores[0], "test/loss": scores[1]["test/loss"]})
    assert scores[1]["test/r1"] > 0.7


def test_predict_finds_images_for_sentences(
    trained: dict[str, Any], run: Run, squares: Path, tmp_path: Path
) -> None:
    output = tmp_path / "found.jsonl"
    run(
        "mode=predict", f"checkpoint={trained['folder']}/export", f"input={squares / 'test'}", f"output={output}",
        "predict.query=['blue bottom right','rouge en haut à gauche']", "predict.top_k=3",
    )  # fmt: skip
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["query"] for row in rows] == ["blue bottom right", "rouge en haut à gauche"]
    for row, wanted in zip(rows, ("blue bottom right", "red top left"), strict=True):
        assert len(row["found"]) == 3
        assert Path(row["found"][0]["input"]).stem.endswith(wanted)
        assert row["found"][0]["similarity"] >= row["found"][1]["similarity"]
        assert np.asarray(Image.open(output.parent / row["image"])).shape[1] > 500


def test_a_number_is_a_sentence_too(trained: dict[str, Any], run: Run, squares: Path) -> None:
    for query, told in (("2024", ["2024"]), ("[2024,red]", ["2024", "red"])):
        found = run(
            "mode=predict", f"checkpoint={trained['folder']}", f"input={squares / 'test'}", f"predict.query={query}"
        )["results"]  # fmt: skip
        assert [row["query"] for row in found] == told


def test_an_average_longer_than_the_run_is_told(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The weights of the start would be tested."""
    for decay, told in ((0.9, False), (0.99, True)):
        caplog.clear()
        run(
            f"name=ema{decay}",
            f"callbacks.ema_decay={decay}",
            "trainer.max_steps=20",
            "trainer.val_check_interval=20",
        )
        assert ("averages the weights over about 100 steps, and the run has 20" in caplog.text) == told


def test_predict_finds_lines_for_images(
    trained: dict[str, Any], run: Run, squares: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "lines.txt"
    text = "green top right\n\npink bottom left\n\0\nnoir en bas à gauche\n"
    lines.write_text(text, encoding="utf-8-sig")  # a byte order mark is no part of a caption
    image = next((squares / "test").glob("*pink bottom left.png"))
    (result,) = run(
        "mode=predict",
        f"checkpoint={trained['folder']}/export",
        f"input={image}",
        f"predict.captions={lines}",
    )["results"]
    assert result["found"][0]["caption"] == "pink bottom left"
    captions = {found["caption"] for found in result["found"]}
    assert captions == {"green top right", "pink bottom left", "noir en bas à gauche"}
    assert result["input"] == str(image) and result["image"].dtype == np.uint8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "Set one of the two"),
        (("predict.query=a", "predict.captions=b"), "Set one of the two"),
        (("predict.query=' '",), "predict.query=' ': empty"),
        (("predict.captions=nowhere.txt",), "predict.captions=nowhere.txt: no such file"),
        (("predict.captions=2024",), "predict.captions=2024: no such file"),
        (("predict.query=a", "predict.top_k=0"), "top_k=0"),
    ],
)
def test_mistakes_of_predict_are_told(
    trained: dict[str, Any], run: Run, squares: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(MagnetoError, match=message):
        run("mode=predict", f"checkpoint={trained['folder']}/export", f"input={squares / 'test'}", *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task.losses={masked: 0, contrastive: 0}",), "not both 0"),
        (("task.losses={masked: 1}",), "data.masking is missing"),
        ((*MASKED, "data.batch_size=5"), "data.batch_size=5.*at least 6"),
        (("data.batch_size=1",), "data.batch_size=1: with task.losses.contrastive it must be at least 2"),
        (("+task.losses.mask=1",), "Did you mean 'task.losses.masked'"),
        (("task.temperature=0",), "task.temperature=0"),
        (("backbone.max_positions=8",), "data.max_tokens=16.*max_positions=8"),
        (("data.patch_size=null",), "data.patch_size"),
        (("data.max_tokens=2",), "data.max_tokens=2"),
        (("data.languages=en",), "data.languages=en: input should be a valid list"),
        (("data.masking={words: 1}",), "data.masking.words"),
    ],
)
def test_mistakes_are_told(run: Run, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        run(*overrides)


def test_a_query_that_is_no_utf8_is_told(trained: dict[str, Any], run: Run, squares: Path) -> None:
    with pytest.raises(MagnetoError, match=r"predict.query='caf.udce9': half a character"):
        run(
            "mode=predict",
            f"checkpoint={trained['folder']}",
            f"input={squares / 'test'}",
            "predict.query='caf\udce9'",
        )
