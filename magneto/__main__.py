"""`python -m magneto` is `python run.py`, from anywhere."""

from magneto.cli import main

main()
