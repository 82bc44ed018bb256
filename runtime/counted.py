"""Numbers of things as text."""


def counted(number: int, noun: str) -> str:
    """How many of a thing: "1 token", "2 tokens"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
