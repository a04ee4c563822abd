"""`python -m magneto.report PATHS`: compare finished runs."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from magneto.errors import MagnetoError
from magneto.report import write_report
from magneto.report.screen import print_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and name its files; returns the exit code (2: a user's mistake)."""
    parser = argparse.ArgumentParser(
        prog="python -m magneto.report",
        description="Compare finished runs: tables (Markdown, CSV, LaTeX), figures (PNG) and a page (HTML).",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="run folders, folders that contain runs, or a results.csv"
    )
    parser.add_argument("--out", metavar="DIR", help="where to write (default: report/ where the runs lie)")
    parser.add_argument("--title", help="title of the page")
    parser.add_argument("--metric", help="primary metric, such as test/cer (default: the one of the task)")
    parser.add_argument("--include-debug", action="store_true", help="compare runs of debug= too")
    parser.add_argument(
        "--wandb",
        nargs="?",
        const="magneto",
        metavar="PROJECT",
        help="also log table and figures to W&B (default: magneto)",
    )
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    command = shlex.join(["python", "-m", "magneto.report", *given])
    try:
        out = options.out or _default_folder(options.paths)
        files = write_report(
            options.paths, out, options.title, command, options.metric, options.include_debug
        )
    except MagnetoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in files.problems:
        print(f"warning: left out: {problem}", file=sys.stderr)
    print_report(files)
    if options.wandb:
        from magneto.report.wandb_run import log_to_wandb

        print(log_to_wandb(files, options.wandb))
    return 0


def _default_folder(paths: Sequence[str]) -> Path:
    """Return `report` in the folder of all runs; beside a single run, not in it."""
    folder = Path(os.path.commonpath([Path(path).absolute() for path in paths]))
    return (folder.parent if folder.is_file() or (folder / "result.json").is_file() else folder) / "report"


if __name__ == "__main__":
    sys.exit(main())
