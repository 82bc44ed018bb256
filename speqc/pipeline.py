"""The pass pipeline as data: which passes exist, and which of them run for each level of the IR."""

from collections.abc import Mapping, Sequence
from importlib import import_module

from xdsl.passes import ModulePass
from xdsl.utils.arg_spec import ArgSpec, ParameterType

PASSES: Mapping[str, str] = {
    "verify-onnx": "speqc.passes.verify_onnx:VerifyOnnxPass",
    "expand-fused": "speqc.passes.expand_fused:ExpandFusedPass",
    "raise-rms-norm": "speqc.passes.raise_rms_norm:RaiseRmsNormPass",
    "raise-rotary": "speqc.passes.raise_rotary:RaiseRotaryPass",
    "raise-attention": "speqc.passes.raise_attention:RaiseAttentionPass",
    "raise-positions": "speqc.passes.raise_positions:RaisePositionsPass",
    "recompute-prefix": "speqc.passes.recompute_prefix:RecomputePrefixPass",
    "select-experts": "speqc.passes.select_experts:SelectExpertsPass",
    "raise-linear": "speqc.passes.raise_linear:RaiseLinearPass",
    "raise-experts": "speqc.passes.raise_experts:RaiseExpertsPass",
    "verify-speq": "speqc.passes.verify_speq:VerifySpeqPass",
    "split-weights": "speqc.passes.split_weights:SplitWeightsPass",
    "quantize-weights": "speqc.passes.quantize_weights:QuantizeWeightsPass",
    "form-draft-verify": "speqc.passes.form_draft_verify:FormDraftVerifyPass",
    "choose-views": "speqc.passes.choose_views:ChooseViewsPass",
    "lower-to-pe": "speqc.passes.lower_to_pe:LowerToPePass",
    "predicate-vectors": "speqc.passes.predicate_vectors:PredicateVectorsPass",
    "elide-mode-switches": "speqc.passes.elide_mode_switches:ElideModeSwitchesPass",
    "allocate-activations": "speqc.passes.allocate_activations:AllocateActivationsPass",
    "schedule-loads": "speqc.passes.schedule_loads:ScheduleLoadsPass",
    "verify-pe": "speqc.passes.verify_pe:VerifyPePass",
}
"""Our passes by name: "module:Class", imported when the pass is first used."""

DIALECTS: Mapping[str, str] = {
    "onnx": "speqc.dialects.onnx:Onnx",
    "speq": "speqc.dialects.speq:Speq",
    "pe": "speqc.dialects.pe:Pe",
}
"""Our dialects by name: "module:attribute"."""

STAGES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("verify-onnx",),
    "speq": (
        "expand-fused",
        "raise-rms-norm",
        "raise-rotary",
        "raise-positions",
        "raise-attention",
        "select-experts",
        "raise-linear",
        "cse",
        "dce",
        "raise-experts",
        "verify-speq",
        "split-weights",
        "form-draft-verify",
        "choose-views",
        "verify-speq",
    ),
    "pe": (
        "lower-to-pe",
        "predicate-vectors",
        "elide-mode-switches",
        "schedule-loads",
        "allocate-activations",
        "verify-pe",
    ),
}
"""The passes that make each level of the imported module, in order; each stage ends legal."""

LEVELS = tuple(STAGES)
"""Names of the levels, from the model's to the machine's."""

PassOptions = Mapping[str, Mapping[str, ParameterType | tuple[ParameterType, ...]]]
"""For some passes, values of their options."""


def passes_to(
    level: str, options: PassOptions, instead: Mapping[str, str] | None = None
) -> list[ModulePass]:
    """The passes that turn an imported module into one of `level`, with the given options.

    `instead` names passes to run in the place of others.
    """
    names = [name for stage in LEVELS[: LEVELS.index(level) + 1] for name in STAGES[stage]]
    names = [(instead or {}).get(name, name) for name in names]
    return [_configured(name, options.get(name, {})) for name in names]


def _configured(
    name: str, options: Mapping[str, ParameterType | tuple[ParameterType, ...]]
) -> ModulePass:
    lists = {key: value if isinstance(value, tuple) else (value,) for key, value in options.items()}
    return pass_class(name).from_spec(ArgSpec(name, lists))


def place_of(name: str, passes: Sequence[ModulePass]) -> int:
    """Where the first pass of a name stands among passes; behind all where there is none."""
    return next((place for place, step in enumerate(passes) if step.name == name), len(passes))


def resolve(reference: str) -> object:
    """Import what "module:name" stands for."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def pass_class(name: str) -> type[ModulePass]:
    """The class of one of our passes, or of one of xDSL's that our pipeline also uses.

    Raises KeyError if neither has a pass of this name.
    """
    if name not in PASSES:
        from xdsl.transforms import get_all_passes

        return get_all_passes()[name]()
    found = resolve(PASSES[name])
    assert isinstance(found, type) and issubclass(found, ModulePass)
    return found
