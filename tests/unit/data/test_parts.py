"""Preparation in parts: several processes make what one does, and a killed preparation goes on."""

from pathlib import Path

import pytest

from magneto.data.corpora.text import text_files
from magneto.data.corpora.text.text_files import TextFilesReader
from magneto.data.parts import WorkerKilled, map_parts
from magneto.data.text import build
from magneto.data.text.documents import Part
from magneto.data.text.module import TextDataModule
from tests.toys.jobs import double


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_keep_the_order_of_the_jobs(tmp_path, workers):
    parts = map_parts(double, [3, 1, 2], tmp_path / "parts", workers=workers, description="doubling")
    assert [values for _, values in parts] == [6, 2, 4]
    assert [(path / "file").read_text() for path, _ in parts] == ["3", "1", "2"]


@pytest.mark.parametrize(("workers", "bad", "error"), [(1, -2, KeyboardInterrupt), (2, -1, WorkerKilled)])
def test_finished_parts_are_not_made_again(tmp_path, workers, bad, error):
    """After an interrupt, and after a process was killed, which is said with what to do."""
    folder = tmp_path / "parts"
    map_parts(double, [3, 1], folder, workers=1, description="doubling")
    with pytest.raises(error, match="prepare_workers" if error is WorkerKilled else None):
        map_parts(double, [3, 1, bad, bad], folder, workers=workers, description="doubling")
    parts = map_parts(double, [3, 1, 7], folder, workers=workers, description="doubling")
    assert [values for _, values in parts] == [6, 2, 14]
    assert (folder / "done").read_text() == "3\n1\n7\n"


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """Six files, which make six parts, with texts that are skipped."""
    monkeypatch.setattr(text_files, "PART_BYTES", 1)
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(6):
        lines = [f"speech {number} {line} on the state of the union " * (line + 1) for line in range(20)]
        (folder / f"{number}.txt").write_text("\n".join([*lines, "bad \0 line"]) + "\n")
    (folder / "notes.pdf").write_text("not read")
    return folder


def module(files: Path, data_dir: Path, **settings: object) -> TextDataModule:
    return TextDataModule(
        {"own": TextFilesReader(path=str(files), per_line=True)},
        data_dir=str(data_dir),
        tokenizer={"vocab_size": 300},
        block_size=8,
        val_fraction=0.3,
        test_fraction=0.3,
        **settings,
    )


def contents(data: TextDataModule) -> dict[str, object]:
    tables = {split: data.table(split).arrow.to_pydict() for split in ("train", "val", "test")}
    values = data.info.to_dict() | {"corpus": None}
    report = (data.folder / "prepare_report.json").read_text()
    return {
        "tables": tables,
        "info": values,
        "skipped": report.count("NUL"),
        "other": report.count("another kind"),
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_make_the_tables_of_the_whole(files, tmp_path, monkeypatch, workers):
    data = module(files, tmp_path / "parts", prepare_workers=workers)
    data.prepare()
    assert len(list((data.folder / "train").glob("*.arrow"))) == 6
    monkeypatch.setattr(text_files, "PART_BYTES", 1 << 30)
    whole = module(files, tmp_path / "whole")
    whole.prepare()
    assert len(list((whole.folder / "train").glob("*.arrow"))) == 1
    assert contents(data) == contents(whole)
    assert not list(data.folder.parent.glob(".*.parts"))
    import datasets

    loaded = datasets.load_from_disk(str(data.folder))
    assert loaded["train"]["id"] == data.table("train").arrow.column("id").to_pylist()


def test_a_killed_preparation_goes_on(files, tmp_path, monkeypatch):
    """With the tokenizer and the parts that are there; the result is that of one that was not killed."""
    whole = module(files, tmp_path / "whole", prepare_workers=1)
    whole.prepare()
    data, made = module(files, tmp_path / "data", prepare_workers=1), []
    write_part = build.write_part

    def interrupted(part: Part, folder: Path) -> object:
        if len(made) == 3:
            made.append(None)
            raise KeyboardInterrupt
        made.append(part)
        return write_part(part, folder)

    monkeypatch.setattr(build, "write_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.prepare()
    monkeypatch.setattr(build, "_tokenizer", None)
    data.prepare()
    assert len(made) == 7
    assert contents(data) == contents(whole)


def test_a_bad_corpus_leaves_no_parts(files, tmp_path):
    for file in files.glob("*.txt"):
        file.write_text("one line of all\n" * 200)
    data = TextDataModule(
        {"own": TextFilesReader(path=str(files))},
        data_dir=str(tmp_path / "data"),
        tokenizer={"vocab_size": 265},
    )
    with pytest.raises(Exception, match="groups?, too few to divide"):
        data.prepare()
    assert not list((tmp_path / "data" / "prepared").glob(".*.parts"))
