"""docs/data.md: its conversion of BEiT-3's SentencePiece model gives the ids that the published tables are made for."""

import re
from pathlib import Path

import pytest

from magneto.data.tokenizers.text import TextTokenizer

sentencepiece = pytest.importorskip("sentencepiece")
pytest.importorskip("transformers")
DOCS = Path(__file__).parents[3] / "docs"
ROWS = 300


@pytest.mark.parametrize("coverage", [0.99, 1.0], ids=["rare_unknown", "all_known"])
def test_converted_tokenizer_gives_the_same_ids(
    coverage: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of special tokens in a text are text, even where the model does not know "<".

    XLM-R puts <s>, <pad>, </s>, <unk> before the pieces (whose first three are SentencePiece's own) and <mask> after.
    """
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "data.md").read_text()
    Path("text.txt").write_text(page)
    sentencepiece.SentencePieceTrainer.train(
        input="text.txt",
        model_prefix="beit3",
        vocab_size=280,
        model_type="unigram",
        character_coverage=coverage,
        num_threads=1,
        minloglevel=2,
    )
    Path("beit3.model").rename("beit3.spm")
    (code,) = (
        code
        for code in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        if "beit3.spm" in code
    )
    exec(compile(code.replace("64_010", str(ROWS)), "docs/data.md", "exec"), {})

    converted = TextTokenizer.from_json(Path("beit3.json").read_text(encoding="utf-8"))
    original = sentencepiece.SentencePieceProcessor(model_file="beit3.spm")
    assert converted.vocab_size == ROWS
    assert original.piece_to_id("<") == 0 or coverage == 1
    assert [converted.require(role) for role in ("bos", "pad", "eos", "unk", "mask")] == [0, 1, 2, 3, 281]
    lines = [
        *page.splitlines(),
        "a literal <unk> in the text, also `<s>`, </s>x, a<pad>, <unused3> and <<unk>>",
        "full\u2011width \uff21, a ligature \ufb01, \u4e00, <mask> and <unused3> in a text",
    ]
    for line in lines:
        expected = [index + 1 if index else 3 for index in original.encode(line)]
        assert converted.encode(line) == expected, line
    assert converted.encode("<unk>", specials=True)[-1] == 3
    if coverage == 1:
        assert converted.decode(converted.encode("x < <unk>")) == "x < <unk>"
