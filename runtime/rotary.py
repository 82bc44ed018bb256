"""Rotary position embedding with every product and the sum rounded to the tensor's type."""

import numpy as np
from numpy.typing import NDArray


@np.errstate(all="ignore")
def rotary(x: NDArray, cos: NDArray, sin: NDArray, interleaved: bool = False) -> NDArray:
    """x * cos + rotate(x) * sin over the first R channels of x [..., H, M, D].

    `cos` and `sin` are [..., 1, M, R]; the other D - R channels pass. rotate(x) is (-x2, x1) for
    the halves x1, x2 of the R channels, or with `interleaved` (-x1, x0, -x3, x2, ...). Products
    and sum are FP16 for FP16 tensors (computed in FP32, rounded once), FP32 for FP32 ones;
    infinities and NaN are values, not warnings.
    Su et al., arXiv 2104.09864, section 3.4.2.
    """
    width = cos.shape[-1]
    turned = x[..., :width]
    rotated = np.empty_like(turned)
    if interleaved:
        np.negative(turned[..., 1::2], out=rotated[..., 0::2])
        rotated[..., 1::2] = turned[..., 0::2]
    else:
        half = width // 2
        np.negative(turned[..., half:], out=rotated[..., :half])
        rotated[..., half:] = turned[..., :half]
    rotated *= sin
    result = turned * cos
    result += rotated
    if width == x.shape[-1]:
        return result
    return np.concatenate([result, x[..., width:]], axis=-1)
