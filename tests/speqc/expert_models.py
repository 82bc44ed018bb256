"""Mixtures of experts as exporters write them, node by node: a function for each form.

Each takes a graph and the name of rows [1, M, 16], and gives the name of rows of the same shape.
The form says how the routing weight of an expert comes about; experts are x -> relu(x U) D.
"""

from collections.abc import Callable

import numpy as np
from onnx import TensorProto
from onnx_models import HIDDEN, Graph

EXPERTS, CHOSEN, WIDTH = 4, 2, 24


def _router(g: Graph, x: str, *, ties: bool) -> tuple[str, str, str]:
    """(probabilities, weights of the chosen, their indices); with `ties` two experts are alike."""
    g.integers("chosen", [CHOSEN])
    g.integers("last_axis", [-1])
    table = g.random.normal(0, 1, (HIDDEN, EXPERTS)).astype(np.float16)
    if ties:
        table[:, 2] = table[:, 1]
    scores = g.node("MatMul", [x, g.constant("router", table)], "router_scores")
    probabilities = g.node("Softmax", [scores], "probabilities", axis=-1)
    g.nodes.append(_top_k(probabilities))
    return probabilities, "best", "index"


def _top_k(probabilities: str):
    from onnx import helper

    return helper.make_node(
        "TopK", [probabilities, "chosen"], ["best", "index"], name="node_best", axis=-1
    )


def _expert(g: Graph, x: str, number: int) -> str:
    up = g.node("MatMul", [x, g.weight(f"up{number}", HIDDEN, WIDTH)], f"hidden{number}")
    act = g.node("Relu", [up], f"act{number}")
    return g.node("MatMul", [act, g.weight(f"down{number}", WIDTH, HIDDEN)], f"expert{number}")


def _dense(weight: Callable[[Graph, int], str], g: Graph, x: str) -> str:
    """All experts, each times its weight [1, M, 1], summed, and added to x."""
    total = x
    for number in range(EXPERTS):
        result = _expert(g, x, number)
        weighted = g.node("Mul", [weight(g, number), result], f"weighted{number}")
        total = g.node("Add", [total, weighted], f"total{number}")
    return total


def mask(g: Graph, x: str) -> str:
    """weight = sum(best * (index == number))."""
    _router(g, x, ties=True)

    def weight(g: Graph, number: int) -> str:
        here = g.node("Equal", ["index", g.integers(f"n{number}", number)], f"here{number}")
        factor = g.node("Cast", [here], f"factor{number}", to=TensorProto.FLOAT16)
        part = g.node("Mul", ["best", factor], f"part{number}")
        return g.node("ReduceSum", [part, "last_axis"], f"weight{number}", keepdims=1)

    return _dense(weight, g, x)


def where(g: Graph, x: str) -> str:
    """weight = sum(where(index == number, best, 0)), on rows without a batch."""
    g.integers("flat", [-1, HIDDEN])
    g.integers("batched", [1, -1, HIDDEN])
    g.constant("nought_", np.array(0, np.float16))
    rows = g.node("Reshape", [x, "flat"], "rows")
    _router(g, rows, ties=False)

    def weight(g: Graph, number: int) -> str:
        here = g.node("Equal", ["index", g.integers(f"n{number}", number)], f"here{number}")
        part = g.node("Where", [here, "best", "nought_"], f"part{number}")
        return g.node("ReduceSum", [part, "last_axis"], f"weight{number}", keepdims=1)

    return g.node("Reshape", [_dense(weight, g, rows), "batched"], "mixed")


def scatter(g: Graph, x: str) -> str:
    """Weights of all experts, the chosen ones scattered into zeros; a column for each."""
    probabilities, best, index = _router(g, x, ties=False)
    g.constant("nought_", np.array(0, np.float16))
    zeros = g.node("Mul", [probabilities, "nought_"], "zeros")
    g.node("ScatterElements", [zeros, index, best], "all_weights", axis=-1)

    def weight(g: Graph, number: int) -> str:
        place = g.integers(f"n{number}", [number])
        return g.node("Gather", ["all_weights", place], f"weight{number}", axis=-1)

    return _dense(weight, g, x)


def threshold(g: Graph, x: str) -> str:
    """Every expert at least as probable as the last of the chosen: with ties, more of them."""
    probabilities, best, _ = _router(g, x, ties=True)
    g.constant("nought_", np.array(0, np.float16))
    least = g.node("ReduceMin", [best, "last_axis"], "least", keepdims=1)
    enough = g.node("GreaterOrEqual", [probabilities, least], "enough")
    g.node("Where", [enough, probabilities, "nought_"], "all_weights")

    def weight(g: Graph, number: int) -> str:
        place = g.integers(f"n{number}", [number])
        return g.node("Gather", ["all_weights", place], f"weight{number}", axis=-1)

    return _dense(weight, g, x)


def stack(g: Graph, x: str) -> str:
    """Matrices of all experts in one tensor, of which each row picks some: rows are M x chosen."""
    g.integers("flat", [-1, HIDDEN])
    g.integers("batched", [1, -1, HIDDEN])
    g.integers("line", [-1])
    g.integers("second", [1])
    g.integers("repeats", [1, CHOSEN, 1])
    g.integers("pairs", [-1, CHOSEN, HIDDEN])
    rows = g.node("Reshape", [x, "flat"], "rows")
    _router(g, rows, ties=True)
    names = g.node("Reshape", ["index", "line"], "names")
    apart = g.node("Unsqueeze", [rows, "second"], "apart")
    repeated = g.node("Expand", [apart, "repeats"], "repeated")
    given = g.node("Reshape", [repeated, "flat"], "given")
    up = g.node("Gather", [g.weight("ups", EXPERTS, WIDTH, HIDDEN), names], "picked_up")
    column = g.node("Unsqueeze", [given, "last_axis"], "column_")
    hidden = g.node("Squeeze", [g.node("MatMul", [up, column], "bmm"), "last_axis"], "hidden_")
    act = g.node("Relu", [hidden], "act")
    down = g.node("Gather", [g.weight("downs", EXPERTS, WIDTH, HIDDEN), names], "picked_down")
    row = g.node("Unsqueeze", [act, "second"], "row")
    result = g.node("Squeeze", [g.node("MatMul", [row, down], "bmm_1"), "second"], "results")
    weights = g.node("Unsqueeze", [g.node("Reshape", ["best", "line"], "list"), "last_axis"], "ws")
    weighted = g.node("Mul", [result, weights], "weighted")
    pairs = g.node("Reshape", [weighted, "pairs"], "pairs_")
    total = g.node("ReduceSum", [pairs, "second"], "total_", keepdims=0)
    return g.node("Add", [x, g.node("Reshape", [total, "batched"], "whole")], "mixed")


def gate(g: Graph, x: str) -> str:
    """No choice: one expert, weighted by a sigmoid that is never zero."""
    scores = g.node("MatMul", [x, g.weight("gate", HIDDEN, 1)], "gate_scores")
    share = g.node("Sigmoid", [scores], "share")
    return g.node("Add", [x, g.node("Mul", [_expert(g, x, 0), share], "shared")], "mixed")
