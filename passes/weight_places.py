"""Where weights stand in a decoder: layers, and what they do there, by the flow of data alone."""

from collections.abc import Mapping

from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects.speq import AttentionOp, EmbeddingOp, MatmulOp, ViewOp

HEAD = "head"
"""The place of a weight whose products are the logits."""

_BARRIERS = AttentionOp, EmbeddingOp, MatmulOp


def weight_places(step: FuncOp) -> dict[str, str]:
    """For each weight that products of a step read its place: `head`, or `layers.I.ROLE`.

    Layer I holds the I-th attention, counted from 0, and what follows it up to the next one's
    inputs. Roles: `q`, `k`, `v` feed the
    attention (`qkv`, and so on, where one weight makes several); `o` takes its result alone; `up`
    feeds another product of the layer; `down` does not. Experts share such a place.
    """
    return _Places(step).found


class _Places:
    """Walks a step in program order."""

    def __init__(self, step: FuncOp):
        self.found: dict[str, str] = {}
        self._makers: dict[SSAValue, frozenset[Operation]] = {}
        self._layer_of: dict[MatmulOp, int] = {}
        self._feeds: dict[Operation, set[Operation]] = {}
        ops = list(step.body.block.ops)
        attentions = 0
        for op in ops:
            if isinstance(op, AttentionOp):
                attentions += 1
            if isinstance(op, MatmulOp):
                self._layer_of[op] = max(0, attentions - 1)
            self._trace(op)
        in_order = (op for op in ops if isinstance(op, AttentionOp))
        self._attentions: dict[Operation, int] = {op: index for index, op in enumerate(in_order)}
        for op in self._layer_of:
            view = op.weight.owner
            assert isinstance(view, ViewOp)
            self.found.setdefault(view.weight.string_value(), self._place(op))

    def _trace(self, op: Operation) -> None:
        """Note which products and attentions the results, or a barrier's operands, come from."""
        made = frozenset().union(*(self._makers.get(v, frozenset()) for v in op.operands))
        if isinstance(op, _BARRIERS):
            for maker in made:
                self._feeds.setdefault(maker, set()).add(op)
            made = frozenset([op])
        elif isinstance(op, ReturnOp):
            for maker in made:
                self._feeds.setdefault(maker, set()).add(op)
        self._makers.update((result, made) for result in op.results)

    def _place(self, op: MatmulOp) -> str:
        fed = self._feeds.get(op, set())
        if any(isinstance(user, ReturnOp) for user in fed) and not self._feeds_products(op):
            return HEAD
        attended = [user for user in fed if isinstance(user, AttentionOp)]
        if attended:
            return f"layers.{self._attentions[attended[0]]}.{self._roles(op, attended[0])}"
        sources = self._makers.get(op.input, frozenset())
        for only in sources if len(sources) == 1 else ():
            if isinstance(only, AttentionOp):
                return f"layers.{self._attentions[only]}.o"
        return f"layers.{self._layer_of[op]}.{'up' if self._feeds_layer(op) else 'down'}"

    def _feeds_products(self, op: MatmulOp) -> bool:
        return any(isinstance(user, MatmulOp) for user in self._feeds.get(op, ()))

    def _feeds_layer(self, op: MatmulOp) -> bool:
        """Whether a later product of the layer, which is none for the next attention, takes it."""
        return any(
            isinstance(user, MatmulOp)
            and self._layer_of[user] == self._layer_of[op]
            and not self._is_outer(user)
            for user in self._feeds.get(op, ())
        )

    def _is_outer(self, op: MatmulOp) -> bool:
        """Whether a product feeds an attention or makes the logits."""
        return any(isinstance(u, AttentionOp | ReturnOp) for u in self._feeds.get(op, ()))

    def _roles(self, op: MatmulOp, attention: AttentionOp) -> str:
        operands = {"q": attention.query, "k": attention.key, "v": attention.value}
        return "".join(
            role for role, value in operands.items() if op in self._makers.get(value, frozenset())
        )


def group_by_place(places: Mapping[str, str]) -> dict[str, list[str]]:
    """The weights of each place."""
    groups: dict[str, list[str]] = {}
    for weight, place in places.items():
        groups.setdefault(place, []).append(weight)
    return groups
