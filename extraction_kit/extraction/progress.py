"""How far an extraction is, and how fast it goes."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from extraction_kit.views import Preview

RATE_WINDOW_S = 15.0
"""Seconds over which the live rate is taken."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an extraction is, and what it sees so far."""

    phase: str
    """``loading model``, ``loading SAE``, ``checking``, ``resuming``, ``extracting``,
    ``finishing``."""
    n_tokens: int
    """Valid tokens to measure."""
    n_tokens_done: int = 0
    n_contexts_done: int = 0
    checkpoint_tokens: int | None = None
    """Valid tokens in the newest checkpoint; None without one."""
    l0: float | None = None
    """Mean active features per valid token so far; None, as the next three, where several
    SAEs are measured."""
    fvu: float | None = None
    n_dead: int | None = None
    """Features that have not fired so far."""
    preview: Preview | None = None
    """Over how many tokens the three are, and a few features with their top example."""
    tokens_per_s: float | None = None
    """Valid tokens per second, lately."""


OnProgress = Callable[[Progress], None]


@dataclass
class Rate:
    """Tokens per second over the last `RATE_WINDOW_S`."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, now: float, n_tokens: int) -> None:
        """Say how many tokens are done at a time; each later than the one before."""
        self._seen.append((now, n_tokens))
        while len(self._seen) > 2 and now - self._seen[1][0] > RATE_WINDOW_S:  # noqa: PLR2004 - two ends
            self._seen.popleft()

    @property
    def tokens_per_s(self) -> float | None:
        """The rate; None before any time has passed."""
        if not self._seen:
            return None
        (since, before), (now, n_tokens) = self._seen[0], self._seen[-1]
        return (n_tokens - before) / (now - since) if now > since else None
