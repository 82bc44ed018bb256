"""Activation functions, element by element.

FP16 is computed in FP32 and rounded once, save where a function has a second tensor: then each
product is rounded.
"""

import math

import numpy as np

from speqc.runtime.vector_functions import clip, erf, exp, multiply, sigmoid, softplus, tanh
from speqc.runtime.vector_half import tabulated
from speqc.runtime.vector_op import Array

SQRT_HALF = math.sqrt(0.5)
SQRT_TWO_OVER_PI = math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715
SELU_ALPHA = 1.67326319217681884765625
SELU_GAMMA = 1.05070102214813232421875


def relu(x: Array) -> Array:
    """Return x, or 0 where x is negative."""
    return np.where(x < 0, x.dtype.type(0), x)


def gelu(x: Array, approximate: str = "none") -> Array:
    """Return x times the normal distribution function at x, or its approximation by tanh."""
    if approximate == "tanh":
        inner = SQRT_TWO_OVER_PI * (x + GELU_CUBIC * (x * x * x))
        return 0.5 * x * (1 + tanh(inner))
    return 0.5 * x * (1 + erf(x * SQRT_HALF))


def hard_sigmoid(x: Array, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """Return alpha * x + beta, limited to 0..1."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    return clip(alpha * x + beta, zero, one)


def swish(x: Array, alpha: float = 1.0) -> Array:
    """Return x * sigmoid(alpha * x)."""
    return x * sigmoid(alpha * x)


def elu(x: Array, alpha: float = 1.0) -> Array:
    """Return x, or alpha * (e**x - 1) where x is negative."""
    return np.where(x < 0, alpha * (exp(x) - 1), x)


def celu(x: Array, alpha: float = 1.0) -> Array:
    """Return x, or alpha * (e**(x / alpha) - 1) where x is negative."""
    return np.where(x < 0, alpha * (exp(x / alpha) - 1), x)


def selu(x: Array, alpha: float = SELU_ALPHA, gamma: float = SELU_GAMMA) -> Array:
    """Return gamma * x, or gamma * alpha * (e**x - 1) where x is not positive."""
    return gamma * np.where(x <= 0, alpha * exp(x) - alpha, x)


def leaky_relu(x: Array, alpha: float = 0.01) -> Array:
    """Return x, or alpha * x where x is negative."""
    return np.where(x < 0, alpha * x, x)


def thresholded_relu(x: Array, alpha: float = 1.0) -> Array:
    """Return x where it is larger than alpha, else 0."""
    return np.where(x > alpha, x, x.dtype.type(0))


def hard_swish(x: Array) -> Array:
    """Return x times its hard sigmoid of slope 1/6."""
    return x * hard_sigmoid(x, 1.0 / 6.0, 0.5)


def mish(x: Array) -> Array:
    """Return x * tanh(log(1 + e**x))."""
    return x * tanh(softplus(x))


def softsign(x: Array) -> Array:
    """Return x / (1 + |x|)."""
    return x / (1 + np.abs(x))


def parametric_relu(x: Array, slope: Array) -> Array:
    """Return x, or slope * x where x is negative; `slope` broadcasts to x."""
    return np.where(x < 0, multiply(x, slope), x)


def swiglu(a: Array, b: Array, alpha: float = 1.0) -> Array:
    """Return a * sigmoid(alpha * a), rounded, times b."""
    return multiply(tabulated(swish)(a, alpha=alpha), b)
