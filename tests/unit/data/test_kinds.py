"""What all kinds of data have in common: folders, tables, info and batches, on a tiny corpus of each."""

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.image.base import ImageCorpus, ImageExample
from magneto.data.corpora.speech.base import SpeechCorpus, Utterance
from magneto.data.corpora.text.base import Document, TextCorpus
from magneto.data.corpora.text_classification.base import LabelledCorpus, LabelledText
from magneto.data.corpora.translation.base import Pair, TranslationCorpus
from magneto.data.corpora.vqa.base import Question, QuestionCorpus
from magneto.data.image.module import ImageDataModule
from magneto.data.image_text.module import ImageTextDataModule
from magneto.data.io.audio import Audio
from magneto.data.prepared import PreparedDataModule
from magneto.data.speech.module import SpeechDataModule
from magneto.data.table import DATA
from magneto.data.text.module import TextDataModule
from magneto.data.text_classification.module import TextClassificationDataModule
from magneto.data.translation.module import TranslationDataModule
from magneto.data.vqa.module import VqaDataModule
from magneto.errors import MagnetoError
from tests.toys.captions import COLOURS, squares
from tests.toys.recordings import tone
from tests.toys.translation import toy_sentence

SIDES = ("train", "train", "train", "val", "test")
BROKEN = Skipped("x", "broken.txt", "broken line")
WORDS = ("war", "peace", "people", "union", "nation")


class Given:
    """The reader of a corpus in memory."""

    name = "given"

    def __init__(self, corpus: Any, questions: Sequence[Question] = ()) -> None:
        self.corpus, self.asked = corpus, questions

    def fingerprint(self) -> dict[str, Any]:
        return {"corpus": "given"}

    def load(self, data_dir: Path) -> Any:
        return self.corpus

    def questions(self, data_dir: Path, images: Any) -> QuestionCorpus:
        return QuestionCorpus(self.asked, [BROKEN])


def sentence(number: int) -> str:
    return " ".join(WORDS[(number // 5**place) % 5] for place in range(4)) + f" of {number}"


def text(folder: Path, sides: Sequence[str]) -> Given:
    documents = [
        Document(id=str(n), text=sentence(n) * 3, group=str(n), split=sides[n % len(sides)])
        for n in range(40)
    ]
    return Given(TextCorpus([*documents, Document(id="bad", text=" ", group="", split="train")], [BROKEN]))


def text_classification(folder: Path, sides: Sequence[str]) -> Given:
    examples = [
        LabelledText(id=str(n), text=sentence(n), label=("left", "right")[n % 2], split=sides[n % len(sides)])
        for n in range(40)
    ]
    return Given(
        LabelledCorpus(examples=examples, labels=("left", "right"), metrics=("accuracy",), skipped=[BROKEN])
    )


def translation(folder: Path, sides: Sequence[str]) -> Given:
    random = np.random.default_rng(0)
    sentences = dict(toy_sentence(random) for _ in range(60))
    languages = {"source_language": "en", "target_language": "fr"}
    pairs = [
        Pair(id=str(n), source=source, target=target, group=str(n), split=sides[n % len(sides)], **languages)
        for n, (source, target) in enumerate([*sentences.items()])
    ]
    bad = Pair(id="bad", source="A text", target=" ", group="", split="train", **languages)
    return Given(TranslationCorpus([*pairs, bad], [BROKEN]))


def speech(folder: Path, sides: Sequence[str]) -> Given:
    utterances = []
    for number in range(20):
        path = folder / f"{number}.wav"
        if not path.exists():
            soundfile.write(path, tone(0.6 + 0.1 * (number % 9), 16_000, seed=number), 16_000)
        utterances.append(
            Utterance(
                id=str(number), audio=Audio(path), text=WORDS[number % 5], language="en", speaker="a",
                group=str(number), split=sides[number % len(sides)],
            )
        )  # fmt: skip
    (folder / "bad.wav").write_bytes(b"no sound")
    bad = Utterance(
        id="bad", audio=Audio(folder / "bad.wav"), text="war", language="en", speaker="a", group="", split="train"
    )  # fmt: skip
    return Given(SpeechCorpus([*utterances, bad], [BROKEN]))


def images(sides: Sequence[str], **more: Any) -> list[ImageExample]:
    """A square of another colour or in another place each; the last one is no image."""
    examples = [
        ImageExample(
            id=str(n), image=pixels, split=sides[n % len(sides)], label=english.split()[0],
            captions={"en": english, "fr": french},
        )
        for n, (english, french, pixels) in enumerate(islice(squares(), 40))
    ]  # fmt: skip
    return [
        *examples,
        ImageExample(id="bad", image=b"no image", split="train", label="red", captions={"en": "a"}),
    ]


def image(folder: Path, sides: Sequence[str]) -> Given:
    return Given(ImageCorpus(examples=images(sides), labels=tuple(COLOURS), skipped=[BROKEN]))


def image_text(folder: Path, sides: Sequence[str]) -> Given:
    return Given(ImageCorpus(examples=images(sides), skipped=[BROKEN]))


def vqa(folder: Path, sides: Sequence[str]) -> Given:
    examples = images(sides)[:-1]
    questions = [
        Question(
            id=f"{one.id}", text=f"what colour is {one.id}?", images=(one.id,), answers=(str(one.label),) * 3
        )
        for one in examples
    ]
    bad = Question(id="bad", text=" ", images=("0",), answers=("red",))
    return Given(ImageCorpus(examples=examples, labels=tuple(COLOURS), skipped=[BROKEN]), [*questions, bad])


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes:
        module: its class.
        corpus: makes the reader of a corpus whose examples have these splits in turn.
        settings: of the module.
        others: settings that make another folder.
        same: settings that do not.
        skips: what is skipped of the corpus.
        columns: some columns of the tables with their types, as `datasets` writes them.
    """

    module: Callable[..., PreparedDataModule[Any]]
    corpus: Callable[[Path, Sequence[str]], Given]
    settings: dict[str, Any]
    others: dict[str, Any]
    same: dict[str, Any]
    skips: dict[str, int]
    columns: dict[str, str]
    words: dict[str, Any] = field(default_factory=lambda: {"kind": "byte_bpe", "vocab_size": 264})


IMAGES = {"image_size": 8, "batch_size": 4, "prepare_workers": 1}
TOKENS = {"tokenizer": {"kind": "byte_bpe", "vocab_size": 264}}
FEW_TOKENS = {"tokenizer": {"kind": "byte_bpe", "vocab_size": 262}}
KINDS = {
    "text": Kind(
        TextDataModule, text, {**TOKENS, "block_size": 16, "batch_size": 2, "masking": {}}, FEW_TOKENS,
        {"block_size": 32, "masking": None}, {"empty": 1, "broken line": 1},
        {"id": "Value('string')", "tokens": "List(Value('uint16'))", "size": "Value('int64')"},
    ),
    "text_classification": Kind(
        TextClassificationDataModule, text_classification, {**TOKENS, "batch_size": 4}, {"max_tokens": 9},
        {"batch_size": 8}, {"broken line": 1},
        {"label": "ClassLabel(names=['left', 'right'])", "tokens": "List(Value('uint32'))", "text": "Value('string')"},
    ),
    "translation": Kind(
        TranslationDataModule, translation, {**TOKENS, "batch_tokens": 200, "clean": {"templates": False}},
        {"max_tokens": 100}, {"batch_tokens": 400}, {"empty target": 1, "broken line": 1},
        {"direction": "ClassLabel(names=['en-fr'])", "source_tokens": "List(Value('uint16'))"},
    ),
    "speech": Kind(
        SpeechDataModule, speech,
        {"batch_frames": 400, "prepare_workers": 1, "augment": {"speed": [0.9, 1.1]}}, {"subsampling": 2},
        {"augment": None, "batch_frames": 800}, {"not decodable as audio": 1, "broken line": 1},
        {"language": "ClassLabel(names=['en'])", "features": "List(List(Value('float16'), length=80))"},
    ),
    "image": Kind(
        ImageDataModule, image, {**IMAGES, "augment": {"flip": True}, "patch_size": 4, "masking": {}}, {"channels": 1},
        {"augment": None, "masking": None}, {"not an image": 1, "broken line": 1}, {"id": "Value('string')"},
    ),
    "image_text": Kind(
        ImageTextDataModule, image_text, {**IMAGES, **TOKENS, "patch_size": 4, "masking": {}}, {"max_tokens": 9},
        {"batch_size": 8}, {}, {"caption": "Value('string')", "language": "Value('string')"},
    ),
    "vqa": Kind(
        VqaDataModule, vqa, {**IMAGES, **TOKENS}, {"num_answers": 3}, {"batch_size": 8},
        {"question: empty": 1, "broken line": 1}, {"question": "Value('string')", "kind": "Value('string')"},
    ),
}  # fmt: skip


class Corpus:
    """The corpus of a kind of data in a folder of its own."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.folder = kind, folder

    def __call__(
        self, data_dir: Path | None = None, sides: Sequence[str] = SIDES, **settings: Any
    ) -> PreparedDataModule[Any]:
        """Return a data module that is not prepared."""
        reader: Any = self.kind.corpus(self.folder, sides)
        if self.kind.module is not TextClassificationDataModule:
            reader = {"given": reader}
        data_dir = data_dir or self.folder / "data"
        return self.kind.module(reader, data_dir=str(data_dir), **{**self.kind.settings, **settings})

    def prepared(self, data_dir: Path | None = None, **settings: Any) -> PreparedDataModule[Any]:
        """Return a data module that is prepared."""
        data = self(data_dir, **settings)
        data.prepare()
        return data


@pytest.fixture(scope="module", params=KINDS)
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(KINDS[request.param], tmp_path_factory.mktemp(request.param))


def run(data: PreparedDataModule[Any], epochs: int = 2, **ranks: int) -> list[dict[str, Any]]:
    """The training batches of a run."""
    data.configure_run(epochs * data.batches_per_epoch(ranks.get("world_size", 1)), **ranks)
    return list(data.train_dataloader())


def equal(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys()
        and all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
        for a, b in zip(one, other, strict=True)
    )


def report(data: PreparedDataModule[Any]) -> dict[str, Any]:
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
    with (data.folder / "train" / DATA).open("r+b") as file:
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
