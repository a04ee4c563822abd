"""Training text that is read from shards: exact positions, disjoint shares, bounded memory, errors of shards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.text.base import Document
from magneto.data.corpora.text.hub import HubReader
from magneto.data.corpora.text.text_files import TextFilesReader
from magneto.data.streaming import Position, ShardError, Shares, Streams
from magneto.data.text.documents import split_of
from magneto.data.text.module import TextDataModule
from magneto.errors import ConfigError, DataError
from tests.toys.kinds import KINDS, Corpus
from tests.toys.streams import equal, run

SHARDS, DOCUMENTS = 8, 16
WORDS = ["".join(map(chr, np.random.default_rng(n).integers(97, 123, 4))) for n in range(300)]


def texts(shard: int) -> list[str]:
    """Different texts of different lengths; some lines of a shard cannot be used."""
    random = np.random.default_rng(shard)
    return [" ".join(random.choice(WORDS, int(random.integers(5, 60)))) for _ in range(DOCUMENTS)]


def write_shards(folder: Path, kind: str = "jsonl.zst") -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(SHARDS):
        file = folder / f"shard-{number}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"text": texts(number)}), file, row_group_size=7)
            continue
        lines = "".join(json.dumps({"text": text}) + "\n\nnot JSON\n" for text in texts(number)).encode()
        file.write_bytes(zstandard.compress(lines) if kind.endswith("zst") else lines)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def module(folder: Path, *, reader: Any = None, **settings: Any) -> TextDataModule:
    given: dict[str, Any] = {
        "data_dir": str(folder / "data"), "tokenizer": {"vocab_size": 300}, "block_size": 32, "batch_size": 4,
        "val_fraction": 0.1, "test_fraction": 0.1, "streaming": True, "streams": 4, "shuffle_window": 8, **settings,
    }  # fmt: skip
    data = TextDataModule({"own": reader or TextFilesReader(str(folder))}, **given)
    data.prepare()
    data.setup()
    return data


@pytest.mark.parametrize("kind", ["jsonl.zst", "jsonl", "parquet"])
@pytest.mark.parametrize("masking", [None, {}])
def test_a_run_goes_on_at_any_step(tmp_path: Path, masking: dict[str, Any] | None, kind: str) -> None:
    """Bit for bit, within documents, windows, shards and epochs."""
    data = module(write_shards(tmp_path / "own", kind), masking=masking)
    whole, states = run(data, total=240)
    assert max(position[0] for position in states[-1]["positions"]) > 1, "no second epoch to test"
    for step in (1, 2, 3, 17, 50, 101, 170, 239):
        assert equal(run(data, states[step - 1], 240)[0], whole[step:]), step


def test_workers_change_nothing(shards: Path) -> None:
    """They run ahead; the position of a checkpoint is that of the batches that were handed out."""
    whole, states = run(module(shards))
    for workers in (1, 2, 4):
        data = module(shards, num_workers=workers)
        batches, own = run(data)
        assert equal(batches, whole) and own == states
    assert equal(run(module(shards, num_workers=2), states[8])[0], whole[9:])


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_streams(shards: Path, world: int) -> None:
    """Rank by rank the batches of one process, in turn."""
    alone, _ = run(module(shards))
    for rank in range(world):
        own, _ = run(module(shards), total=60 // world, rank=rank, world=world)
        assert equal(own, alone[rank::world])


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("most", [2, 8])
def test_a_global_batch_is_the_same(shards: Path, world: int, most: int) -> None:
    """For any number of processes and micro-batches a step has the same blocks."""

    def steps(world: int, most: int) -> list[list[tuple[int, ...]]]:
        data = module(shards, global_batch=16, batch_size=most)
        count = data.micro_batches(world)
        assert count is not None and 16 // world // count <= most
        ranks = [run(data, total=5 * count, rank=rank, world=world)[0] for rank in range(world)]
        parts = [[own for rank in ranks for own in rank[n * count : (n + 1) * count]] for n in range(5)]
        return [sorted(tuple(row.tolist()) for batch in part for row in batch["tokens"]) for part in parts]

    one = steps(1, 16)
    assert all(len(step) == 16 for step in one) and steps(world, most) == one


def documents_of(streams: Streams[Any, str], epoch: int) -> list[list[str]]:
    """The documents of an epoch, stream by stream."""
    found: list[list[str]] = []
    for stream in range(streams.count):
        found.append([])
        for position, text in streams.examples(stream, Position(epoch)):
            if position.epoch > epoch:
                break
            found[-1].append(text)
    return found


def test_each_training_document_once(shards: Path) -> None:
    """The streams have different documents, which together are all that are not held out; the order is another one."""
    data = module(shards)
    everything = [text for shard in range(SHARDS) for text in texts(shard)]
    splits = {text: split_of(next(iter_documents(text)), data.config.fractions) for text in everything}
    first, second = (documents_of(data.streamed, epoch) for epoch in (0, 1))
    other = documents_of(module(shards, seed=1).streamed, 0)
    expected = sorted(text for text in everything if splits[text] == "train")
    for found in (first, second, other):
        assert sorted(sum(found, [])) == expected
    assert first != second and first != other
    held_out = {document.text for split in ("val", "test") for document in data.documents(split)}
    assert held_out and held_out == {text for text in everything if splits[text] != "train"}


def iter_documents(text: str) -> Iterator[Document]:
    from magneto.data.corpora.text.base import content_group

    yield Document(id="", text=text, group=content_group(text), split=None)


def test_held_out_documents_are_bounded(shards: Path) -> None:
    """What is not read of them is not trained on either."""
    data = module(shards, max_held_out=5)
    assert data.info.documents["val"] == data.info.documents["test"] == 5
    assert data.folder != module(shards).folder
    assert documents_of(data.streamed, 0) == documents_of(module(shards).streamed, 0)


def test_stated_splits_are_whole(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "own")
    for split in ("val", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": f"a text for {split}"}) + "\n")
    paths = {split: str(tmp_path / f"{split}.jsonl") for split in ("val", "test")}
    data = module(tmp_path, reader=TextFilesReader(train=str(folder), **paths), max_held_out=1)
    assert data.info.documents["val"] == 1 and len(data.streamed.shards) == SHARDS
    assert sorted(sum(documents_of(data.streamed, 0), [])) == sorted(
        text for n in range(SHARDS) for text in texts(n)
    )


def test_a_checkpoint_is_tested_on_a_test_set(shards: Path, tmp_path: Path) -> None:
    """Alone, which nothing is streamed of."""
    model = module(shards).info.to_dict()
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "a text to test"}) + "\n")
    own = TextFilesReader(test=str(tmp_path / "test.jsonl"))
    settings = {"data_dir": str(tmp_path), "streaming": True, "tokenizer": {"vocab_size": 300}}
    data = TextDataModule({"own": own}, **settings).for_model(model)
    assert data.info.documents == {"train": 0, "val": 0, "test": 1}
    assert sum(int(batch["bytes"].sum()) for batch in data.test_dataloader()) == len("a text to test")


class Counted:
    """A shard that counts what has been read of it."""

    split = None

    def __init__(self, size: int) -> None:
        self.name, self.size, self.given = "counted", size, 0

    def read(self, start: int = 0) -> Iterator[tuple[int, Any]]:
        for row in range(start, self.size):
            self.given += 1
            yield row + 1, Skipped("", "", "") if row % 3 == 0 else "text " * 20


@pytest.mark.parametrize(("window", "room", "held"), [(50, 10**9, 50), (10**6, 2_000, 20)])
def test_documents_held_at_once(window: int, room: int, held: int) -> None:
    """Not more than a window, in number and in size, however large a shard is: the next is read when one is used up."""
    shard = Counted(10_000)
    streams: Streams[str, str] = Streams(
        shards=[shard], count=1, window=window, room=room, seed=0, take=lambda text: (text, len(text))
    )
    used = most = 0
    for position, _ in streams.examples(0, Position()):
        if position.epoch:
            break
        most = max(most, shard.given - used * 3 // 2)
        used += 1
    assert used == 6666 and held <= most <= 1.5 * held + 3


def test_resuming_reads_no_whole_window_again(shards: Path) -> None:
    """Only rows from the beginning of the window on become documents."""
    data = module(shards)
    _, states = run(data)
    position = next(Position(*found) for found in states[40]["positions"] if found[2])
    shard = data.streamed.shards[0]
    again = [document for _, document in shard.read(position.row)]
    everything = [document for _, document in shard.read()]
    assert everything[-len(again) :] == again and len(again) < len(everything)


@pytest.mark.parametrize("kind", ["jsonl.zst", "jsonl", "parquet"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_ends_the_run(tmp_path: Path, kind: str, damage: str, workers: int) -> None:
    """With one message, whose remedy helps: the run goes on from the last state as if nothing had happened."""
    folder = write_shards(tmp_path / "own", kind)
    data = module(folder, num_workers=workers)
    whole, _ = run(data)
    file = folder / f"shard-3.{kind}"
    content = file.read_bytes()
    _ = data.streamed
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: 0 if damage == "empty" else len(content) * 2 // 3])
    data.configure_run(60)
    batches, state = [], None
    loader: Any = data.train_dataloader()
    with pytest.raises(
        ShardError, match=rf"^\S*shard-3.{kind}: this shard .*Fetch it again.*repeat"
    ) as error:
        for batch in loader:
            batches.append(batch)
            state = loader.state_dict()
    assert "\n" not in str(error.value) and equal(batches, whole[: len(batches)])
    file.write_bytes(content)
    again = module(folder, num_workers=workers)
    assert again.key == data.key and equal(run(again, state)[0], whole[len(batches) :])
    if damage == "empty":
        file.write_bytes(b"")
        with pytest.raises(DataError, match="shard-3.*it is empty"):
            module(folder)


def test_a_stream_without_data_is_refused(tmp_path: Path) -> None:
    """A stream without a shard, and one without a document."""
    folder = write_shards(tmp_path / "own")
    with pytest.raises(ConfigError, match=r"has 8 shards .*data\.streams=16 .*Set data\.streams to 8"):
        module(folder, streams=16)
    data = module(folder, streams=8)
    (folder / "shard-3.jsonl.zst").write_bytes(zstandard.compress(b'{"text": ""}\n'))
    with pytest.raises(
        ShardError, match=r"stream \d \(\S*shard-3.*no example to train on.*Lower data.streams"
    ):
        run(data)


@pytest.mark.parametrize(
    ("settings", "world", "message"),
    [
        ({}, 3, r"data\.streams=4 does not divide by 3 processes\. Set it to a multiple of 3"),
        ({"num_workers": 3}, 1, r"data\.num_workers=3: .*Set data\.num_workers to 2"),
        ({"num_workers": 4}, 2, r"data\.num_workers=4: 2 .*Set data\.num_workers to 2"),
        ({"global_batch": 6}, 1, r"data\.global_batch=6 cannot be .* multiple of data\.streams"),
        ({"documents": "separate"}, 1, r"data\.documents=separate needs .*Set data\.documents to pack"),
    ],
)
def test_what_does_not_fit_is_refused(
    shards: Path, settings: dict[str, Any], world: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(module(shards, **settings), world=world)


@pytest.mark.parametrize("kind", ["text_classification", "translation", "image", "vqa"])
def test_other_kinds_refuse_streaming(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.streaming=true is offered for text .*Set it to false"):
        Corpus(KINDS[kind], tmp_path)(streaming=True)


@pytest.mark.parametrize("kind", ["text", "image_text", "speech"])
def test_a_corpus_without_shards_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.corpora\.given is not read in shards.*text_files"):
        Corpus(KINDS[kind], tmp_path)(streaming=True)


def test_a_state_of_another_run_is_refused(shards: Path) -> None:
    data = module(shards)
    _, states = run(data)
    for state in ({"consumed": 3}, {**states[3], "positions": states[3]["positions"][:2]}):
        with pytest.raises(DataError, match=r"no positions of the 4 streams.*resume=never"):
            run(data, state)


def test_hub_data_is_streamed(tmp_path: Path) -> None:
    """Through the library: local files in its place, a shard each."""
    folder = write_shards(tmp_path / "own", "parquet")
    reader = HubReader("parquet", data_files=str(folder / "*.parquet"), splits={"train": "train"})
    data = module(tmp_path, reader=reader)
    assert len(data.streamed.shards) == SHARDS
    whole, states = run(data, total=120)
    assert states[-1]["positions"][0][0] > 0, "no second epoch to test"
    assert equal(run(module(tmp_path, reader=reader, num_workers=2), states[60], 120)[0], whole[61:])
    for key, value in (("start", "A"), ("limit", 10)):
        other = HubReader(
            "parquet", data_files=str(folder / "*.parquet"), splits={"train": "train"}, **{key: value}
        )
        with pytest.raises(ConfigError, match=rf"{key}={value}.* Set {key} to null"):
            module(tmp_path, reader=other)


def test_shares_are_disjoint() -> None:
    """A stream belongs to one worker of one process, whatever the numbers."""
    for streams in (4, 8, 24):
        for world in (1, 2, 4):
            for micro_batches in (None, 1, 2, 4, 8):
                given = {"streams": streams, "world_size": world, "micro_batches": micro_batches}
                batch = None if micro_batches is None else 48 * world
                shares = [Shares(rank=rank, global_batch=batch, **given) for rank in range(world)]
                if not shares[0].fits():
                    continue
                for workers in (count for count in (1, 2, 4) if shares[0].workers_fit(count)):
                    owners: dict[int, set[tuple[int, int]]] = {}
                    for rank, share in enumerate(shares):
                        for number in range(24):
                            for stream in share.of(number):
                                owners.setdefault(stream, set()).add((rank, number % workers))
                    assert len(owners) == streams and all(len(one) == 1 for one in owners.values())
