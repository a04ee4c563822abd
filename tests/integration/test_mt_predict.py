"""`mode=predict` of a translator: lines from anywhere, and results that survive what goes wrong."""

import io
import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from magneto.commands import predict
from magneto.errors import MagnetoError
from magneto.inference import translation


@pytest.fixture
def overrides(translation_overrides: list[str]) -> list[str]:
    return translation_overrides


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_standard_input_and_long_lines(run, monkeypatch, caplog) -> None:
    """Standard input is translated and long lines are cut."""
    folder = Path(run("trainer.max_steps=4", "name=one")["folder"])
    text = "the red boat\n" + "the old cat " * 100 + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    with caplog.at_level("WARNING", logger="magneto"):
        results = run("mode=predict", f"checkpoint={folder / 'export'}", "input=-", "predict.beam=1")[
            "results"
        ]
    assert [entry["line"] for entry in results] == [1, 2]
    assert "line 2 has" in caplog.text and "at most 128" in caplog.text


def test_results_survive_a_line_that_fails(run, tmp_path, monkeypatch, caplog) -> None:
    """Results are written as they come and kept when a line breaks the work."""
    model = f"checkpoint={run('trainer.max_steps=2', 'name=one')['folder']}/export"
    source, output = tmp_path / "input.txt", tmp_path / "new/folder/out.jsonl"
    part = output.with_name("out.jsonl.part")
    source.write_bytes(b"the red boat\nthe old cat\nthe end\n")
    command = ("mode=predict", model, f"input={source}", f"output={output}", "predict.batch=1")
    results = translation._results

    def refused(tokenizer: Any, number: int, *rest: Any) -> Any:
        if number == 3:
            raise MagnetoError("line 3: too much.")
        return results(tokenizer, number, *rest)

    with (
        monkeypatch.context() as patch,
        pytest.raises(
            MagnetoError, match=rf"line 3: too much\. The results before it \(2\) are kept in {part}"
        ),
    ):
        patch.setattr(translation, "_results", refused)
        run(*command)
    assert [json.loads(line)["line"] for line in lines(part)] == [1, 2] and not output.exists()
    with pytest.raises(MagnetoError, match=rf"{part} exists already"):
        run(*command)  # nothing is lost by repeating the command
    part.unlink()

    def broken(tokenizer: Any, number: int, *rest: Any) -> Any:
        if number == 2:
            raise RuntimeError("out of memory")
        return results(tokenizer, number, *rest)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(translation, "_results", broken)
        run(*command)
    assert f"The results before it (1) are kept in {part}" in caplog.text
    part.unlink()

    source.write_bytes(b"\xef\xbb\xbfthe red boat\n\xff\nthe old cat\n")
    found = run(*command)["results"]
    assert found == [json.loads(line) for line in lines(output)]
    assert [entry["source"] for entry in found] == ["the red boat", "", "the old cat"] and not found[1][
        "translation"
    ]
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]


def test_unwritable_output_is_refused_first(run, tmp_path, monkeypatch) -> None:
    """An output that cannot be written is refused before the work."""
    model = f"checkpoint={run('trainer.max_steps=2', 'name=one')['folder']}/export"
    monkeypatch.setattr(predict.registry, "load_task", lambda _: pytest.fail("the work has begun"))
    (tmp_path / "file").touch()
    (tmp_path / "done.jsonl").touch()
    for output, message in (("file/out.jsonl", "cannot be written"), ("done.jsonl", "exists already")):
        with pytest.raises(MagnetoError, match=rf"output={tmp_path}/{output}: .*{message}"):
            run("mode=predict", model, "prompt=the cat", f"output={tmp_path / output}")
    monkeypatch.undo()
    with pytest.raises(MagnetoError, match=r"predict\.beam=0"):
        run("mode=predict", model, "prompt=the cat", f"output={tmp_path / 'none.jsonl'}", "predict.beam=0")
    assert not list(tmp_path.glob("none*")), "no result, no file"


def test_lines_are_read_as_the_training_data_is(run, monkeypatch) -> None:
    """No-break spaces, soft hyphens, runs of spaces and decomposed letters are those of the plain line."""
    model = Path(
        run("trainer.max_steps=4", "name=one", "data.tokenizer={kind: byte_bpe, vocab_size: 300}")["folder"]
    )
    plain = "the ol\u00e9 boat sees the cat"
    spellings = [
        plain,
        plain.replace(" ", "\u00a0"),
        plain.replace("boat", "bo\u00adat"),
        f"  {plain.replace(' ', '   ')}\t",
        unicodedata.normalize("NFD", plain),
    ]
    text = "\n".join([*spellings, "   ", "\u00a0", "\t"]) + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    results = run("mode=predict", f"checkpoint={model / 'export'}", "input=-", "predict.beam=1")["results"]
    assert len({entry["translation"] for entry in results[:5]}) == 1 and results[0]["translation"]
    assert [entry["source"] for entry in results[:5]] == spellings
    assert [entry["translation"] for entry in results[5:]] == ["", "", ""]


def test_options_of_prediction_are_checked(run) -> None:
    model = f"checkpoint={run('trainer.max_steps=2', 'name=one')['folder']}/export"
    for override, message in {
        "predict.n_best=9": r"predict\.n_best=9.*4 beams",
        "predict.batch=0": r"predict\.batch=0",
        "predict.target=de": r"predict\.target=de.*fr",
    }.items():
        with pytest.raises(MagnetoError, match=message):
            run("mode=predict", model, "prompt=the cat", override)
