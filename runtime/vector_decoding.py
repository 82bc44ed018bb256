"""Operators that ONNX has for decoders' sake, where no pass made something of their own of them."""

from collections.abc import Mapping

import numpy as np

from speqc.runtime.errors import SpeqcError
from speqc.runtime.rotary import rotary
from speqc.runtime.vector_op import Array, VectorOp, arithmetic, contiguous


def rotary_embedding(
    x: Array,
    cos_cache: Array,
    sin_cache: Array,
    position_ids: Array | None = None,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Array:
    """Return x with the first channels of each head turned by its row's angles.

    `x` is [B, heads, M, D], or [B, M, num_heads * D]; the caches are [positions, R / 2], or
    [B, M, R / 2] without `position_ids` [B, M]. Rounded as in `rotary`.
    """
    heads = x
    if x.ndim == 3:
        heads = x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)
    width = rotary_embedding_dim or heads.shape[-1]
    cos, sin = (
        _for_channels(cache if position_ids is None else cache[position_ids], width, interleaved)
        for cache in (cos_cache, sin_cache)
    )
    turned = rotary(heads, cos, sin, bool(interleaved))
    return contiguous(turned if x.ndim == 4 else turned.transpose(0, 2, 1, 3).reshape(x.shape))


def _for_channels(angles: Array, width: int, interleaved: int) -> Array:
    """Return [B, 1, M, width] from [B, M, width / 2]: both channels of a pair have one angle."""
    half = angles[:, None, :, : width // 2]
    return half.repeat(2, -1) if interleaved else np.concatenate([half, half], -1)


def tensor_scatter(
    past_cache: Array,
    update: Array,
    write_indices: Array | None = None,
    axis: int = -2,
    mode: str = "linear",
) -> Array:
    """Return the cache [B, ...] with `update` along `axis` from each sequence's index (or 0) on.

    With `mode` "circular" positions count on from 0 behind the last one.
    """
    result = past_cache.copy()
    size, length = past_cache.shape[axis], update.shape[axis]
    starts = np.zeros(len(past_cache), np.int64) if write_indices is None else write_indices
    rows, news = np.moveaxis(result, axis, 1), np.moveaxis(update, axis, 1)
    for row, new, start in zip(rows, news, starts.tolist(), strict=True):
        places = np.arange(start, start + length)
        row[places % size if mode == "circular" else places] = new
    return result


def dropout(
    x: Array, ratio: Array | None = None, training_mode: Array | None = None, seed: int = 0
) -> list[Array]:
    """Return x and a mask that keeps everything.

    Raises SpeqcError in training, where elements fall out at random.
    """
    drops = ratio is None or bool(ratio.item())
    if training_mode is not None and training_mode.item() and drops:
        raise SpeqcError(
            "Dropout: drops at random in training mode; export the model for inference"
        )
    return [x, np.ones(x.shape, np.bool_)]


DECODING: Mapping[str, VectorOp] = {
    "Dropout": VectorOp(dropout, 1),
    "RotaryEmbedding": arithmetic(rotary_embedding, 3),
    "TensorScatter": VectorOp(tensor_scatter, 1),
}
