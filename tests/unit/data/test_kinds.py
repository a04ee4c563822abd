"""What all kinds of data have in common: folders, tables, info and batches, on a tiny corpus of each."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from magneto.data.corpora.base import SPLITS
from magneto.data.prepared import PreparedDataModule
from magneto.data.table import DATA
from magneto.data.text_classification.module import TextClassificationDataModule
from magneto.errors import MagnetoError
from tests.toys.kinds import KINDS, Corpus


@pytest.fixture(scope="module", params=KINDS)
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(KINDS[request.param], tmp_path_factory.mktemp(request.param))


def run(data: PreparedDataModule[Any, Any], epochs: int = 2, **ranks: int) -> list[dict[str, Any]]:
    """The training batches of a run."""
    data.configure_run(epochs * data.batches_per_epoch(ranks.get("world_size", 1)), **ranks)
    return list(data.train_dataloader())


def equal(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys()
        and all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
        for a, b in zip(one, other, strict=True)
    )


def report(data: PreparedDataModule[Any, Any]) -> dict[str, Any]:
    return dict(json.loads((data.folder / "prepare_report.json").read_text()))


def test_prepared_once_and_reused(corpus: Corpus) -> None:
    """The folder's name says its kind and its corpora; settings of the reading do not change it."""
    data = corpus.prepared()
    stamp = (data.folder / "info.json").stat().st_mtime_ns
    again = corpus.prepared(seed=3, **corpus.kind.same)
    assert again.folder == data.folder and data.folder.name.startswith(f"{data.kind}-given-")
    assert (again.folder / "info.json").stat().st_mtime_ns == stamp


def test_other_settings_make_another_folder(corpus: Corpus) -> None:
    assert corpus(**corpus.kind.others).key != corpus().key


def test_the_same_corpus_makes_the_same_files(corpus: Corpus, tmp_path: Path) -> None:
    one, other = corpus.prepared(), corpus.prepared(tmp_path)
    names = sorted(path.relative_to(one.folder) for path in one.folder.rglob("*") if path.is_file())
    assert names == sorted(
        path.relative_to(other.folder) for path in other.folder.rglob("*") if path.is_file()
    )
    for name in names:
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


def test_a_damaged_folder_is_prepared_anew(corpus: Corpus, tmp_path: Path) -> None:
    data = corpus.prepared(tmp_path)
    with (data.folder / "train" / DATA.format(0, 1)).open("r+b") as file:
        file.truncate(500)
    again = corpus.prepared(tmp_path)
    assert again.folder == data.folder and equal(run(again, 1), run(corpus.prepared(), 1))


def test_skips_are_counted_and_listed(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = corpus.prepared(tmp_path)
    written, skips = report(data), corpus.kind.skips
    assert written["skipped_by_reason"] == skips
    assert sorted(item["reason"] for item in written["skipped"]) == sorted(skips)
    assert not skips or f"{data.kind}: {len(skips)} skipped" in caplog.text


def test_an_empty_split_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    """With the reasons of what was skipped; nothing stays behind."""
    with pytest.raises(
        MagnetoError, match=r"left for the val split \(.*skipped: .*1 broken line.*\)\. [A-Z]"
    ):
        corpus(tmp_path, sides=("train", "train", "test")).prepare()
    assert not [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()]


def test_datasets_opens_the_folder(corpus: Corpus) -> None:
    datasets = pytest.importorskip("datasets")
    data = corpus.prepared()
    opened = datasets.load_from_disk(str(data.folder))
    assert {split: len(opened[split]) for split in opened} == report(data)["used"]
    assert list(opened) == list(SPLITS) and min(map(len, opened.values())) > 0
    for name, feature in corpus.kind.columns.items():
        assert repr(opened["train"].features[name]) == feature
    rows = data.table("val").arrow
    assert opened["val"][0].keys() == set(rows.column_names)
    assert opened["val"][0]["id"]


def test_a_seed_repeats_its_batches(corpus: Corpus) -> None:
    batches = run(corpus.prepared())
    assert equal(batches, run(corpus.prepared()))
    assert not equal(batches, run(corpus.prepared(seed=1)))


def test_each_example_once_an_epoch(corpus: Corpus) -> None:
    data = corpus.prepared()
    batches = run(data)
    half = len(batches) // 2
    assert [data.epoch_of(n) for n in range(2 * half)] == [0] * half + [1] * half
    for epoch in (batches[:half], batches[half:]):
        ids = torch.cat([batch["id"] for batch in epoch]).tolist()
        assert len(ids) == len(set(ids)) == len(data.train_set)
    assert not equal(batches[:half], batches[half:])


def test_a_run_goes_on_in_the_middle(corpus: Corpus) -> None:
    data = corpus.prepared()
    whole = run(data)
    loader = data.train_dataloader()
    loader.load_state_dict({"consumed": 3})
    assert equal(list(loader), whole[3:])


def test_workers_give_the_same_batches(corpus: Corpus) -> None:
    assert equal(run(corpus.prepared(num_workers=2)), run(corpus.prepared()))


def test_examples_are_small_to_send(corpus: Corpus) -> None:
    """A worker maps the tables itself."""
    data = corpus.prepared()
    _ = data.train_set[0, 0]
    packed = pickle.dumps(data.train_set)
    again = pickle.loads(packed)
    make = data.collate(data.train_set)
    items = [[one[0, n] for n in (0, 1)] for one in (data.train_set, again)]
    assert len(packed) < 30_000
    if hasattr(data.train_set, "__getitems__"):
        items = [one.__getitems__([(0, 0), (0, 1)]) for one in (data.train_set, again)]
    assert equal(*[[make(one)] for one in items])


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_over_ranks_repeats_nothing(corpus: Corpus, split: str) -> None:
    data = corpus.prepared()
    seen = []
    for rank in range(3):
        data.configure_run(1, rank=rank, world_size=3)
        loader = data.val_dataloader() if split == "val" else data.test_dataloader()
        seen.append([index for batch in loader for index in batch["id"].tolist()])
    data.configure_run(1)
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    alone = [index for batch in loader for index in batch["id"].tolist()]
    assert sorted(sum(seen, [])) == sorted(alone) and all(seen)
    assert len(alone) == len(getattr(data, f"{split}_set"))


def test_ranks_share_the_batches(corpus: Corpus) -> None:
    """Together they see the batches of one with twice the budget: each example of an epoch once."""
    data = corpus.prepared()
    ranks = [run(data, 1, rank=rank, world_size=2) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    ids = [index for batches in ranks for batch in batches for index in batch["id"].tolist()]
    assert sorted(ids) == sorted(i for batch in run(data, 1) for i in batch["id"].tolist())


def test_info_survives_a_checkpoint(corpus: Corpus) -> None:
    """Also beside facts that another version or kind of data has."""
    data = corpus.prepared()
    values = json.loads(json.dumps(data.info.to_dict()))
    assert data.Info.from_dict({**values, "unheard": 1}) == data.info
    assert data.info.key == data.key
    with pytest.raises(MagnetoError, match="no 'key'"):
        data.Info.from_dict({name: value for name, value in values.items() if name != "key"})


def test_for_model_returns_another_module(corpus: Corpus) -> None:
    """What a model was trained on is not prepared a second time, and the data stays as it was."""
    model = corpus.prepared()
    data = corpus()
    before = {name: value for name, value in vars(data).items() if not name.startswith("_")}
    tested = data.for_model(json.loads(json.dumps(model.info.to_dict())))
    assert tested is not data and tested.folder == model.folder and data.model is None
    assert {name: value for name, value in vars(data).items() if name in before} == before
    assert equal(list(tested.test_dataloader()), list(model.test_dataloader()))


def test_what_is_not_prepared_says_so(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(MagnetoError, match=r"not prepared .* run with mode=prepare"):
        _ = corpus(tmp_path).info


def test_at_least_one_corpus(corpus: Corpus) -> None:
    if corpus.kind.module is TextClassificationDataModule:
        pytest.skip("it has one corpus")
    with pytest.raises(MagnetoError, match=r"data\.corpora is empty"):
        corpus.kind.module({}, **corpus.kind.settings)


def test_a_run_shorter_than_what_is_done(corpus: Corpus) -> None:
    with pytest.raises(MagnetoError, match="batch 7"):
        corpus().configure_run(5, 7)
