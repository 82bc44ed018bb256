"""The sizes that make a Llama-like decoder."""

from dataclasses import dataclass
from typing import Literal

Head = Literal["tied", "own", "copied"]
"""Where the weights of the head are: in the embedding, its own, or a transposed copy of the
embedding (as exporters write that lose the tie)."""


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder; `heads` attention heads of `head_size` share `kv_heads` of the cache.

    Attributes:
        context: rows of the tables of rotary angles, whose base is `rope_theta`.
        epsilon: of the RMS norms.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    head: Head = "own"
    rope_theta: float = 10000.0
    epsilon: float = 1e-5
