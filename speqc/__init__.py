"""speqc: compiler and simulator for bit-shared self-speculative decoding of LLMs."""

__version__ = "0.1.0"
