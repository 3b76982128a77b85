"""Durations and sizes as people read them."""

UNITS_OF_TIME = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
UNITS_OF_SIZE = ("B", "kB", "MB", "GB", "TB", "PB")


def format_duration(seconds: float) -> str:
    """Three digits in the largest unit of which there are at least two, such as "3.5 hours"."""
    length, name = next((unit for unit in UNITS_OF_TIME if seconds >= 2 * unit[0]), UNITS_OF_TIME[-1])
    return f"{seconds / length:.3g} {name}"


def format_size(size: float) -> str:
    """Three digits of a number of bytes in decimal units, such as "3.5 GB"."""
    exponent = min(max((len(str(int(size))) - 1) // 3, 0), 5)
    return f"{size / 1000**exponent:.3g} {UNITS_OF_SIZE[exponent]}"
