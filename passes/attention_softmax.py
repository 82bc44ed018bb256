"""Attention that an exporter spelt out around a softmax."""

from xdsl.ir import Operation

from speqc.passes.attention_caches import Caches
from speqc.passes.attention_form import AttentionForm
from speqc.passes.attention_mask import MaskReader
from speqc.passes.attention_scores import float_type, read_output, read_scores
from speqc.passes.attention_sinks import check_slice, read_sinks
from speqc.passes.building import Builder
from speqc.passes.matching import fail, shape


def read_softmax(softmax: Operation, masks: MaskReader, caches: Caches) -> AttentionForm | None:
    """The attention around a softmax; None if there is none that reads a cache.

    Raises:
        SpeqcError: there is, but `speq.attention` has no equal for it.
    """
    scores, output = read_scores(softmax, masks.known), read_output(softmax)
    if scores is None or output is None:
        return None
    builder = Builder(output.product)
    keys, values = scores.product.operands[1], output.product.operands[1]
    key = caches.rows_read(scores.product, keys, builder, transposed=True)
    value = caches.rows_read(output.product, values, builder, transposed=False)
    if key is None or value is None:
        return None
    query = scores.product.operands[0]
    seen = masks.read(softmax, scores.masks)
    sinks = read_sinks(scores, masks, shape(query)[-3])
    if output.slice is not None:
        check_slice(output.slice, masks, sinks=0 if sinks is None else 1)
    elif sinks is not None:
        raise fail(softmax, "probabilities of sinks are not cut off")
    scaling, softcap = scores.scaling, scores.softcap
    bias, behind = None, False
    if seen.bias is not None and seen.bias.from_last and sinks is not None:
        raise fail(softmax, "a position bias counted from the last key stands beside sinks")
    if seen.bias is not None and seen.adding is not None:
        adds = scores.masks[seen.adding].op
        behind = scores.is_scaled_behind(adds)
        bias = seen.bias.attribute(float_type(adds, adds.results[0]), shape(query)[-3])
    rounding = scores.rounding
    return AttentionForm(
        last=output.product,
        query=builder.reshape(query, (1, *shape(query)[-3:])),
        key=key,
        value=value,
        result_type=float_type(output.product, output.product.results[0]),
        score_type=scores.type,
        probability_type=output.probability_type,
        scale=None if scaling is None else scaling.number,
        softcap=None if softcap is None else softcap.number,
        window=seen.window,
        divides=scaling is not None and scaling.divides,
        scale_type=next((step.type for step in (scaling, softcap) if step is not None), None),
        bias=bias,
        scale_behind_bias=behind,
        softmax_type=None if rounding is None else float_type(rounding, rounding.results[0]),
        sinks=sinks,
        shifted_type=scores.shifted_type,
    )
