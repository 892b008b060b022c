"""Numbers, times and tokens as a person reads them; plain text, no markup."""

import math
import re
import unicodedata

_WHITE = {"\n": "↵", "\r": "␍", "\t": "⇥"}
_MARKS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069\u061c\ufeff]")


def count(value: int | None) -> str:
    """Return ``12,345``."""
    return "—" if value is None else f"{value:,}"


def share(value: float | None) -> str:
    """Return a share of one as per cent with three significant digits at most."""
    if value is None or not math.isfinite(value):
        return "—"
    percent = 100 * value
    return f"{percent:.3g} %" if percent < 100 else f"{percent:,.0f} %"  # noqa: PLR2004


def number(value: float | None) -> str:
    """Return three significant digits."""
    if value is None or not math.isfinite(value):
        return "—"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"  # noqa: PLR2004


def duration(seconds: float) -> str:
    """Return ``3:12`` or ``1:02:03``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent_done(progress: float) -> int:
    """Return whole per cents, rounded down: 100 means all of it."""
    return math.floor(100 * progress)


def tame(text: str) -> str:
    """Return `text` in which direction marks and lone surrogates are written out.

    A mark that is left open turns round what follows it, even outside its own element.
    """
    text = text.encode("utf-8", "replace").decode()
    return _MARKS.sub(lambda mark: f"⟨U+{ord(mark.group()):04X}⟩", text)


def token(text: str) -> str:
    """Return a token with everything invisible made visible, but for plain spaces."""
    return "".join(_picture(char) for char in tame(text))


def _picture(char: str) -> str:
    if char in _WHITE:
        return _WHITE[char]
    if ord(char) < 0x20:  # noqa: PLR2004 - C0 controls
        return chr(0x2400 + ord(char))
    return "␦" if unicodedata.category(char) == "Cc" else char
