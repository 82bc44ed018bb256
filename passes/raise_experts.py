"""`raise-experts`: products that few rows need get a predicate, and are computed for those alone.

A mixture of experts in a graph is dense: every expert's result is multiplied by a routing weight
and summed, and the weight is zero for the rows that did not choose the expert; or the result is
selected where a mask holds. Whatever way the exporter took to the weight or the mask: behind

- a product with a routing weight w [..., 1], a row where w is zero gives zero (if it is finite),
- a selection `Where(mask, ...)` with a mask [..., 1], a row where the mask does not hold is unread,

so that "w is not zero", or the mask, is a predicate for all that only these rows are computed for.
It is right whatever computes w. Whether it is of use, and how many of how many experts a row
chooses, is found by evaluating the predicates for random scores of the router.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, DenseArrayBase, ModuleOp, i1, i64
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from speqc.dialects.onnx import InitializerOp, OnnxOp
from speqc.dialects.speq import EXPERTS, FULL, MatmulOp
from speqc.passes.building import Builder
from speqc.passes.matching import (
    ANY,
    RENAMINGS,
    element_type,
    is_float,
    is_weight,
    shape,
    step_functions,
)
from speqc.passes.probe import Probe, Sample, operator, opset_of
from speqc.runtime.ir_values import numpy_dtype
from speqc.runtime.module_attributes import recompute_reason
from speqc.runtime.vector_elementwise import ELEMENTWISE
from speqc.runtime.vector_ops import VECTOR_OPS

SAMPLE_ROWS = 64
"""Rows of random router scores for which predicates are evaluated."""

ROW_BY_ROW = frozenset({*ELEMENTWISE, *RENAMINGS, "Cast", "Split"})
"""Operators whose rows depend on the same rows of operands, where the rows stay the same."""


class _Need(NamedTuple):
    """The rows of a value that are needed: those where `guard` is not zero.

    `exact`: the others must be finite, since they are multiplied by zero.
    """

    guard: SSAValue
    exact: bool


def leading(value: SSAValue) -> tuple[int, ...]:
    """The sizes that count a value's rows: all but the last, without ones."""
    return tuple(size for size in shape(value)[:-1] if size != 1)


def _needs(block: Block) -> dict[MatmulOp, SSAValue]:
    """For each product whose rows are not all needed, the guard that says which are."""
    needs: dict[SSAValue, _Need | None] = {}
    found: dict[MatmulOp, SSAValue] = {}
    for op in reversed(list(block.ops)):
        for result in op.results:
            needs[result] = _need(result, needs)
        if isinstance(op, MatmulOp) and (need := needs[op.result]) is not None:
            found[op] = need.guard
    return found


def _need(value: SSAValue, needs: Mapping[SSAValue, _Need | None]) -> _Need | None:
    """What all uses of a value agree on."""
    agreed: _Need | None = None
    for use in value.uses:
        need = _use(use.operation, use.index, value, needs)
        if need is None or (agreed is not None and need.guard is not agreed.guard):
            return None
        agreed = need if agreed is None else _Need(need.guard, need.exact or agreed.exact)
    return agreed


def _use(
    op: Operation, place: int, value: SSAValue, needs: Mapping[SSAValue, _Need | None]
) -> _Need | None:
    if isinstance(op, MatmulOp):
        # Rows that are not computed may be anything before, and are zero behind.
        need = needs[op.result]
        return _Need(need.guard, exact=False) if place == 0 and need is not None else None
    if not isinstance(op, OnnxOp) or not op.results:
        return None
    behind = [needs[result] for result in op.results]
    if behind[0] is not None and _keeps_rows(op, value):
        agree = all(need is not None and need.guard is behind[0].guard for need in behind)
        exact = any(need is not None and need.exact for need in behind)
        if agree and (not exact or _keeps_finite(op)):
            return _Need(behind[0].guard, exact)
    if op.name == "onnx.Mul":
        other = op.operands[1 - place]
        if is_float(element_type(other)) and _is_per_row(other, value):
            return _Need(other, exact=True)
    elif op.name == "onnx.Where" and place == 1 and _is_per_row(op.operands[0], value):
        return _Need(op.operands[0], exact=False)
    return None


def _is_per_row(guard: SSAValue, value: SSAValue) -> bool:
    """Whether a guard has one number for each row of a value, in the same place."""
    return (
        ANY in shape(guard)
        and shape(guard)[-1] == 1 != shape(value)[-1]
        and leading(guard) == leading(value)
    )


def _keeps_rows(op: OnnxOp, value: SSAValue) -> bool:
    """Whether results have the rows of an operand, and each needs that row alone."""
    if operator(op) not in ROW_BY_ROW or any(leading(r) != leading(value) for r in op.results):
        return False
    if operator(op) in RENAMINGS:
        return shape(op.results[0])[-1] == shape(value)[-1]
    if operator(op) == "Split":
        return op.integer("axis", 0) in (-1, len(shape(value)) - 1)
    return True


def _keeps_finite(op: OnnxOp) -> bool:
    """Whether a row of zeros surely becomes a row of finite numbers."""
    if operator(op) in (*RENAMINGS, "Cast"):
        return True
    return operator(op) == "Add" and any(is_weight(value) for value in op.operands)


@dataclass
class _Router:
    """Guards that one router computes, in program order, with the products that they are for."""

    scores: tuple[SSAValue, ...]
    guards: dict[SSAValue, list[MatmulOp]] = field(default_factory=dict)

    def chosen(self, opset: int) -> NDArray[np.bool_] | None:
        """Which rows choose which expert for random scores: [guards, rows]; None if unknown."""
        samples = _random_samples((*self.scores, *_tables(self.guards)))
        probe = Probe(samples, opset)
        found = []
        for guard in self.guards:
            array = probe.value(guard)
            if array is None or array.size % SAMPLE_ROWS:
                return None
            found.append((array.reshape(SAMPLE_ROWS, -1) != 0).any(1))
        return np.array(found)


def _sources(values: Sequence[SSAValue]) -> set[SSAValue]:
    """What values are computed from, by operators that can be evaluated."""
    stack, seen, found = list(values), set(values), set[SSAValue]()
    while stack:
        value = stack.pop()
        op = value.owner
        if isinstance(op, Block) or (operands := _inputs(op)) is None:
            found.add(value)
            continue
        new = [operand for operand in operands if operand not in seen]
        seen.update(new)
        stack += new
    return found


def _inputs(op: Operation) -> Sequence[SSAValue] | None:
    """Operands of what a probe evaluates; None for what it does not."""
    known = isinstance(op, OnnxOp) and operator(op) in (*VECTOR_OPS, "Shape")
    return op.operands if known or op.name in ("onnx.Constant", "onnx.NoValue") else None


def _tables(guards: Mapping[SSAValue, object]) -> list[SSAValue]:
    return [value for value in _sources(list(guards)) if isinstance(value.owner, InitializerOp)]


def _random_samples(values: Sequence[SSAValue]) -> dict[SSAValue, Sample]:
    random = np.random.default_rng(0)
    samples: dict[SSAValue, Sample] = {}
    for value in values:
        sizes = [SAMPLE_ROWS if size == ANY else size for size in shape(value)]
        numbers = random.normal(size=sizes) * 2
        samples[value] = numbers.astype(numpy_dtype(element_type(value)))
    return samples


def _routers(needs: Mapping[MatmulOp, SSAValue]) -> Iterator[_Router]:
    """The guards by the scores that they depend on, in program order."""
    routers: dict[tuple[SSAValue, ...], _Router] = {}
    scores: dict[SSAValue, tuple[SSAValue, ...]] = {}
    for product, guard in reversed(list(needs.items())):
        if guard not in scores:
            found = (v for v in _sources([guard]) if not isinstance(v.owner, InitializerOp))
            scores[guard] = tuple(sorted(found, key=id))
        router = routers.setdefault(scores[guard], _Router(scores[guard]))
        router.guards.setdefault(guard, []).append(product)
    yield from routers.values()


def _predicate(guard: SSAValue, product: MatmulOp, known: dict[tuple, SSAValue]) -> SSAValue | None:
    """The guard as a predicate for the rows of a product; None where they are not the guard's."""
    sizes = (*shape(product.input)[:-1], 1)
    if leading(product.input) != leading(guard):
        return None
    if (guard, sizes) not in known:
        builder = Builder(product)
        predicate = builder.reshape(builder.cast(guard, i1), sizes)
        predicate.name_hint = "chosen"
        known[guard, sizes] = predicate
    return known[guard, sizes]


def _place(block: Block, first: Mapping[Operation, Sequence[SSAValue]]) -> None:
    """Order a block anew: operands before their users, and `first` values before some operations.

    Operations stay where they are as far as that allows.
    """
    done: set[Operation] = set()
    ordered: list[Operation] = []
    for root in list(block.ops):
        stack = [root]
        while stack:
            op = stack[-1]
            needed = (value.owner for value in (*first.get(op, ()), *op.operands))
            missing = [o for o in needed if isinstance(o, Operation) and o not in done]
            if op in done:
                stack.pop()
            elif missing:
                stack.append(missing[0])
            else:
                done.add(op)
                ordered.append(stack.pop())
    for op in ordered:
        op.detach()
    for op in ordered:
        Rewriter.insert_op(op, InsertPoint.at_end(block))


def _raise(function: FuncOp, opset: int) -> None:
    block = function.body.block
    first: dict[Operation, Sequence[SSAValue]] = {}
    experts: list[DenseArrayBase] = []
    known: dict[tuple, SSAValue] = {}
    for router in _routers(_needs(block)):
        chosen = router.chosen(opset)
        if chosen is None or chosen.all(1).any():
            continue
        given: dict[MatmulOp, SSAValue] = {}
        for guard, products in router.guards.items():
            for product in products:
                predicate = _predicate(guard, product, known)
                if predicate is not None:
                    given[product] = predicate
        predicates = list(dict.fromkeys(given.values()))
        for product, predicate in given.items():
            first[product] = predicates
            new = MatmulOp(product.input, product.weight, product.result.type, predicate)  # pyright: ignore[reportArgumentType]
            new.location = product.location
            first[new] = predicates
            new.result.name_hint = product.result.name_hint
            Rewriter.replace_op(product, new)
        if given:
            each = round(float(chosen.sum(0).mean()))
            experts.append(DenseArrayBase.from_list(i64, [len(predicates), max(1, each)]))
    if experts:
        _place(block, first)
        function.attributes[EXPERTS] = ArrayAttr(experts)


@dataclass(frozen=True)
class RaiseExpertsPass(ModulePass):
    """Give products a predicate where only some rows need them: those of an expert's rows."""

    name = "raise-experts"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Rewrite the step @full in place.

        A step that recomputes its prefix stays as it is: it computes all experts.
        """
        if recompute_reason(op) is not None:
            return
        for function in step_functions(op):
            if function.sym_name.data == FULL:
                _raise(function, opset_of(op))
