"""The scripts behind ratios and baselines, at sizes of seconds: what they print, not how fast it was."""

import mmap
from pathlib import Path

import pytest

from magneto.errors import MagnetoError
from tests.integration.conftest import Script
from tests.toys.images import image_settings, write_patterns
from tests.toys.translation import translation_files


def rows(printed: str) -> dict[str, list[str]]:
    """The cells of the printed Markdown tables, by their first one."""
    lines = [line.strip().strip("|").split("|") for line in printed.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines if "--" not in cells[0]}


def test_streaming(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """With a worker, whose memory is read."""
    sizes = ("--documents", 600, "--words", 100, "--vocabulary", 400, "--seconds", 0.5)
    script("streaming", *sizes).main()
    printed = capsys.readouterr().out
    assert "600 documents" in printed and "waiting at " in printed and "fastest: " in printed
    memory = next(line for line in printed.splitlines() if line.startswith("memory of the workers"))
    readings = [float(one) for one in memory.rpartition(": ")[2].split()]
    assert len(readings) >= 10 and min(readings) > 10


def test_transducer(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """Both losses and both training steps have their rows."""
    script("transducer", "--small", "--rounds", 1).main()
    table = rows(capsys.readouterr().out)
    names = {f"{name}: small" for name in ("ours", "ours, in smaller parts", "torchaudio")}
    assert names | {"CTC", "transducer"} <= set(table)
    assert all(float(table[name][0]) > 0 and float(table[name][2]) >= 0 for name in names)


def test_generation(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """All contestants write the same tokens, or the script itself fails."""
    pytest.importorskip("transformers")
    sizes = ("--layers", 1, "--width", 64, "--vocabulary", 60, "--tokens", 4, "--batch", 2, "--rounds", 1)
    script("generation", *sizes).main()
    printed = capsys.readouterr().out
    table = rows(printed)
    names = {"ours, cache", "ours, no cache", "transformers, cache"}
    names |= {f"{whose}, cache, batch 2" for whose in ("ours", "transformers")}
    assert names <= set(table) and all(float(table[name][0]) > 0 for name in names)
    for ratio in (
        "cache / no cache",
        "batch 2 / one prompt",
        "ours / transformers",
        "ours / transformers, batch 2",
    ):
        assert f"\n{ratio}:" in printed


@pytest.mark.slow
def test_generation_with_compiled_steps(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    sizes = ("--layers", 1, "--width", 64, "--vocabulary", 60, "--tokens", 20, "--batch", 2, "--rounds", 1)
    script("generation", *sizes, "--compile").main()
    table = rows(capsys.readouterr().out)
    for name in ("growing", "static", "static, compiled"):
        for prompts in (1, 2):
            assert all(float(cell.lstrip("x")) > 0 for cell in table[f"{name}, {prompts}"])


TINY = (
    "--layers",
    1,
    "--width",
    64,
    "--vocabulary",
    50,
    "--batch",
    2,
    "--length",
    16,
    "--rounds",
    1,
    "--dtype",
    "fp32",
)


def test_language_step(
    script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    module = script("language_step", *TINY)
    asked: list[list[str]] = []
    # A process for each contestant is what the memory needs and a test does not.
    monkeypatch.setattr(module, "alone", lambda arguments: asked.append(arguments) or 1.0)
    module.main()
    table = rows(capsys.readouterr().out)
    for family, contestants in module.FAMILIES.items():
        assert table[f"{family}, fp32"] == ["tokens/s", "ours is faster by", "memory MiB", "parameters"]
        for name in contestants:
            speed, ratio, memory, parameters = table[name]
            assert float(speed) > 0 and ratio.startswith("x") and memory == "1" and parameters.endswith(" M")
            assert [family, name, "fp32"] in asked
        assert table[module.OURS[family]][1] == "x1.00"
    assert table["ours, Pre-LN"][3] == table["transformers GPT-2, Pre-LN"][3], "the same model"

    module = script("language_step", "--loss", *TINY)
    module.main()
    table = rows(capsys.readouterr().out)
    assert table["vocabulary, fp32"] == ["plain ms", "chunked ms", "plain MiB", "chunked MiB"]
    assert {"4096", "16384", "65536"} <= set(table) and len(table["65536"]) == 4


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells what a process holds")
@pytest.mark.parametrize("what", [("causal", "ours, Magneto", "fp32"), ("loss", "chunked", "fp32", "4096")])
def test_the_memory_of_one_contestant(
    script: Script, capsys: pytest.CaptureFixture[str], what: tuple[str, ...]
) -> None:
    module = script("language_step", *TINY, "--measure", *what)
    module.main()
    assert float(capsys.readouterr().out) >= 0

    def fresh_pages() -> None:
        """Not through an allocator: it would hand out again what earlier tests of this process have freed."""
        pages = mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE)
        pages[:: mmap.PAGESIZE] = bytes(len(pages) // mmap.PAGESIZE)

    assert module.growth(fresh_pages, "cpu") == pytest.approx(64, abs=8)


def test_translation_baselines(
    script: Script, toy_translation_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the two baselines, the references themselves as a system's output."""
    pytest.importorskip("sklearn")
    overrides = [
        "data=translation_files", *translation_files(toy_translation_files),
        f"data_dir={tmp_path}", "data.tokenizer.vocab_size=90",
    ]  # fmt: skip
    script("translation_baselines", *overrides, "--hypotheses", toy_translation_files / "test.fr").main()
    printed = capsys.readouterr().out
    assert "40 test pairs, 600 to look up in" in " ".join(printed.split())
    assert "BLEU: nrefs:1" in printed and "chrF: nrefs:1" in printed
    scores = {}
    for name in ("copy of the source", "look-up (words)", "test.fr"):
        (line,) = (line for line in printed.splitlines() if line.strip().startswith(name))
        scores[name] = [float(value) for value in line.replace(name, "").split()]
    assert scores["test.fr"] == [100.0, 100.0]
    assert scores["copy of the source"][0] < 10 < scores["look-up (words)"][0] < 100


def test_unfit_data_is_refused(script: Script) -> None:
    """Data that does not fit the task is refused."""
    with pytest.raises(MagnetoError, match="needs data of the kind TranslationDataModule"):
        script("translation_baselines", "data=fashion_mnist").main()


def test_long_context(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of attention has a time at each length, and the exponent of its growth."""
    script("long_context", "--lengths", 1200, 1500, "--rounds", 1).main()
    table = rows(capsys.readouterr().out)
    for kind in ("all earlier tokens", "window of 512", "documents of 512"):
        first, second = table[kind]
        assert float(first.removesuffix(" s")) > 0 and "length^" in second


def test_text_baselines(
    script: Script, text_overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a language of word pairs, who knows the words before knows more than who counts words."""
    data = [override for override in text_overrides if override.startswith("data")]
    script("text_baselines", *data).main()
    found = {}
    for line in capsys.readouterr().out.splitlines():
        name, _, rest = line.strip().partition("  ")
        found[name] = rest.replace("%", "").split()
    bits, masked, told = (float(value) for value in found["trigram"])
    assert 0 < bits < float(found["unigram"][0]) and float(found["gzip -9"][0]) > 0
    assert float(found["unigram"][1]) < masked <= told <= 100 and len(found["trigram, two-sided"]) == 2


def test_image_baselines(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    settings = [*image_settings(write_patterns(tmp_path / "images")), f"data_dir={tmp_path / 'data'}"]
    script("image_baselines", *settings, "--iterations", 20).main()
    printed = capsys.readouterr().out
    assert "most frequent class" in printed and "logistic regression on pixels" in printed


def test_image_step(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    small = (
        "--layers",
        1,
        "--width",
        32,
        "--heads",
        2,
        "--image",
        16,
        "--patch",
        8,
        "--classes",
        3,
        "--batch",
        2,
    )
    for more in ((), ("--multiway",)):
        script("image_step", *small, "--rounds", 1, "--dtype", "fp32", *more).main()
        assert "x" in capsys.readouterr().out


def test_backbone(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("torchscale", "transformers", "timm", "x_transformers"):
        pytest.importorskip(name)
    script(
        "backbone",
        "--layers",
        1,
        "--width",
        64,
        "--batch",
        2,
        "--length",
        8,
        "--rounds",
        1,
        "--dtype",
        "fp32",
    ).main()
    printed = capsys.readouterr().out
    for stack in ("Magneto", "torchscale", "GPT-2", "BERT", "timm", "x-transformers"):
        assert stack in printed


def test_bounded_update(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("bounded_update", "--depths", "2,4", "--seeds", 1, "--figure", tmp_path / "update.png").main()
    table = rows(capsys.readouterr().out)
    assert float(table["Post-LN"][-1].removeprefix("x")) > float(table["Magneto"][-1].removeprefix("x"))
    assert (tmp_path / "update.png").stat().st_size > 1000
