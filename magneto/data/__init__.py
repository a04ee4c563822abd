"""Data: corpora (`corpora`), preparation, sampling and batches. One kind of data, one module.

Importing this package imports nothing else, so that the workers of `prepare` start fast.
"""
