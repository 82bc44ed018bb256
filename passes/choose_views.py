"""`choose-views`: which weights the draft step reads wider than four bits."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.passes import ModulePass
from xdsl.rewriter import Rewriter

from speqc.dialects.speq import DRAFT, View, ViewOp, ViewType, WeightOp
from speqc.passes.form_draft_verify import find_function
from speqc.passes.weight_places import weight_places
from speqc.runtime.errors import SpeqcError

VIEWS = {4: View.DRAFT, 8: View.WIDE8, 12: View.WIDE12, 16: View.FULL}
"""For each number of bits the view that reads so many."""

SYNTAX = "expected PATTERN=BITS,PATTERN=BITS,... with 4, 8, 12 or 16 bits"
RANGE = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True)
class ChooseViewsPass(ModulePass):
    """Let @draft read views of 4, 8, 12 or 16 bits of the weights that patterns name.

    `draft-views` is PATTERN=BITS,PATTERN=BITS,...; of several that match, the last one counts. A
    weight answers to its symbol, to its tensor's name in the model file, and to its place (see
    `weight_places`): `head`, `layers.3.down`. In a pattern `*` stands for any text, `?` for a
    character, and `20-29` for the numbers from 20 to 29.
    """

    name = "choose-views"

    draft_views: str = ""

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Rewrite the views of @draft.

        Raises:
            SpeqcError: a text that is no assignment, or a pattern that matches no weight, or only
                such as are not split into planes.
        """
        assignments = parse_views(self.draft_views)
        if not assignments:
            return
        draft = find_function(op, DRAFT)
        weights = _weights(op)
        split, others = (_names(draft, weights, split=wanted) for wanted in (True, False))
        set_views(draft, assign_views(assignments, split, others))


def split_places(module: ModuleOp) -> dict[str, str]:
    """The place (see `weight_places`) of each weight whose view a draft step can choose."""
    names = _names(find_function(module, DRAFT), _weights(module), split=True)
    places = weight_places(find_function(module, DRAFT))
    return {weight: places[weight] for weight in names if weight in places}


def _weights(module: ModuleOp) -> dict[str, WeightOp]:
    return {op.sym_name.data: op for op in module.ops if isinstance(op, WeightOp)}


def parse_views(text: str) -> list[tuple[str, View]]:
    """Patterns and views of `head=12,layers.20-29.down=8`; SpeqcError where it is no such text."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        pattern, equals, bits = (piece.strip() for piece in part.partition("="))
        if not pattern or not equals or bits not in map(str, VIEWS):
            raise SpeqcError(f"draft views: {part!r} is no assignment; {SYNTAX}")
        found.append((pattern, VIEWS[int(bits)]))
    return found


def assign_views(
    assignments: Iterable[tuple[str, View]],
    names: Mapping[str, Sequence[str]],
    unsplit: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, View]:
    """The view of each weight that a pattern matches; `names` are what each weight answers to.

    Raises SpeqcError where a pattern matches none; `unsplit` are the names of weights that have no
    wider views, for the message.
    """
    chosen: dict[str, View] = {}
    for pattern, view in assignments:
        matches = [weight for weight, own in names.items() if _matches_any(pattern, own)]
        if not matches:
            raise SpeqcError(f"draft views: {pattern!r} {_mismatch(pattern, names, unsplit or {})}")
        chosen.update(dict.fromkeys(matches, view))
    return chosen


def _mismatch(
    pattern: str, names: Mapping[str, Sequence[str]], unsplit: Mapping[str, Sequence[str]]
) -> str:
    others = any(_matches_any(pattern, own) for own in unsplit.values())
    what = "matches only weights that are not split: they have no wider views"
    found = what if others else "matches no weight"
    if names:
        return f"{found}; {_examples(names)}"
    return found if others else f"{found} that is split, as none is"


def _examples(names: Mapping[str, Sequence[str]]) -> str:
    """Some names that would match: the places, which come last, where there are some."""
    known = dict.fromkeys(own[-1] for own in names.values())
    some = list(known)[:8]
    return f"there are {', '.join(some)}{', ...' if len(known) > len(some) else ''}"


def _matches_any(pattern: str, names: Iterable[str]) -> bool:
    return any(matches(pattern, name) for name in names)


def matches(pattern: str, name: str) -> bool:
    """Whether a whole name matches a pattern with `*`, `?` and ranges of numbers, or is it."""
    if pattern == name:
        return True
    ranges: list[range] = []
    pieces: list[str] = []
    end = 0
    for found in RANGE.finditer(pattern):
        pieces += [_glob(pattern[end : found.start()]), r"(?<!\d)(\d+)(?!\d)"]
        ranges.append(range(int(found[1]), int(found[2]) + 1))
        end = found.end()
    matched = re.fullmatch("".join([*pieces, _glob(pattern[end:])]), name)
    return matched is not None and all(
        int(number) in numbers for number, numbers in zip(matched.groups(), ranges, strict=True)
    )


def _glob(text: str) -> str:
    return re.escape(text).replace(r"\*", ".*").replace(r"\?", ".")


def _names(
    draft: FuncOp, weights: Mapping[str, WeightOp], *, split: bool
) -> dict[str, tuple[str, ...]]:
    """For each weight that is read, what it answers to, its place last if it has one.

    Of weights that are split, or of all others.
    """
    places = weight_places(draft)
    viewed = dict.fromkeys([*places, *(op.weight.string_value() for op in _views(draft))])
    return {
        name: (name, weights[name].source.data, *([places[name]] if name in places else []))
        for name in viewed
        if weights[name].is_split == split
    }


def set_views(draft: FuncOp, chosen: Mapping[str, View]) -> None:
    """Read the chosen views of weights in the draft step."""
    for op in list(_views(draft)):
        view = chosen.get(op.weight.string_value())
        if view is not None:
            assert isinstance(op.result.type, ViewType)
            Rewriter.replace_value_with_new_type(op.result, ViewType(*op.result.type.shape, view))


def _views(function: FuncOp) -> Iterator[ViewOp]:
    return (op for op in function.walk() if isinstance(op, ViewOp))
