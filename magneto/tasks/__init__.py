"""The tasks: one file each; `base.py` owns what they share."""
