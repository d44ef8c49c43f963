"""Formats numbers with their units, for people."""


def amount(count: float) -> str:
    """Formats bytes with their unit, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} TB"


def duration(seconds: float) -> str:
    """Formats seconds with their unit."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"
