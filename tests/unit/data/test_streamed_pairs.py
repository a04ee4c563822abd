"""Images with captions that are read from tar shards: exact positions, held-out ones, damaged shards, memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magneto.data.corpora.image.base import ImageExample, each_caption
from magneto.data.corpora.image.webdataset import WebDatasetReader
from magneto.data.image_text import streaming
from magneto.data.image_text.module import ImageTextDataModule
from magneto.data.image_text.streaming import divide
from magneto.data.io.tar import Slice
from magneto.data.streaming import Position, ShardError
from magneto.errors import DataError
from tests.toys.captions import squares
from tests.toys.streams import equal, image_shards, png, run, write_tar


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_shards(tmp_path_factory.mktemp("shards"))


def module(folder: Path, shards: Any = None, **settings: Any) -> ImageTextDataModule:
    given: dict[str, Any] = {
        "data_dir": str(folder / "data"), "tokenizer": {"kind": "byte_bpe", "vocab_size": 280}, "image_size": 16,
        "patch_size": 4, "batch_size": 4, "val_fraction": 0.1, "test_fraction": 0.1, "prepare_workers": 1,
        "augment": {"crop_scale": [0.5, 1.0], "flip": True, "erase": 0.3}, "masking": {}, "num_workers": 0,
        "streaming": True, "streams": 4, "shuffle_window": 6, **settings,
    }  # fmt: skip
    data = ImageTextDataModule({"own": WebDatasetReader(shards or str(folder / "*.tar"))}, **given)
    data.prepare()
    data.setup()
    return data


def trained(data: ImageTextDataModule, epoch: int = 0) -> list[dict[str, Any]]:
    """The items of an epoch, of all streams."""
    source, _ = data.item_source()
    found = []
    for stream in range(data.streamed.count):
        for item, position in source.items(stream, Position(epoch)):
            if position.epoch > epoch:
                break
            found.append(item)
    return found


def held_out(data: ImageTextDataModule) -> list[str]:
    return [text for split in ("val", "test") for text in data.table(split).arrow["caption"].to_pylist()]


def test_a_run_of_pairs_goes_on_at_any_step(shards: Path) -> None:
    """Bit for bit, within windows, shards and epochs, with workers or without."""
    data = module(shards)
    whole, states = run(data, total=90)
    assert max(position[0] for position in states[-1]["positions"]) > 1, "no second epoch to test"
    for step in (1, 2, 5, 17, 50, 89):
        assert equal(run(data, states[step - 1], 90)[0], whole[step:]), step
    ahead = module(shards, num_workers=2)
    batches, own = run(ahead, total=90)
    assert equal(batches, whole) and own == states
    assert equal(run(ahead, states[40], 90)[0], whole[41:])


def test_processes_share_the_images(shards: Path) -> None:
    """Rank by rank the batches of one process, in turn; with a global batch a step has the same pairs."""
    alone, _ = run(module(shards), total=24)
    for rank in range(2):
        assert equal(run(module(shards), total=12, rank=rank, world=2)[0], alone[rank::2])

    def steps(world: int, most: int) -> list[list[int]]:
        data = module(shards, global_batch=8, batch_size=most)
        count = data.micro_batches(world)
        assert count is not None
        ranks = [run(data, total=3 * count, rank=rank, world=world)[0] for rank in range(world)]
        parts = [[own for rank in ranks for own in rank[n * count : (n + 1) * count]] for n in range(3)]
        return [sorted(int(one) for batch in part for one in batch["image_id"]) for part in parts]

    assert steps(1, 8) == steps(2, 4) == steps(2, 2)


def test_batches_are_those_of_prepared_pairs(shards: Path) -> None:
    """Of the same keys, types and shapes; the images are as preparation reads them."""
    streamed, prepared = (module(shards, streaming=on, augment=None) for on in (True, False))
    one, other = (next(iter(run(data, total=1)[0])) for data in (streamed, prepared))
    assert one.keys() == other.keys()
    assert all(one[key].dtype == other[key].dtype and one[key].shape[0] == 4 for key in one)
    assert one["image"].shape == other["image"].shape and one["masked"].shape == other["masked"].shape
    info = streamed.info
    pixels = {
        shard * 16 + number: torch.from_numpy(image.transpose(2, 0, 1).copy())
        for (shard, number), (_, _, image) in zip(np.ndindex(8, 16), squares(), strict=False)
    }
    for item in trained(streamed)[:20]:
        shard, number = map(int, item["text"].split()[-2:])
        assert torch.equal(item["image"], pixels[shard * 16 + number])
    batch = streamed.item_source()[1](trained(streamed)[:3])
    assert batch["image"].mean().abs() < 1 and torch.equal(
        batch["image"], info.normalise(info.pixels(batch["image"]))
    )
    texts = [
        streamed.tokenizer.decode(row[mask].tolist()[1:-1])
        for row, mask in zip(batch["tokens"], batch["mask"], strict=True)
    ]
    assert texts == [item["text"] for item in trained(streamed)[:3]]


def test_no_held_out_image_is_trained_on(shards: Path) -> None:
    """Each of the others is, once in an epoch, whatever number of held-out ones was prepared."""
    data, few = module(shards), module(shards, max_held_out=3)
    first, second = ([item["text"] for item in trained(data, epoch)] for epoch in (0, 1))
    out = set(held_out(data))
    assert len(first) == len(set(first)) and sorted(first) == sorted(second) and first != second
    everything = {
        f"{english} {shard} {number}"
        for (shard, number), (english, _, _) in zip(np.ndindex(8, 16), squares(), strict=False)
        if number not in (5, 9)
    }
    assert out and not out & set(first) and out | set(first) == everything
    assert few.info.captions["val"] == few.info.captions["test"] == 3
    assert [item["text"] for item in trained(few)] == first


def test_copies_of_held_out_images_are_skipped(tmp_path: Path) -> None:
    """With another caption, in shards of stated splits too."""
    made = [png(pixels) for _, (_, _, pixels) in zip(range(12), squares(), strict=False)]
    for split, numbers in {"train": range(12), "val": (2, 3)}.items():
        members = [
            one for n in numbers
            for one in ((f"{n}.png", made[n]), (f"{n}.txt", f"a caption of {split} {n}".encode()))
        ]  # fmt: skip
        write_tar(tmp_path / f"{split}.tar", members)
    names = {split: str(tmp_path / f"{split}.tar") for split in ("train", "val")}
    data = module(tmp_path, names, streams=1, max_held_out=1)
    assert data.info.captions["val"] == 2
    assert {item["text"] for item in trained(data)} == {
        f"a caption of train {n}" for n in range(12) if n not in (2, 3)
    }


def test_captions_decide_the_split() -> None:
    """A held-out image keeps the captions that are held out; so no training image has one of these."""
    fractions = (0.3, 0.3)
    texts = [f"caption {number}" for number in range(30)]
    alone = {
        text: divide(ImageExample(id="", image=b"", captions={"en": [text]}), fractions).split
        for text in texts
    }
    assert set(alone.values()) == {"train", "val", "test"}
    for first in texts:
        for second in texts:
            image = ImageExample(id="", image=b"", captions={"en": [first], "fr": [second.upper() + "!"]})
            divided = divide(image, fractions)
            sides = {alone[first], alone[second]}
            assert divided.split == next(one for one in ("test", "val", "train") if one in sides)
            kept = {text.lower().rstrip("!") for _, text in each_caption(divided.captions)}
            assert kept == {text for text in (first, second) if alone[text] == divided.split}


def test_what_cannot_be_used_is_counted(shards: Path) -> None:
    """As far as preparation meets it; training skips the same."""
    data = module(shards)
    report = json.loads((data.images.folder / "prepare_report.json").read_text())["skipped_by_reason"]
    assert report["not an image"] > 0 and report["no caption in en"] > 0
    assert not {item["text"] for item in trained(data)} & {f"{shard} 5" for shard in range(8)}


@pytest.mark.parametrize(
    ("damage", "workers"),
    [
        ("missing", 0),
        ("empty", 0),
        ("truncated", 0),
        ("truncated", 2),
        ("header", 0),
        ("end", 0),
        ("compressed", 0),
    ],
)
def test_a_damaged_tar_ends_the_run(tmp_path: Path, damage: str, workers: int) -> None:
    """With one message, after which the run goes on as if nothing had happened."""
    folder = image_shards(tmp_path / "own")
    data = module(folder, num_workers=workers)
    whole, _ = run(data)
    file = folder / "shard-3.tar"
    content = file.read_bytes()
    _ = data.streamed
    broken = {
        "empty": b"", "truncated": content[: len(content) * 2 // 3], "compressed": b"\x1f\x8b" + content[2:],
        "header": content[:5120] + b"damaged" + content[5127:],
        "end": content[: -(-len(content.rstrip(b"\0")) // 512) * 512],
    }  # fmt: skip
    file.unlink() if damage == "missing" else file.write_bytes(broken[damage])
    data.configure_run(60)
    batches, state = [], None
    loader: Any = data.train_dataloader()
    with pytest.raises(ShardError, match=r"^\S*shard-3.tar: this shard .*Fetch it again.*repeat") as error:
        for batch in loader:
            batches.append(batch)
            state = loader.state_dict()
    assert "\n" not in str(error.value) and equal(batches, whole[: len(batches)])
    file.write_bytes(content)
    again = module(folder, num_workers=workers)
    assert again.key == data.key
    assert equal(run(again, state)[0] if state else run(again)[0], whole[len(batches) :])


def test_images_of_a_window_are_not_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window holds where they are; one is read and decoded when it leaves the window."""
    data = module(shards)
    source, _ = data.item_source()
    read: list[Slice] = []
    content = streaming.shard_bytes
    monkeypatch.setattr(streaming, "shard_bytes", lambda place: (read.append(place), content(place))[1])
    items = source.items(0, Position())
    for number in range(1, 9):
        next(items)
        assert number <= len(read) <= number + 2  # some cannot be decoded
    _, example = next(data.streamed.examples(0, Position()))
    assert isinstance(example.image, Slice)


def test_shards_without_any_image_end_the_run(tmp_path: Path) -> None:
    """An epoch of images that cannot be decoded is no endless loop."""
    folder = image_shards(tmp_path / "own", shards=4)
    data = module(folder)
    for file in folder.glob("*.tar"):
        write_tar(file, [("1.png", b"no image"), ("1.txt", b"a caption")])
    with pytest.raises(ShardError, match="no example to train on"):
        run(data)


def test_neighbours_make_a_sample(tmp_path: Path) -> None:
    """Of a streamed shard, which is not read further for one; a position is a byte."""
    pictures = [png(pixels) for _, (_, _, pixels) in zip(range(3), squares(), strict=False)]
    members = [
        one for n in range(3) for one in ((f"x/{n}.png", pictures[n]), (f"x/{n}.txt", f"number {n}".encode()))
    ]
    write_tar(tmp_path / "a.tar", members)
    (shard,) = WebDatasetReader(str(tmp_path / "a.tar")).shards()
    found = [*shard.read()]
    assert [one.id for _, one in found] == [f"a.tar/x/{n}" for n in range(3)]
    assert [one for _, one in shard.read(found[0][0])] == [one for _, one in found[1:]]
    write_tar(tmp_path / "b.tar", [])
    with pytest.raises(DataError, match=r"b\.tar: this shard .* it is empty"):
        next(WebDatasetReader(str(tmp_path / "b.tar")).shards()[0].read())
