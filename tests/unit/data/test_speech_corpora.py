"""Corpora in their real formats, small: Tux Paint stamps, LibriSpeech, hash
splits."""

import hashlib
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import soundfile

from magneto.data.corpora.base import Groups, hash_split
from magneto.data.corpora.speech import librispeech
from magneto.data.corpora.speech.librispeech import LibriSpeechReader
from magneto.data.corpora.speech.stamps import StampsReader
from magneto.errors import MagnetoError
from tests.toys.recordings import tone

# ------------------------------------------------------------------------------------------------ splits


def test_hash_split_is_fixed():
    """The shares are about as large as asked for."""
    names = [f"group {number}" for number in range(5_000)]
    sides = [hash_split(name, val=0.04, test=0.06) for name in names]
    assert sides == [hash_split(name, val=0.04, test=0.06) for name in names]
    counts = Counter(sides)
    assert 150 < counts["val"] < 250 and 240 < counts["test"] < 360
    assert hash_split("group 0", val=0.04, test=0.06) == "train"  # a golden value: splits are published


def test_groups_do_not_depend_on_the_order():
    """Keys that share a key are one group, named after its smallest member."""
    links = [("b", 1), ("c", 2), ("a", 2), ("c", 1), ("d", 3)]
    for order in (links, links[::-1]):
        groups = Groups()
        for link in order:
            groups.union(*link)
        names = groups.names()
        assert [names[key] for key in "abcd"] == ["a", "a", "a", "d"]


# ------------------------------------------------------------------------------------------------ stamps


@pytest.fixture
def stamp_tree(tmp_path) -> Path:
    """Forty stamps; recordings in Spanish and French, and all that is irregular in the real package."""
    root = tmp_path / "stamps"

    def add(
        name: str, captions: dict[str, str], seed: int, languages: tuple[str, ...] = ("es", "fr")
    ) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["An English line.", *(f"{language}.utf8={text}" for language, text in captions.items())]
        path.with_suffix(".txt").write_text("\n".join(lines), encoding="utf-8")
        for place, language in enumerate(languages):
            soundfile.write(f"{path}_desc_{language}.ogg", tone(0.6, 44_100, 2, 10 * seed + place), 44_100)

    for number in range(40):
        add(
            f"animals/beast{number}",
            {"es": f"Una bestia {number}.", "fr": f"Une bête {number} !", "pt_BR": "x"},
            number,
        )
    add("food/a", {"es": "Una bestia 7", "fr": "Autre"}, 50)  # the caption of beast7
    add("food/b", {"es": "Sin texto francés"}, 51)  # no French caption
    add("food/c", {"es": "Copia", "fr": "Copie"}, 53)
    for language in ("es", "fr"):  # the recordings of beast3
        recording = (root / f"animals/beast3_desc_{language}.ogg").read_bytes()
        (root / f"food/c_desc_{language}.ogg").write_bytes(recording)
    add("food/d", {"ca": "Una bèstia", "es": "Catalana"}, 52, ("es", "ca"))
    (root / "food/no_text_desc_es.ogg").write_bytes((root / "food/d_desc_ca.ogg").read_bytes())
    return root


def test_stamps(stamp_tree, tmp_path):
    reader = StampsReader(languages=["es", "fr"], folder=str(stamp_tree))
    corpus = reader.load(tmp_path)
    found = {utterance.id: utterance for utterance in corpus.examples}
    assert len(found) == 40 * 2 + 2 + 1 + 0 + 1  # food: a has both, b and d one, c none of its own
    one = found["animals/beast5_desc_fr.ogg"]
    assert (one.text, one.language, one.group) == ("Une bête 5 !", "fr", "animals/beast5")
    assert one.audio.path == stamp_tree / "animals/beast5_desc_fr.ogg"
    reasons = Counter(item.reason for item in corpus.skipped)
    assert reasons == {"copy of another recording": 2, "no caption in its language": 2}
    assert corpus.origin["verified"] is False


def test_a_stamp_has_one_split(stamp_tree, tmp_path):
    """With its captions and recordings, and those that equal them."""
    corpus = StampsReader(languages=["es", "fr"], folder=str(stamp_tree)).load(tmp_path)
    for key in (
        lambda u: u.id.rsplit("_desc_", 1)[0],
        lambda u: (u.language, u.text.strip(".").lower()),
        lambda u: u.group,
    ):
        sides: dict[object, set[str]] = {}
        for utterance in corpus.examples:
            sides.setdefault(key(utterance), set()).add(utterance.split)
        assert all(len(names) == 1 for names in sides.values())
    group = {u.id: u.group for u in corpus.examples}
    assert group["food/a_desc_es.ogg"] == group["animals/beast7_desc_fr.ogg"]
    assert "train" in {u.split for u in corpus.examples}


def test_languages_do_not_move_a_split(stamp_tree, tmp_path):
    """A recording keeps its split when other languages are chosen."""
    both = {u.id: u.split for u in StampsReader(["es", "fr"], str(stamp_tree)).load(tmp_path).examples}
    one = {u.id: u.split for u in StampsReader(["fr"], str(stamp_tree)).load(tmp_path).examples}
    assert one.items() <= both.items()


def test_languages_of_stamps_are_checked(caplog):
    """Text that does not fit the recordings is refused, doubtful text is warned of."""
    with pytest.raises(MagnetoError, match="not spoken in the recordings"):
        StampsReader(languages=["es", "ca"])
    with pytest.raises(MagnetoError, match="no usable recordings in 'xx'"):
        StampsReader(languages=["xx"])
    with pytest.raises(MagnetoError, match="empty"):
        StampsReader(languages=[])
    StampsReader(languages=["da"])
    assert "0.74" in caplog.text


# ------------------------------------------------------------------------------------------------ LibriSpeech


def libri_tree(root: Path, subset: str, chapters: int = 2) -> None:
    for chapter in range(chapters):
        folder = root / "LibriSpeech" / subset / "84" / str(chapter)
        folder.mkdir(parents=True)
        names = [f"84-{chapter}-{number:04d}" for number in range(3)]
        for name in names:
            soundfile.write(folder / f"{name}.flac", tone(0.6, 16_000), 16_000)
        (folder / f"84-{chapter}.trans.txt").write_text(
            "".join(f"{name} SOME WORDS {name[-1]}\n" for name in names)
        )


@pytest.mark.parametrize("inner", ["", "LibriSpeech"])
def test_librispeech_reads_its_own_format(tmp_path, inner):
    for subset in ("train-clean-100", "dev-clean", "test-clean"):
        libri_tree(tmp_path, subset)
    (tmp_path / "LibriSpeech/dev-clean/84/0/84-0-0001.flac").unlink()
    corpus = LibriSpeechReader(folder=str(tmp_path / inner)).load(tmp_path / "data")
    assert Counter(u.split for u in corpus.examples) == {"train": 6, "val": 5, "test": 6}
    first = corpus.examples[0]
    assert (first.id, first.text, first.speaker) == ("84-0-0000", "SOME WORDS 0", "84")
    assert [(item.id, item.reason) for item in corpus.skipped] == [("84-0-0001", "missing file")]


def test_librispeech_identity_follows_its_files(tmp_path, monkeypatch):
    """A chapter that arrives, or a file that was cut off, prepares again; a whole subset has one fingerprint."""
    for subset in ("train-clean-100", "dev-clean", "test-clean"):
        libri_tree(tmp_path, subset)
    reader = LibriSpeechReader(folder=str(tmp_path))
    identities = [reader.fingerprint()]
    assert identities == [reader.fingerprint()]
    libri_tree(tmp_path / "later", "dev-clean", chapters=3)
    chapters = tmp_path / "LibriSpeech/dev-clean/84"
    shutil.move(tmp_path / "later/LibriSpeech/dev-clean/84/2", chapters / "2")
    identities.append(reader.fingerprint())
    with (chapters / "2/84-2-0001.flac").open("r+b") as file:
        file.truncate(99)
    identities.append(reader.fingerprint())
    (chapters / "2/._84-2-0001.flac").touch()
    assert reader.fingerprint() == identities[-1] and len({str(one) for one in identities}) == 3
    for subset, count in {"train-clean-100": 6, "dev-clean": 9, "test-clean": 6}.items():
        monkeypatch.setitem(librispeech.UTTERANCES, subset, count)
    whole = reader.fingerprint()
    shutil.rmtree(tmp_path / "LibriSpeech/test-clean")  # it is downloaded then
    assert reader.fingerprint() == whole


def test_librispeech_is_downloaded_and_checked(tmp_path, monkeypatch):
    """A missing subset is fetched once; a damaged archive is refused."""
    from torchaudio.datasets import librispeech as torchaudio_librispeech

    libri_tree(tmp_path / "origin", "dev-clean")
    with tarfile.open(tmp_path / "dev-clean.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "origin" / "LibriSpeech", "LibriSpeech")
    checksum = hashlib.sha256((tmp_path / "dev-clean.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(librispeech, "ADDRESS", f"file://{tmp_path}/")
    address = "http://www.openslr.org/resources/12/dev-clean.tar.gz"
    monkeypatch.setitem(torchaudio_librispeech._CHECKSUMS, address, checksum)
    reader = LibriSpeechReader(train=["dev-clean"], val=[], test=[])
    for _ in range(2):
        assert len(reader.load(tmp_path / "data").examples) == 6
    assert not (tmp_path / "data/raw/.dev-clean.partial").exists()

    monkeypatch.setitem(torchaudio_librispeech._CHECKSUMS, address, "0" * 64)
    with pytest.raises(MagnetoError, match=r"damaged.*openslr"):
        reader.load(tmp_path / "elsewhere")


def test_librispeech_refuses_wrong_subsets(tmp_path):
    """Unknown and repeated ones, and a folder without transcripts."""
    with pytest.raises(MagnetoError, match="train-clean-360"):
        LibriSpeechReader(train=["train-clean"])
    with pytest.raises(MagnetoError, match="named for two splits"):
        LibriSpeechReader(train=["dev-clean"])
    (tmp_path / "LibriSpeech/train-clean-100").mkdir(parents=True)
    with pytest.raises(MagnetoError, match="no transcripts"):
        LibriSpeechReader(folder=str(tmp_path)).load(tmp_path)
