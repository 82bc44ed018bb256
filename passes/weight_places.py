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
    attention (`qkv`, and so on, where one weight makes several), `q_in`, `kv_in` and so on the
    products that do, and nothing else; `o` takes its result alone; `up`
    feeds another product of the layer; `down` does not. Experts share such a place.

    In a step without attention, as one that recomputes its prefix, only the head has a place.
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
            place = self._place(op)
            if place == HEAD or self._attentions:
                self.found.setdefault(view.weight.string_value(), place)

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
        ahead = self._ahead(op)
        if ahead is not None:
            return f"layers.{self._attentions[ahead]}.{self._roles_fed(op, ahead)}_in"
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
        """Whether a product makes what an attention takes, or the logits."""
        fed = self._feeds.get(op, ())
        if any(isinstance(user, AttentionOp | ReturnOp) for user in fed):
            return True
        return self._ahead(op) is not None

    def _ahead(self, op: MatmulOp) -> AttentionOp | None:
        """The attention that a product serves through other products alone, as latents do."""
        served = set()
        for user in self._feeds.get(op, ()):
            fed = self._feeds.get(user, set()) if isinstance(user, MatmulOp) else set()
            served.update(fed or [user])
        (only,) = served if len(served) == 1 else (None,)
        return only if isinstance(only, AttentionOp) and only not in self._feeds[op] else None

    def _roles_fed(self, op: MatmulOp, attention: AttentionOp) -> str:
        """The roles of all products that take a product's result."""
        users = [user for user in self._feeds[op] if isinstance(user, MatmulOp)]
        found = {role for user in users for role in self._roles(user, attention)}
        return "".join(sorted(found, key="qkv".index))

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
