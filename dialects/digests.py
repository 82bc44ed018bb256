"""Digests of tensors: which bytes a reference in the IR stands for."""

NO_BYTES = "none"
"""The digest of a tensor of which only type and shape are known (`speqc compile --no-weights`)."""


def digest_error(digest: str, *facts: object) -> str | None:
    """What is wrong with a digest; `facts` are those that only bytes could have told."""
    if digest == NO_BYTES:
        told = any(fact is not None for fact in facts)
        return "a tensor without bytes has no histogram of exponents" if told else None
    if not digest.startswith("sha256:"):
        return f"digest must be '{NO_BYTES}' or start with 'sha256:', got '{digest}'"
    return None
