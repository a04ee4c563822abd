"""What a translation model must beat: copying the source, and looking up the most similar training sentence.

    python benchmarks/translation_baselines.py                                      # LibreOffice help, en-fr
    python benchmarks/translation_baselines.py data.corpora.libreoffice.directions=[en-de]
    python benchmarks/translation_baselines.py --hypotheses model.txt               # one line a test pair, in order

Prepares the corpus of `task=mt` with these overrides unless that is done, and scores its test split with sacrebleu: BLEU
(the tokenizer of the first direction's target language, or `--tokenize`) and chrF, over all directions together. The
look-up is a translation memory: of the training pairs in the same direction, the target of the one whose source has the
highest cosine to the source at hand, over sublinear tf-idf weights of `--features`: words (1- and 2-grams, the default:
highest in BLEU on LibreOffice help), characters (3- to 5-grams within words), or both, equally weighted (a little higher
in chrF).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from sacrebleu.metrics import BLEU, CHRF
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from magneto.commands.build import prepared_data
from magneto.metrics.translation import bleu_tokenizer

ROWS = 256  # test sentences that are compared with all training sentences at a time
FEATURES = {
    "words": {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]"},
    "characters": {"analyzer": "char_wb", "ngram_range": (3, 5)},
}


def look_up(
    corpora: Sequence[str], targets: Sequence[str], queries: Sequence[str], features: Sequence[str]
) -> list[str]:
    """For each query the target of the most similar source; of equally similar ones the first."""
    parts = [
        TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **FEATURES[name]).fit(corpora)
        for name in features
    ]
    memory = sparse.hstack([part.transform(corpora) for part in parts]).tocsr().T.tocsr()
    wanted = sparse.hstack([part.transform(queries) for part in parts]).tocsr()
    found: list[int] = []
    for start in range(0, len(queries), ROWS):
        found += (wanted[start : start + ROWS] @ memory).toarray().argmax(1).tolist()
    return [targets[place] for place in found]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="of the configuration, such as data=gettext")
    parser.add_argument("--features", nargs="+", default=["words"], choices=list(FEATURES))
    parser.add_argument(
        "--tokenize",
        help="sacrebleu's tokenizer for BLEU; by default that of the first direction's target language",
    )
    parser.add_argument("--hypotheses", type=Path, help="translations of the test split to score beside them")
    arguments = parser.parse_args()
    data = prepared_data(["task=mt", *arguments.overrides])
    train, test = (data.table(split).arrow.to_pylist() for split in ("train", "test"))
    found = {}
    for direction in range(len(data.info.directions)):
        memory = [row for row in train if row["direction"] == direction]
        queries = [row for row in test if row["direction"] == direction]
        if memory and queries:
            hits = look_up(
                [row["source"] for row in memory],
                [row["target"] for row in memory],
                [row["source"] for row in queries],
                arguments.features,
            )
            found |= {row["id"]: hit for row, hit in zip(queries, hits, strict=True)}
    systems = {
        "copy of the source": [row["source"] for row in test],
        f"look-up ({' + '.join(arguments.features)})": [found.get(row["id"], "") for row in test],
    }
    if arguments.hypotheses:
        lines = arguments.hypotheses.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if len(lines) != len(test):
            parser.error(f"{arguments.hypotheses} has {len(lines)} lines, the test split {len(test)} pairs")
        systems[arguments.hypotheses.name] = lines
    references = [[row["target"] for row in test]]
    tokenize = arguments.tokenize or bleu_tokenizer(data.info.directions[0].split("-")[1])[0]
    bleu, chrf = BLEU(tokenize=tokenize), CHRF()
    table = Table(
        box=box.SIMPLE, title=f"{data.folder.name}: {len(test)} test pairs, {len(train)} to look up in"
    )
    for column in ("", "BLEU", "chrF"):
        table.add_column(column, justify="left" if not column else "right")
    for name, hypotheses in systems.items():
        scores = (metric.corpus_score(hypotheses, references).score for metric in (bleu, chrf))
        table.add_row(name, *(f"{score:.1f}" for score in scores))
    console = Console()
    console.print(table)
    console.print(f"BLEU: {bleu.get_signature()}\nchrF: {chrf.get_signature()}", soft_wrap=True)


if __name__ == "__main__":
    main()
