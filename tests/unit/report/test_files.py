"""Files of a report: page, Markdown, CSV and LaTeX, with the examples."""

import base64
import csv
import io
import re
from pathlib import Path
from typing import Any

import lxml.html
import numpy as np
import pytest
from PIL import Image

from magneto.report import write_report
from magneto.report.markup import latex_text, markdown_text
from tests.unit.report.runs import falling, make_run, three_by_two


def parse(html: str) -> Any:
    """The page as a tree; every tag is closed."""
    parser = lxml.html.HTMLParser()
    page = lxml.html.document_fromstring(html, parser=parser)
    assert not [error for error in parser.error_log if error.type_name != "HTML_UNKNOWN_TAG"]
    return page


def test_report_files(tmp_path: Path) -> None:
    three_by_two(tmp_path / "runs", message="loss is nan")
    files = write_report(
        [tmp_path / "runs"], tmp_path / "out", title="Placements", command="python run.py -m seed=1,2"
    )
    page = parse(files.html.read_text())
    loaded, links = page.xpath("//@src | //@srcset | //link/@href | //object/@data"), page.xpath("//a/@href")
    assert len(loaded) == len(files.saved_figures) == 4
    assert all(source.startswith("data:image/png;base64,") for source in loaded)
    assert page.xpath("//img") == page.xpath("//img[@alt != '']") and not page.xpath("//script")
    assert "../runs/asr/post_ln-tiny-seed2" in links
    assert all((tmp_path / "out" / link).is_dir() for link in links)
    text = files.html.read_text()
    assert not re.search(r"https?://|url\(|@import", text)
    markdown = files.markdown.read_text()
    lost = "post_ln-tiny-seed2: diverged at step 130 of 300 (loss is nan)"
    for said in ("Placements", "python run.py -m seed=1,2", lost):
        assert said in markdown and said in text
    assert "| magneto | 5.2 M | 2 | **0.410 ± 0.014** |" in markdown
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", markdown):
        assert (tmp_path / "out" / name).is_file()

    rows = list(csv.DictReader(files.csv.open()))
    assert [row["configuration"] for row in rows] == ["post_ln", "pre_ln", "magneto"]
    assert float(rows[2]["test/cer mean"]) == pytest.approx(0.41)
    assert float(rows[2]["test/cer sd"]) == pytest.approx(np.std([0.40, 0.42], ddof=1))
    assert float(rows[2]["test/cer/fr mean"]) == pytest.approx(0.51)
    assert (rows[0]["diverged"], rows[0]["test/cer sd"]) == ("1", "")

    latex = files.latex.read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 3
    assert r"post\_ln" in latex and r"\textbf{0.410 $\pm$ 0.014}" in latex
    for line in latex.splitlines():
        if line.endswith(r"\\"):
            assert line.count("&") in (5, 4, 2)


def test_same_runs_same_bytes(tmp_path: Path) -> None:
    for backbone in ("pre_ln", "magneto"):
        curves, samples = {"train/loss": falling(1)}, [{"id": 1, "hypothesis": "x"}]
        make_run(tmp_path / "runs", backbone, curves=curves, samples=samples)
    first = write_report([tmp_path / "runs"], tmp_path / "a")
    second = write_report([tmp_path / "runs"], tmp_path / "b")
    for one in first.folder.iterdir():
        assert one.read_bytes() == (second.folder / one.name).read_bytes()


EVIL = "<script>alert(1)</script> | `x` **b** [l](http://e) \\ & % $ # _ {\"'"


def test_every_text_is_escaped(tmp_path: Path) -> None:
    sample = dict.fromkeys(("id", "reference", EVIL), EVIL) | {"kind": "transcript", "language": '"><i>'}
    for backbone in ("pre_ln", EVIL):
        make_run(
            tmp_path / "runs", backbone, name=f"run <i>{backbone[:3]}", data=EVIL, size=EVIL, status="failed",
            message=EVIL, monitor=EVIL, config={f"data.{EVIL}": EVIL, "optimizer.lr": EVIL + backbone},
            overrides=(EVIL,), samples=[sample | {"hypothesis": EVIL + "<b>"}],
            curves={"train/loss": falling(1), f"val/{EVIL}": falling(2)}, git=EVIL, versions={EVIL: EVIL},
        )  # fmt: skip
    files = write_report([tmp_path / "runs"], tmp_path / "out", title=EVIL, command=EVIL)
    page = parse(files.html.read_text())
    assert not page.xpath("//script | //i")
    # A quote that got out of an attribute would leave attributes of its own behind.
    known = "alt aria-label charset class content dir href http-equiv lang name role scope src style tabindex"
    assert {name for element in page.iter() for name in element.attrib} == set(known.split())
    assert not any(link.startswith("http") for link in page.xpath("//a/@href"))
    assert "&lt;script&gt;" in files.html.read_text()
    body = files.markdown.read_text().replace(f"```\n{EVIL}\n```", "")
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[l(?<!\\)\]", body)
    runs = [line for line in body.splitlines() if line.startswith("| run")]
    assert len({line.count("|") - line.count(r"\|") for line in runs}) <= 1


def test_escapes_one_by_one() -> None:
    assert markdown_text("pre_ln _x_ a|b\nc <i>") == r"pre_ln \_x\_ a\|b c \<i\>"
    latex = r"50\% of a\_b \& \{c\} \textbackslash{}d \textasciitilde{} $-$1"
    assert latex_text(r"50% of a_b & {c} \d ~ −1") == latex


def page_of(tmp_path: Path) -> str:
    return write_report([tmp_path / "runs"], tmp_path / "out").html.read_text()


def test_examples_side_by_side(tmp_path: Path) -> None:
    """Examples of all rows stand together, with errors marked, some of each language."""

    def said(text: str) -> list[dict[str, Any]]:
        spanish = {"kind": "transcript", "reference": "a", "hypothesis": "a", "language": "es"}
        mine = {
            "id": "fr1",
            "kind": "transcript",
            "reference": "le chat",
            "hypothesis": text,
            "language": "fr",
        }
        return [*(spanish | {"id": f"es{i}"} for i in range(9)), mine]

    make_run(tmp_path / "runs", "pre_ln", samples=said("la cht"))
    make_run(tmp_path / "runs", "magneto", samples=said("le chats"))
    html = page_of(tmp_path)
    assert html.count('<article class="sample">') == 8
    # Shown although it came last.
    (card,) = re.findall(r"<article class=\"sample\"><header>fr1.*?</article>", html)
    assert (
        'l<mark title="instead of: e">a</mark> ch<del>a</del>t' in card and "2 errors in 7 characters" in card
    )
    assert "le chat<ins>s</ins>" in card and "1 error in 7 characters" in card
    assert card.index("reference") < card.index("pre_ln") < card.index("magneto") and 'lang="fr"' in card


def test_each_kind_shows_input_and_output(tmp_path: Path) -> None:
    samples = [
        {"id": "1", "kind": "translation", "direction": "en-fr", "source": "the cat", "reference": "le chat",
         "hypothesis": "le chien"},
        {"id": "2", "kind": "translation", "direction": "en-de", "source": "a dog", "reference": "ein Hund",
         "hypothesis": "ein Hund"},
        {"id": "3", "kind": "continuation", "prompt": "Fellow citizens", "reference": None,
         "continuation": "of the Senate"},
        {"id": "4", "kind": "continuation", "prompt": "We the", "reference": "people of", "continuation": "men in"},
        {"id": "5", "kind": "filled", "text": "The [MASK] of peace", "filled": "The end of peace",
         "reference": "The love of peace"},
        {"id": "6", "kind": "transcript", "reference": "oui", "hypothesis": ""},
    ]  # fmt: skip
    make_run(tmp_path / "runs", "magneto", samples=samples)
    files = write_report([tmp_path / "runs"], tmp_path / "out")
    html, markdown = files.html.read_text(), files.markdown.read_text()
    cards = dict(re.findall(r'<article class="sample"><header>(\d).*?</header>(.*?)</article>', html))
    assert set(cards) == {"1", "2", "3", "4", "5", "6"}
    assert "the cat" in cards["1"] and '<mark title="instead of: chat">chien</mark>' in cards["1"]
    assert "1 difference in 2 words" in cards["1"]
    assert 'lang="fr"' in cards["1"] and "as the reference" in cards["2"]
    assert "Fellow citizens" in cards["3"] and "of the Senate" in cards["3"] and "reference" not in cards["3"]
    # A continuation need not be the text's own: both are shown, nothing is marked.
    assert "people of" in cards["4"] and "men in" in cards["4"] and "<mark" not in cards["4"]
    assert "[MASK]" in cards["5"] and '<mark title="instead of: love">end</mark>' in cards["5"]
    assert "<del>oui</del>" in cards["6"] and "3 errors in 3 characters" in cards["6"]
    assert "- source: the cat" in markdown and "- reference: le chat" in markdown
    assert re.search(r"^- magneto.*: le chien$", markdown, re.MULTILINE)
    # Three examples are enough there, one of each direction among them.
    assert markdown.count("· translation") == 2 and markdown.count("· continuation") == 1


def test_images_side_by_side(tmp_path: Path) -> None:
    """Within the page, which opens alone; as links in the text. The kind that comes last is among the examples shown."""
    samples = [{"id": f"c{i}", "kind": "classified", "predicted": "a", "reference": "b"} for i in range(8)]
    samples.append({"id": "7", "kind": "reconstruction", "image": "samples/test-7.png"})
    for backbone in ("pre_ln", "magneto"):
        folder = make_run(tmp_path / "runs", backbone, samples=samples)
        if backbone == "magneto":  # the other one's was deleted: it is left out
            (folder / "samples").mkdir()
            Image.fromarray(np.full((2, 3), 200, np.uint8)).save(folder / "samples/test-7.png")
    files = write_report([tmp_path / "runs"], tmp_path / "out")
    html, markdown = files.html.read_text(), files.markdown.read_text()
    (card,) = re.findall(r'<article class="sample"><header>7.*?</header>(.*?)</article>', html)
    (data,) = re.findall(r'<img alt="magneto: 7 · reconstruction" src="data:image/png;base64,([^"]*)">', card)
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).tolist() == [[200] * 3] * 2
    (link,) = re.findall(r"!\[magneto\]\((.*samples/.*)\)", markdown)
    assert (tmp_path / "out" / link).is_file() and "pre_ln" not in card
