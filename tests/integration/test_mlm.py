"""task=mlm, end to end through `magneto.commands.run`: learn, overfit, resume, fill masks, score sentences."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magneto.errors import MagnetoError
from magneto.inference.inputs import PredictInput
from magneto.inference.masked_lm import encode
from magneto.tasks.mlm import MLM
from magneto.tasks.registry import load_task
from tests.toys.runs import SHORT, SMALL, drive, folders

COUNT = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that count to twelve, over and over, from anywhere: each word follows from its neighbours."""
    folder = tmp_path_factory.mktemp("counting")
    random = np.random.default_rng(0)
    for split, files in (("train", 40), ("val", 6), ("test", 6)):
        (folder / split).mkdir()
        for number in range(files):
            start, length = random.integers(len(COUNT)), random.integers(60, 120)
            words = [COUNT[(start + place) % len(COUNT)] for place in range(length)]
            (folder / split / f"{number}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture
def run(counting: Path, prepared_dir: Path, tmp_path: Path) -> Run:
    """`run("seed=2", ...)`: a small, deterministic run on the counting texts."""
    overrides = [
        "task=mlm",
        "data=text_files",
        *(f"data.corpora.text_files.{split}={counting / split}" for split in ("train", "val", "test")),
        "data.tokenizer.kind=bpe",
        "data.tokenizer.vocab_size=72",
        "data.block_size=32",
        "data.batch_size=8",
        *folders(prepared_dir, tmp_path),
        *SMALL,
        *SHORT,
    ]

    return partial(drive, overrides)


def predicted(run: Run, source: Path, *more: str) -> list[dict[str, Any]]:
    return run("mode=predict", f"checkpoint={source}", *more)["results"]


@pytest.mark.slow
def test_it_learns_to_count_and_fills_masks(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = run("name=long", "trainer.max_steps=500", "trainer.val_check_interval=500", "optimizer.lr=4e-3")
    metrics = result["metrics"]
    assert metrics["test/accuracy"] > 0.95  # the most frequent word alone: 0.1
    assert metrics["test/perplexity"] == pytest.approx(math.exp(metrics["test/loss"]), rel=1e-4)
    best = Path(result["folder"]) / "checkpoints/best.ckpt"
    capsys.readouterr()
    first, second = predicted(
        run,
        best,
        "prompt=['one two [MASK] four five six','five six seven [MASK] nine ten eleven twelve one [MASK] three four five']",
        "predict.top_k=3",
    )
    assert "one two three four five six" in capsys.readouterr().out
    assert first["filled"] == "one two three four five six"
    assert second["filled"] == "five six seven eight nine ten eleven twelve one two three four five"
    assert [len(row) for row in second["candidates"]] == [3, 3]
    assert second["candidates"][1][0]["token"] == "two" and second["candidates"][1][0]["probability"] > 0.5
    right, wrong = predicted(
        run, best, "prompt=['three four five six seven eight nine','three nine one two five five six']",
        "predict.score=true",
    )  # fmt: skip
    assert right["pseudo_perplexity"] < 2 < wrong["pseudo_perplexity"] and right["tokens"] == 7


def test_blocks_beyond_positions_are_refused(run: Run) -> None:
    """Blocks beyond the positions are refused at the start."""
    with pytest.raises(MagnetoError, match=r"data\.block_size=32 .*max_positions=16.*lower data\.block_size"):
        run("backbone.position=rotary", "backbone.max_positions=16")
    reach = ("backbone.position=learned", "backbone.max_positions=32", "trainer.max_steps=1")
    source = f"init_from={run('name=one', *reach)['folder']}/export"
    for documents in ("pack", "separate"):
        with pytest.raises(MagnetoError, match=r"data\.block_size=40 .*max_positions=32"):
            run("name=two", source, "data.block_size=40", f"data.documents={documents}")


def test_scores_from_whole_logits(run: Run) -> None:
    """What the task says of a batch and of a sentence equals a computation that knows nothing of chosen places."""
    task = load_task(Path(run("name=one")["folder"]) / "export")
    assert isinstance(task, MLM)
    tokens = torch.randint(5, task.info.vocab_size, (3, 12), generator=torch.Generator().manual_seed(0))
    targets = torch.where(torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.3, tokens, -100)
    batch = {"id": torch.arange(3), "tokens": tokens, "targets": targets}
    with torch.no_grad():
        hidden = task.head(task.backbone(task.stem(tokens)))
        log_probs = (hidden @ task.stem.embedding.weight.T + task.head.output_bias).log_softmax(-1)
        output = task.step(batch)
    expected = torch.nn.functional.nll_loss(log_probs.transpose(1, 2), targets, reduction="sum")
    torch.testing.assert_close(output.loss_sum, expected)
    task.evaluate(batch, output)
    chosen = targets != -100
    accuracy = (log_probs.argmax(-1) == targets)[chosen].float().mean()
    torch.testing.assert_close(task.scores["accuracy"].compute(), accuracy)
    assert output.weight == chosen.sum()

    sentence = "three four nine"
    with torch.inference_mode():
        (found,) = task.predict_stream(PredictInput(prompts=(sentence,)), {"score": True})
        ids = [task.tokenizer.bos_id, *task.tokenizer.encode(sentence), task.tokenizer.eos_id]
        nats = 0.0
        for place in range(1, len(ids) - 1):
            masked = torch.tensor([ids])
            masked[0, place] = task.tokenizer.mask_id
            states = task.head(task.backbone(task.stem(masked)))[0, place]
            nats -= float(task.logits(states).log_softmax(-1)[ids[place]])
    assert found["pseudo_perplexity"] == pytest.approx(math.exp(nats / (len(ids) - 2)), rel=1e-4)


def test_mask_takes_the_space_before_it(run: Run) -> None:
    """A mask takes the space before it and leaves what follows as it is."""
    task = load_task(Path(run("name=one")["folder"]) / "export")
    assert isinstance(task, MLM)
    whole, mask = task.tokenizer.encode("one two three"), task.tokenizer.mask_id
    assert len(whole) == 3  # a token each, with the space before it
    assert encode(task.tokenizer, "one [MASK] three") == [whole[0], mask, whole[2]]
    assert encode(task.tokenizer, "[MASK] two [MASK]") == [mask, whole[1], mask]
    assert encode(task.tokenizer, "[MASK][MASK]") == [mask, mask]
    suffix = task.tokenizer.encode(
        "twelvet"
    )  # "t" that continues a word is another token than "t" that begins one
    assert (
        encode(task.tokenizer, "[MASK]t")[1:]
        == suffix[len(task.tokenizer.encode("twelve")) :]
        != task.tokenizer.encode("t")
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("prompt='no mask here'",), r"'no mask here' has no \[MASK\]"),
        (("prompt=['']", "predict.score=true"), "nothing to score"),
        ((f"prompt='{'one ' * 40}[MASK]'",), "blocks of 32"),
        (("prompt='one [MASK]'", "predict.top_k=0"), "predict.top_k=0"),
        ((), "prompt="),
    ],
)
def test_a_mistake_in_prediction_gets_one_message(
    run: Run, trained: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(MagnetoError, match=message):
        run("mode=predict", f"checkpoint={trained}", *overrides)


@pytest.fixture
def trained(run: Run) -> Path:
    return Path(run("name=one", "trainer.max_steps=1")["folder"]) / "export"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.masking.probability=1.5", "masking.probability"),
        ("init_from=nowhere", "init_from=nowhere"),
    ],
)
def test_a_mistake_in_training_gets_one_message(run: Run, override: str, message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        run(override)
