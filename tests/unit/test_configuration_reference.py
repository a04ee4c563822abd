"""The page of all configuration keys, which `make docs` builds."""

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """Heading -> text below it."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/_ext/configuration_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parts = re.split(r"^#+ (.*)$", module.page(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("heading", ["data=fineweb", "backbone=magneto", "predict=asr", "scheduler=wsd"])
def test_keys_are_those_to_type(sections: dict[str, str], heading: str) -> None:
    """A key below GROUP=OPTION is printed with its group, as the command line takes it."""
    keys = re.findall(r"^\| `(\S+)` \|", sections[heading], flags=re.MULTILINE)
    assert keys and all(key.startswith(f"{heading.partition('=')[0]}.") for key in keys)


def test_first_sentence_of_an_experiment(sections: dict[str, str]) -> None:
    """An ellipsis within the sentence does not end it."""
    (row,) = re.findall(r".*image_classification/fashion_mnist_finetune.*", sections["experiment"])
    assert not row.removesuffix(" |").endswith("...")


def test_optional_trainer_keys_need_a_plus(sections: dict[str, str]) -> None:
    """Keys of no composed configuration are printed with the + that adds them; lists in one line."""
    assert "`+trainer.profiler`" in sections["trainer"] and "`trainer.max_steps`" in sections["trainer"]
    assert "`[The state of our Union is," in sections["task=causal_lm"]
