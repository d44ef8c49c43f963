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


def clock(seconds: float) -> str:
    """Formats seconds of any length, with two units at most: 8.2 s, 3 m 20 s, 2 h 5 m, 3 d 4 h."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.9995 else f"{seconds * 1e3:.0f} ms"
    total = round(seconds)
    for large, small, unit, below in ((86400, 3600, "d", "h"), (3600, 60, "h", "m")):
        if total >= large:
            return f"{total // large} {unit} {total % large // small} {below}"
    return f"{total // 60} m {total % 60} s"
