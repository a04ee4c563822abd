"""Streaming text: the share of time that training waits for its batches, and memory over many documents.

    python benchmarks/streaming.py                              # 200,000 documents, a quarter of an hour on 2 cores
    python benchmarks/streaming.py --documents 4000 --seconds 2 # to see that it runs

Documents of words of a Zipf distribution are written as .jsonl.zst shards and streamed by `data.streaming=true` with worker
processes. "Waiting" is the share of the time in which a consumer that takes `--rate` tokens a second waits for a batch: the
number that a run logs as throughput/data_wait_fraction. The fastest rate is measured without a pause between batches.
"Memory" is the resident set of the worker processes (proportional share: pages that processes share are divided among them),
read at equal distances while all documents are streamed once; both numbers are taken after the first tenth, when the windows
are full.

Goals: waiting below 5 % at 20,000 tokens a second with one worker, and memory that does not grow over 200,000 documents.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from timing import machine

from magneto.data.batching import RunLoader
from magneto.data.corpora.text.text_files import TextFilesReader
from magneto.data.text.module import TextDataModule


def write_corpus(folder: Path, documents: int, shards: int, words: int) -> int:
    """Write documents of 50 to 2 * words - 50 words in shards; return their bytes."""
    random = np.random.default_rng(0)
    alphabet = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(["".join(random.choice(alphabet, random.integers(2, 9))) for _ in range(20_000)])
    size = 0
    for number in range(shards):
        with zstandard.open(folder / f"{number:03d}.jsonl.zst", "wb") as file:
            for _ in range(number, documents, shards):
                count = int(random.integers(50, 2 * words - 50))
                text = " ".join(vocabulary[random.zipf(1.3, count) % len(vocabulary)])
                size += len(text)
                file.write(json.dumps({"text": text}).encode() + b"\n")
    return size


def resident_mib(parent: int) -> float:
    """Memory of the child processes, their shared pages divided among the sharers."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                rollup = status.with_name("smaps_rollup").read_text()
                total += int(rollup.split("Pss:")[1].split()[0])
        except (OSError, IndexError):
            continue  # it has ended
    return total / 1024


def loader_of(data: TextDataModule, batches: int) -> RunLoader:
    data.configure_run(batches)
    loader = data.train_dataloader()
    assert isinstance(loader, RunLoader)
    return loader


def waiting(data: TextDataModule, rate: float | None, seconds: float) -> tuple[float, float]:
    """Return the share of waiting of a consumer of `rate` tokens a second (None: without a pause), and its rate."""
    tokens = data.config.batch_size * data.config.block_size
    loader = loader_of(data, 10**9)
    batches = iter(loader)
    for _ in range(10):
        next(batches)
    loader.take_wait_seconds()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        next(batches)
        count += 1
        if rate is not None:  # a step of that length
            time.sleep(tokens / rate)
    passed = time.perf_counter() - begin
    return loader.take_wait_seconds() / passed, count * tokens / passed


def memory(data: TextDataModule, documents: int, readings: int = 20) -> tuple[list[float], int]:
    """Stream about that many documents; return the memory at equal distances, and the tokens."""
    tokens = data.config.batch_size * data.config.block_size
    mean = data.info.tokens["train"] / data.info.documents["train"]
    batches = int(documents * mean / tokens)
    found: list[float] = []
    for number, _ in enumerate(loader_of(data, batches), start=1):
        if number * readings // batches > len(found) and len(found) < readings:
            found.append(resident_mib(os.getpid()))
    return found, batches * tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--words", type=int, default=300, help="of a document, on average")
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rate", type=float, default=20_000, help="tokens a second that the consumer takes")
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement of waiting")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "shards").mkdir()
        size = write_corpus(root / "shards", arguments.documents, arguments.shards, arguments.words)
        settings: dict[str, Any] = {"vocab_size": arguments.vocabulary, "sample_mb": 5}
        data = TextDataModule(
            {"text": TextFilesReader(str(root / "shards"))}, data_dir=str(root / "data"), streaming=True, tokenizer=settings,
            block_size=512, batch_size=16, num_workers=arguments.workers, max_held_out=100,
        )  # fmt: skip
        data.prepare()
        data.setup()
        stored = sum(file.stat().st_size for file in (root / "shards").iterdir())
        print(f"{machine('cpu')}; {arguments.workers} worker(s)")
        print(f"{arguments.documents:,} documents, {size / 1e6:,.0f} MB, {stored / 1e6:,.0f} MB compressed")
        share, rate = waiting(data, arguments.rate, arguments.seconds)
        print(f"waiting at {rate:,.0f} tokens/s: {100 * share:.2f} %")
        share, rate = waiting(data, None, arguments.seconds)
        print(f"fastest: {rate:,.0f} tokens/s")
        found, tokens = memory(data, arguments.documents)
        settled = found[len(found) // 10 :]
        print(f"memory of the workers over {tokens:,} tokens, MiB: {' '.join(f'{one:.0f}' for one in found)}")
        slope = float(np.polyfit(np.linspace(0, 1, len(settled)), settled, 1)[0])
        print(f"growth after the first tenth: {slope:+.1f} MiB")


if __name__ == "__main__":
    main()
