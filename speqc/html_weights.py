"""Weights and code books for the HTML report."""

from collections.abc import Iterable

import numpy as np

from speqc.artifact import Artifact
from speqc.dialects.speq import WeightOp
from speqc.inspect_model import artifact_fields
from speqc.report import Fields
from speqc.runtime.codebook import CLASSES, UNUSED, CodeBook, scale_class
from speqc.runtime.weights import WeightFile


def weight_data(artifact: Artifact) -> Fields:
    """What `inspect` says of each weight, and the code book with the number of groups a table has.

    Decodes every weight. Of an artifact without weights the shapes are known, and no code book.
    """
    book = None
    weights = [op for op in artifact.program.ops if isinstance(op, WeightOp)]
    split = [op for op in weights if op.is_split]
    if split and artifact.weights_file is not None:
        file = WeightFile(artifact.weights_file)
        book = _book(file.codebook(split[0]), _groups(file, split))
    return {"weights": artifact_fields(artifact)["weights"], "book": book}


def _groups(file: WeightFile, weights: Iterable[WeightOp]) -> list[int]:
    """How many groups of weights each table of the code book serves."""
    counts = np.zeros(CLASSES, np.int64)
    for op in weights:
        scales = np.asarray(file.planes(op).scales).view(np.uint16)
        counts += np.bincount(scale_class(scales).reshape(-1), minlength=CLASSES)
    return counts.tolist()


def _book(book: CodeBook, groups: list[int]) -> Fields:
    """A code book, with the tables that are in use; empty lists stand for the others."""
    tables = range(CLASSES) if book.scale_indexed else range(1)
    return {
        "name": book.name,
        "levels": [float(level) for level in book.levels],
        "scale_indexed": book.scale_indexed,
        "groups": groups if book.scale_indexed else [sum(groups)],
        "tables": [
            [[int(e) for e in code if e != UNUSED] for code in book.exponents[table]]
            if groups[table] or not book.scale_indexed
            else []
            for table in tables
        ],
    }
