"""Data sets as downloaded: find the pairs, check them all, decode them once."""

from ulvm.datasets.audit import CheckReport, Duplicate, check, shared_ids
from ulvm.datasets.cache import DecodedDataset, decode
from ulvm.datasets.find import Pair, SourceFile, find_pairs
from ulvm.datasets.layouts import DATASETS

__all__ = [
    "DATASETS",
    "CheckReport",
    "DecodedDataset",
    "Duplicate",
    "Pair",
    "SourceFile",
    "check",
    "decode",
    "find_pairs",
    "shared_ids",
]
