"""Train, evaluate and compare Transformers: `python run.py task=asr backbone=magneto`; `python run.py --help` tells more."""

from magneto.cli import main

if __name__ == "__main__":
    main()
