"""A tiny corpus of each kind of data, and the settings of its module."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.image.base import ImageCorpus, ImageExample
from magneto.data.corpora.segmentation.base import SegmentationCorpus, SegmentationExample
from magneto.data.corpora.speech.base import SpeechCorpus, Utterance
from magneto.data.corpora.text.base import Document, TextCorpus
from magneto.data.corpora.text_classification.base import LabelledCorpus, LabelledText
from magneto.data.corpora.translation.base import Pair, TranslationCorpus
from magneto.data.corpora.vqa.base import Question, QuestionCorpus
from magneto.data.image.module import ImageDataModule
from magneto.data.image_text.module import ImageTextDataModule
from magneto.data.io.audio import Audio
from magneto.data.prepared import PreparedDataModule
from magneto.data.segmentation.module import SegmentationDataModule
from magneto.data.speech.module import SpeechDataModule
from magneto.data.text.module import TextDataModule
from magneto.data.text_classification.module import TextClassificationDataModule
from magneto.data.translation.module import TranslationDataModule
from magneto.data.vqa.module import VqaDataModule
from tests.toys.captions import COLOURS, squares
from tests.toys.recordings import tone
from tests.toys.segmentation import CLASSES, scene
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


def segmentation(folder: Path, sides: Sequence[str]) -> Given:
    """The last mask has an id that is neither of a class nor ignored."""
    random = np.random.default_rng(0)
    examples = [
        SegmentationExample(id=str(n), image=image, mask=mask, split=sides[n % len(sides)])
        for n, (image, mask) in enumerate(scene(random, 16 + n % 3, 16) for n in range(40))
    ]
    bad = SegmentationExample(id="bad", image=examples[0].image, mask=examples[0].mask + 9, split="train")
    corpus = SegmentationCorpus(
        examples=[*examples, bad], labels=CLASSES, first=1, ignored=(0,), skipped=[BROKEN]
    )
    return Given(corpus)


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

    module: Callable[..., PreparedDataModule[Any, Any]]
    corpus: Callable[[Path, Sequence[str]], Given]
    settings: dict[str, Any]
    others: dict[str, Any]
    same: dict[str, Any]
    skips: dict[str, int]
    columns: dict[str, str]


IMAGES = {"image_size": 8, "batch_size": 4, "prepare_workers": 1}
TOKENS = {"tokenizer": {"kind": "byte_bpe", "vocab_size": 264}}
FEW_TOKENS = {"tokenizer": {"kind": "byte_bpe", "vocab_size": 262}}
KINDS = {
    "text": Kind(
        TextDataModule, text, {**TOKENS, "block_size": 16, "batch_size": 2, "masking": {}}, FEW_TOKENS,
        {"block_size": 32, "masking": None}, {"empty": 1, "broken line": 1},
        {"id": "Value('string')", "tokens": "List(Value('uint16'))", "size": "Value('int64')"},
    ),
    "causal text": Kind(
        TextDataModule, text, {**TOKENS, "block_size": 16, "batch_size": 2}, {"val_fraction": 0.1},
        {"documents": "separate", "eval_stride": 8}, {"empty": 1, "broken line": 1}, {},
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
    "segmentation": Kind(
        SegmentationDataModule, segmentation,
        {"image_size": 8, "batch_size": 4, "prepare_workers": 1, "augment": {"scale": [0.5, 1.5], "flip": True}},
        {"short_side": 12}, {"augment": {}, "image_size": 12},
        {"mask: an id that is neither of a class nor ignored": 1, "broken line": 1},
        {"id": "Value('string')", "pixels": "List(Value('uint8'))", "mask": "List(Value('uint8'))"},
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
    ) -> PreparedDataModule[Any, Any]:
        """Return a data module that is not prepared."""
        reader: Any = self.kind.corpus(self.folder, sides)
        if self.kind.module is not TextClassificationDataModule:
            reader = {"given": reader}
        data_dir = data_dir or self.folder / "data"
        return self.kind.module(reader, data_dir=str(data_dir), **{**self.kind.settings, **settings})

    def prepared(self, data_dir: Path | None = None, **settings: Any) -> PreparedDataModule[Any, Any]:
        """Return a data module that is prepared."""
        data = self(data_dir, **settings)
        data.prepare()
        return data
