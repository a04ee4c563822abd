"""docs/add_a_corpus.md: its files are a corpus, as they are on the page, and its command trains on it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/add_a_corpus.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))


def test_the_page_is_a_corpus(tmp_path: Path) -> None:
    """The reader, the YAML file and the data are outside of the package."""
    assert {Path(name).suffix for name in FILES} == {".txt", ".py", ".yaml"}
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (command,) = re.findall(r"^```bash\npython (.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("runs/causal_lm/*/result.json")
    assert json.loads(result.read_text())["status"] == "finished"
    assert "train 12 · val 1 · test 3 documents" in done.stdout + done.stderr
