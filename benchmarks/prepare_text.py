"""Time of preparing text on one core and on all: `python benchmarks/prepare_text.py [--megabytes 200] [--files 8]`.

The text is paragraphs of the State of the Union addresses in random order, in JSON lines. The tokenizer is trained before,
on 1 MB, and is in neither time, nor are the imports. One core and all run `--repeat` times, in turns; the table has the
shortest times.
"""

import argparse
import json
import os
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from magneto.data.corpora.text.state_of_the_union import StateOfTheUnionReader
from magneto.data.corpora.text.text_files import TextFilesReader
from magneto.data.text.module import TextDataModule


def write_files(folder: Path, data_dir: Path, megabytes: float, files: int) -> None:
    """Write JSON lines of 2 to 12 paragraphs, `megabytes` of text in all."""
    documents = StateOfTheUnionReader().load(data_dir).examples
    paragraphs = [line for one in documents for line in one.text.splitlines() if line.strip()]
    draw = random.Random(0)
    for number in range(files):
        with (folder / f"{number:03d}.jsonl").open("w", encoding="utf-8") as file:
            room = megabytes * 1e6 / files
            while room > 0:
                text = "\n".join(draw.choices(paragraphs, k=draw.randint(2, 12)))
                room -= len(text.encode())
                file.write(json.dumps({"text": text}) + "\n")


def prepare(files: Path, data_dir: Path, tokenizer: Path | None) -> TextDataModule:
    """Prepare the files in a folder of their own, on the cores that this process may use."""
    source = {"file": str(tokenizer)} if tokenizer else {"vocab_size": 4096, "sample_mb": 1.0}
    data = TextDataModule(
        {"files": TextFilesReader(path=str(files))},
        data_dir=str(data_dir),
        tokenizer=source,
    )
    data.prepare()
    return data


def measure(cores: set[int], files: Path, data_dir: Path, tokenizer: Path) -> float:
    """Return the seconds of preparing on these cores. To be called in a process of its own."""
    os.sched_setaffinity(0, cores)
    start = time.perf_counter()
    prepare(files, data_dir, tokenizer)
    return time.perf_counter() - start


def main() -> None:
    """Print the seconds and megabytes a second on one core and on all, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=200.0)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files, tokenizer = root / "files", root / "tokenizer.json"
        files.mkdir()
        write_files(files, options.data_dir, options.megabytes, options.files)
        first = root / "first"
        first.mkdir()
        write_files(first, options.data_dir, 2.0, 1)
        tokenizer.write_text(prepare(first, root / "tokenizer", None).info.tokenizer, encoding="utf-8")
        every = os.sched_getaffinity(0)
        seconds: dict[int, list[float]] = {}
        for turn in range(options.repeat):
            for cores in ({min(every)}, every):
                place = root / f"{len(cores)}-{turn}"
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    found = pool.submit(measure, cores, files, place, tokenizer).result()
                seconds.setdefault(len(cores), []).append(found)
    print("| cores | s | MB/s | of one |\n|--:|--:|--:|--:|")
    for count, times in seconds.items():
        best = min(times)
        print(f"| {count} | {best:.1f} | {options.megabytes / best:.2f} | {best / min(seconds[1]):.3f} |")


if __name__ == "__main__":
    main()
