"""Retrieval: scores against brute force, what a gallery keeps and shows, and the drawings."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from magneto.inference.vision_language import Match, top_matches
from magneto.metrics import retrieval
from magneto.metrics.retrieval import RetrievalScores, ranks
from magneto.visualize import retrieval_examples
from magneto.visualize.retrieval_examples import RetrievalExamples
from magneto.visualize.retrieval_grid import (
    GAP,
    RIGHT,
    SIDE,
    WIDTH,
    WRONG,
    _font,
    above,
    images_for,
    texts_for,
    wrapped,
)

WIDTH_OF_VECTORS = 8


def pairs(seed: int = 0, count: int = 60) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Images (some with several captions), captions (some of several images), languages, and vectors of both."""
    random = np.random.default_rng(seed)
    image = torch.from_numpy(random.integers(0, 40, count)) * 7
    caption = torch.from_numpy(random.integers(0, 45, count)) + 1000
    language = caption % 2
    torch.manual_seed(seed)
    of_image = {int(number): torch.randn(WIDTH_OF_VECTORS) for number in image}
    vision = torch.stack([of_image[int(number)] for number in image])
    of_text = {int(number): torch.randn(WIDTH_OF_VECTORS) for number in caption}
    for number, text in zip(image, caption, strict=True):  # some are found
        of_text[int(text)] = of_text[int(text)] + of_image[int(number)]
    text = torch.stack([of_text[int(number)] for number in caption])
    return image, caption, language, F.normalize(vision, dim=-1), F.normalize(text, dim=-1)


def brute_force(
    image: Tensor, caption: Tensor, vision: Tensor, text: Tensor, cut: int
) -> tuple[float, float]:
    """R@cut of images and of texts, by sorting lists of names."""
    images = dict(zip(image.tolist(), vision, strict=True))
    texts = dict(zip(caption.tolist(), text, strict=True))
    right = set(zip(image.tolist(), caption.tolist(), strict=True))
    hits: tuple[list[bool], list[bool]] = [], []
    for number, vector in images.items():
        order = sorted(texts, key=lambda name: -float(texts[name] @ vector))
        hits[0].append(any((number, name) in right for name in order[:cut]))
    for name, vector in texts.items():
        order = sorted(images, key=lambda number: -float(images[number] @ vector))
        hits[1].append(any((number, name) in right for number in order[:cut]))
    return float(np.mean(hits[0])), float(np.mean(hits[1]))


def score(*names: str, parts: int = 1) -> dict[str, float]:
    metric = RetrievalScores(names, WIDTH_OF_VECTORS)
    for batch in zip(*(column.chunk(parts) for column in pairs()), strict=True):
        metric.update(*batch)
    return metric.compute()


def test_scores_are_those_of_brute_force() -> None:
    image, caption, _, vision, text = pairs()
    scores = score("en")
    for cut in (1, 5, 10):
        of_images, of_texts = brute_force(image, caption, vision, text, cut)
        assert scores[f"image_to_text/r{cut}"] == pytest.approx(of_images)
        assert scores[f"text_to_image/r{cut}"] == pytest.approx(of_texts)
    assert 0 < scores["r1"] < 1
    assert scores["r1"] == pytest.approx((scores["image_to_text/r1"] + scores["text_to_image/r1"]) / 2)
    assert scores["facts/images"] == len(set(image.tolist()))
    assert scores["facts/captions"] == len(set(caption.tolist()))
    assert not any(name.endswith("/en") for name in scores)


def test_chance_is_what_a_lot_gives() -> None:
    image, caption, *_ = pairs()
    torch.manual_seed(1)
    drawn = []
    for _ in range(300):  # vectors that have nothing to do with one another
        metric = RetrievalScores(("en",), 3)
        of = [F.normalize(torch.randn(2000, 3), dim=-1)[numbers] for numbers in (image, caption)]
        metric.update(image, caption, torch.zeros_like(image), *of)
        drawn.append(metric.compute()["r1"])
    assert np.mean(drawn) == pytest.approx(score("en")["facts/chance"], rel=0.15)


def test_each_language_is_scored_for_itself() -> None:
    image, caption, language, vision, text = pairs()
    scores = score("en", "fr", "de")
    for place, name in enumerate(("en", "fr")):
        keys = set(caption[language == place].tolist())
        images = dict(zip(image.tolist(), vision, strict=True))
        right = set(zip(image.tolist(), caption.tolist(), strict=True))
        texts = dict(zip(caption.tolist(), text, strict=True))
        hits = [
            (max(images, key=lambda number, key=key: float(images[number] @ texts[key])), key) in right
            for key in keys
        ]
        assert scores[f"text_to_image/r1/{name}"] == pytest.approx(np.mean(hits))
    assert "text_to_image/r1/de" not in scores, "there is no caption in it"


def test_a_text_of_two_languages_counts_in_both() -> None:
    vectors = torch.eye(3)
    metric = RetrievalScores(("en", "fr"), 3)
    images = torch.tensor([0, 1, 0, 1, 2])
    text = vectors[[1, 0, 1, 0, 2]]  # the first two are found wrongly, in both languages
    metric.update(images, 5 + images, torch.tensor([0, 0, 1, 1, 1]), vectors[images], text)
    scores = metric.compute()
    assert scores["text_to_image/r1/en"] == 0
    assert scores["text_to_image/r1/fr"] == pytest.approx(1 / 3)


def test_vectors_that_are_no_numbers_find_nothing() -> None:
    image, caption, language, vision, text = pairs()
    metric = RetrievalScores(("en",), WIDTH_OF_VECTORS)
    metric.update(image, caption, language, vision * torch.nan, text)
    scores = metric.compute()
    assert scores["r1"] == scores["image_to_text/r10"] == scores["text_to_image/r10"] == 0


def test_batches_and_repetitions_change_nothing() -> None:
    assert score("en", parts=7) == score("en")
    metric = RetrievalScores(("en",), WIDTH_OF_VECTORS)
    metric.update(*pairs())
    metric.update(*pairs())
    assert metric.compute() == score("en")
    metric.reset()
    assert metric.compute() == {}


def test_equal_similarities_find_nothing() -> None:
    """A model that finds all alike finds nothing."""
    same = torch.ones(20, 4) / 2
    numbers = torch.arange(20)
    metric = RetrievalScores(("en",), 4)
    metric.update(numbers, numbers, torch.zeros_like(numbers), same, same)
    assert metric.compute()["image_to_text/r10"] == 0
    assert ranks(same, same, numbers[:, None].expand(-1, 2)).tolist() == [19] * 20


def _score_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    shared, lonely = (RetrievalScores(("en", "fr"), WIDTH_OF_VECTORS) for _ in range(2))
    shared.update(*(column[slice(0, 25) if rank == 0 else slice(25, 60)] for column in pairs()))
    if rank:
        lonely.update(*pairs())
    torch.save([shared.compute(), lonely.compute()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_score_as_one(tmp_path: Path) -> None:
    mp.start_processes(_score_on_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found[0] == found[1] == pytest.approx(score("en", "fr"))


# ------------------------------------------------------------------ galleries


def test_the_nearest_come_first() -> None:
    vectors = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=-1)
    found = top_matches(vectors[0], vectors, 2)
    assert [index for index, _ in found] == [0, 2] and found[1][1] == pytest.approx(0.5**0.5)
    assert len(top_matches(vectors[0], vectors, 10)) == 3


def filled() -> RetrievalExamples:
    """Three images; the first two share a caption, the third has two. Vectors are turned by 10 degrees or more."""
    shown = RetrievalExamples()
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 90.0]))
    vision = torch.stack((angles.cos(), angles.sin()), dim=1)
    angles = torch.deg2rad(torch.tensor([4.0, 4.0, 80.0, 1.0]))
    text = torch.stack((angles.cos(), angles.sin()), dim=1)
    pixels = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (10, 20, 30, 30)])
    captions = ["same", "same", "own", "far"]
    shown.update(torch.tensor([5, 6, 7, 7]), pixels, vision, torch.tensor([50, 50, 51, 52]), captions, text)
    return shown


def test_examples_have_matches_and_ranks() -> None:
    """A gallery shows what is found and where the right ones stand."""
    first, second, third = filled().samples(3)
    assert [one["id"] for one in (first, second, third)] == ["00000005", "00000006", "00000007"]
    assert (first["text"], third["text"]) == ("same", "own")
    assert first["found"] == ["far", "same", "own"]  # at 1, 4 and 80 degrees
    assert (first["rank_of_image"], first["rank_of_text"]) == (1, 2)
    assert (second["rank_of_image"], second["rank_of_text"]) == (1, 1), "an image of the caption stands first"
    assert third["found"] == ["own", "same", "far"] and third["rank_of_text"] == 1
    assert all(one["images"] == 3 for one in (first, second, third))
    assert first["image"].shape[1:] == (WIDTH, 3)


def test_examples_keep_some_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gallery keeps some images only."""
    monkeypatch.setattr(retrieval_examples, "LIMIT", 2)
    assert [one["images"] for one in filled().samples(10)] == [2, 2]
    assert RetrievalExamples().samples(3) == []


# ------------------------------------------------------------------ drawings


def plain(value: int, side: int = 8, channels: int = 3) -> np.ndarray:
    return np.full((channels, side, side), value, np.uint8)


def test_images_stand_in_a_row_with_frames() -> None:
    answers = [
        Match(plain(70), 0.9, True),
        Match(plain(80, channels=1), 0.5, False),
        Match(plain(90, 300), 0.1),
    ]
    panel = images_for("a sentence", answers)
    assert panel.shape[1] == WIDTH and panel.dtype == np.uint8
    middle = panel.shape[0] // 2
    for place, (value, frame) in enumerate(zip((70, 80, 90), (RIGHT, WRONG, (255,) * 3), strict=True)):
        left = GAP + place * (SIDE + 2 * GAP)
        assert (panel[middle, left + SIDE // 2] == value).all()
        assert tuple(panel[middle, left - 2]) == frame


def test_right_texts_are_green() -> None:
    """Texts stand beside their image right ones in green."""
    panel = texts_for(plain(70), [Match("right", 0.9, True), Match("wrong", 0.5, False)])
    green = (panel == RIGHT).all(-1).any(1).nonzero()[0]
    assert len(green) and green.max() < panel.shape[0] / 3, "the first line alone"
    assert (panel[GAP + 2 : GAP + SIDE - 2, GAP + 2 : GAP + SIDE - 2] == 70).all()
    many = texts_for(plain(70), [Match("word " * 60, 0.9)])
    assert many.shape[0] > panel.shape[0], "it grows with the text"
    both = above([panel, many])
    assert both.shape == (panel.shape[0] + many.shape[0] + 1, WIDTH, 3)


def test_long_texts_are_wrapped() -> None:
    """Long texts are broken at spaces and long words anywhere."""
    text = "one two three four five six seven eight nine ten"
    lines = wrapped(text, 120)
    assert " ".join(lines) == text and len(lines) > 2
    word = "x" * 100
    lines = wrapped(f"a {word} b", 120)
    assert "".join(lines).replace(" ", "") == f"a{word}b"
    assert all(_font().getlength(line) <= 120 for line in lines)
    assert wrapped("", 120) == [""]
    assert len(wrapped("ww", 1)) == 2, "at least one letter a line"


def test_ranks_in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gallery of any size: what is compared at once is bounded, and the ranks are those of the whole."""
    generator = torch.Generator().manual_seed(0)
    queries, candidates = (torch.randn(count, 4, generator=generator) for count in (23, 11))
    right = torch.stack(
        (torch.arange(23).repeat(2), torch.randint(11, (46,), generator=generator)), dim=1
    ).unique(dim=0)
    whole = ranks(queries, candidates, right)
    dense = torch.zeros(23, 11, dtype=torch.bool)
    dense[right[:, 0], right[:, 1]] = True
    similarity = queries @ candidates.T
    best = similarity.masked_fill(~dense, -torch.inf).amax(1, keepdim=True)
    assert torch.equal(whole, (similarity > best).sum(1))
    monkeypatch.setattr(retrieval, "LARGEST", 40)
    assert torch.equal(ranks(queries, candidates, right.flip(0)), whole)
