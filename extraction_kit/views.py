"""What can be said of a run at one moment: plain values for status, card and CLI."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import PurePath
from typing import Any, Self

from extraction_kit.lifecycle import RunState


def short(source: str) -> str:
    """Return a Hub id as it is, of a folder's path the last two names."""
    path = PurePath(source)
    names = path.parts[1:] if path.anchor else path.parts
    return "/".join(names[-2:])


def tokens_done(
    state: RunState, n_tokens: int, *, told: int | None, saved: int | None
) -> int:
    """Return how many valid tokens of a run are measured, as far as a reader can know.

    Parameters
    ----------
    state : RunState
        Of the run.
    n_tokens : int
        Valid tokens that it has to measure.
    told : int, optional
        What its process said last.
    saved : int, optional
        What its newest checkpoint holds.
    """
    if state in {RunState.COMPLETED, RunState.PUBLISHING}:
        return n_tokens
    return min(n_tokens, max(told or 0, saved or 0))


@dataclass(frozen=True, kw_only=True)
class Happening:
    """One event of a run; repeated refusals are one event with a count."""

    seq: int
    run_id: str
    attempt: int
    at: datetime
    kind: str  # a Move, "launched", "refused", "duplicate delivery", ...
    actor: str
    text: str
    count: int = 1
    last_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureSoFar:
    """One feature of a run that extracts, with its largest activation up to now."""

    feature: int
    density: float  # share of the tokens so far on which it is active
    max_act: float
    tokens: tuple[str, ...]  # around the peak
    acts: tuple[float, ...]  # its activation on each of them, 0 where it is silent

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build it from JSON values; raises what they raise if they are none of it."""
        tokens, acts = values["tokens"], values["acts"]
        found = [(str(text), float(act)) for text, act in zip(tokens, acts, strict=True)]
        return cls(
            feature=int(values["feature"]),
            density=float(values["density"]),
            max_act=float(values["max_act"]),
            tokens=tuple(text for text, _ in found),
            acts=tuple(act for _, act in found),
        )


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a run that extracts has found up to now; L0, FVU and dead are as old as this."""

    n_tokens: int  # valid tokens over which all of it is
    features: tuple[FeatureSoFar, ...] = ()

    @classmethod
    def from_dict(cls, values: object) -> Self | None:
        """Build it from JSON values; None if there is none, or none that this version knows."""
        if not isinstance(values, Mapping):
            return None
        try:
            features = tuple(map(FeatureSoFar.from_dict, values["features"]))
            return cls(n_tokens=int(values["n_tokens"]), features=features)
        except (KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as it stands: ledger row, beat and evidence together.

    All datetimes are aware (UTC). ``None`` means unknown or not yet.
    """

    run_id: str
    training_id: str
    generation: int
    state: RunState
    attempt: int
    job_id: str
    n_tokens: int  # valid tokens to measure
    n_tokens_done: int
    created_at: datetime
    created_by: str  # user@host
    started_at: datetime | None = None  # claim of the current attempt
    ended_at: datetime | None = None  # end of the current attempt, if it ended
    completed_at: datetime | None = None
    results_dir: str | None = None
    result_digest: str | None = None
    error: str | None = None
    error_traceback: str | None = None
    phase: str | None = None  # loading model, extracting, publishing, ... from the beat
    tokens_per_s: float | None = None
    eta_s: float | None = None
    l0: float | None = None
    fvu: float | None = None
    n_dead: int | None = None
    preview: Preview | None = None  # while it extracts; None too from an older worker
    d_sae: int | None = None
    model: str = ""
    hook_name: str = ""
    worker: str | None = None  # host:pid of the process that claimed
    beat_age_s: float | None = None
    progress_age_s: float | None = None
    checkpoint_tokens: int | None = None  # where resume() would continue
    cancel_requested: bool = False
    results_bytes: int | None = None  # of its published files
    deleted_at: datetime | None = None  # by a person; the state stays what it was
    refusal: str | None = None  # why the launch of the handle that shows it was refused
    n_refusals: int = 0
    findings: tuple[str, ...] = ()  # stuck, no supervisor, server unreachable, ...
    advice: str = ""  # the next thing to type
    change: int = 0  # grows with every change of the run

    @property
    def progress(self) -> float:
        """Share of the valid tokens done, 0 to 1."""
        if self.state is RunState.COMPLETED:
            return 1.0
        return min(1.0, self.n_tokens_done / self.n_tokens) if self.n_tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; datetimes as ISO 8601 with offset."""
        plain = asdict(self) | {"progress": self.progress, "state": str(self.state)}
        plain["findings"] = list(self.findings)
        for name, value in plain.items():
            if isinstance(value, datetime):
                plain[name] = value.isoformat()
        return plain
