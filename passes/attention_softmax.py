"""Attention that an exporter spelt out around a softmax."""

from xdsl.ir import Operation

from speqc.passes.attention_caches import Caches
from speqc.passes.attention_form import AttentionForm
from speqc.passes.attention_mask import MaskReader
from speqc.passes.attention_scores import float_type, read_output, read_scores
from speqc.passes.building import Builder
from speqc.passes.matching import shape


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
    return AttentionForm(
        last=output.product,
        query=builder.reshape(query, (1, *shape(query)[-3:])),
        key=key,
        value=value,
        result_type=float_type(output.product, output.product.results[0]),
        score_type=scores.type,
        probability_type=output.probability_type,
        scale=scores.scale,
        softcap=scores.softcap,
        window=masks.window(softmax, scores.masks),
    )
