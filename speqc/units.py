"""Quantities for a reader."""


def show_time(seconds: float) -> str:
    """Seconds in a unit that leaves few digits before the point."""
    if seconds >= 1:
        return f"{seconds:.3f} s"
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3f} us"


def show_bytes(size: float) -> str:
    """Bytes in a unit that leaves few digits before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def show_energy(joules: float) -> str:
    """Joules in a unit that leaves few digits before the point."""
    for unit in ("J", "mJ", "uJ"):
        if joules >= 1:
            return f"{joules:.4g} {unit}"
        joules *= 1000
    return f"{joules:.4g} nJ"


def show_share(part: float, whole: float) -> str:
    """A part in per cent; "-" of nothing."""
    return f"{part / whole:.1%}" if whole else "-"
