"""Every error of extraction_kit, in one tree.

A *refusal* says that a rule forbids what was asked and nothing was changed; a *failure*
says that something which should have worked did not. They never share a base below the
root, so that ``except Refused`` cannot hide a failure.

* ExtractionKitError
  x Refused                     a rule forbids it, nothing changed
    - AlreadyCompleted          the run is final
    - StillActive               the run is being worked on
    - RestsUntilResumed         failed, cancelled or interrupted: only ``resume()`` continues
    - TrainingBusy              another run of this training is active
    - NothingToResume           there is no such run, or it never started
    - NothingToCancel           the run is not active any more
    - TooLateToCancel           results are being published
    - RunDeleted                a person deleted the run: restore it, or the next generation
    - GenerationUnavailable     the generation asked for may not be created yet
    - TrainingConflict          the id is registered with other content
  x BadInput                    what was passed cannot be used
    - UnknownTraining, UnknownRun, UnknownFeature
    - BadConfig, BadSettings, BadTrainingId
    - BadSae, BadModel, BadCorpus, BadQuery, BadExport, BadLabel
      . PreparedOtherwise       a BadCorpus: prepared with another config than the launch's
  x Failure                     something that should work does not
    - WorkspaceUnusable         not writable, full, or of a newer version
    - LedgerBusy                the ledger stayed locked
    - LedgerConflict            another process was faster
    - QueueUnreachable          the Redis-compatible server does not answer
    - ServerNotStarted, WorkerNotStarted
    - ResultsDamaged            a published file is missing or altered
    - CatalogLocked             another program holds the catalog snapshot
    - CheckpointUnusable        a checkpoint cannot be continued here
    - RunFailed                 the run ended without a result
    - WaitTimeout               the run did not end in time
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from traceback import format_exception
from types import TracebackType
from typing import Self


class ExtractionKitError(Exception):
    """Root of all errors raised by this package."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: the person's own lines and the words.

        The words say what is so and what to type next; they would stand below a screen of
        this package's lines. ``%xmode Verbose`` shows those, too.
        """
        shell = sys.modules["IPython"].get_ipython()  # who calls this has imported it
        if shell is None:  # a shell that is not the one of this process
            return format_exception(self)
        shower = shell.InteractiveTB
        if shower.mode == "Verbose":
            return list(shower.structured_traceback(type(self), self, self.__traceback__))
        shown = type(self).__new__(type(self), *self.args)  # has no cause to be shown
        own = _frames_of_the_person(self.__traceback__)
        return list(shower.structured_traceback(type(self), shown, own, tb_offset=0))


def _frames_of_the_person(traceback: TracebackType | None) -> TracebackType | None:
    """Return the frames between IPython, which runs a cell, and the first of this package."""
    frames: list[TracebackType] = []
    while traceback is not None:
        package = str(traceback.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if package == __name__.partition(".")[0] or (package == "IPython" and frames):
            break
        if package != "IPython":
            frames.append(traceback)
        traceback = traceback.tb_next
    own = None
    for frame in reversed(frames):
        own = TracebackType(own, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return own


@contextmanager
def naming(name: str | None) -> Iterator[None]:
    """Put what an error is about before its words, where it may be about one of several."""
    try:
        yield
    except ExtractionKitError as error:
        if name is not None:
            error.args = (f"{name}: {error}", *error.args[1:])
        raise


class Refused(ExtractionKitError):
    """A rule forbids what was asked; nothing was changed."""


class BadInput(ExtractionKitError, ValueError):
    """What was passed cannot be used; the message names the value and what is allowed."""


class Failure(ExtractionKitError, RuntimeError):
    """Something that should have worked did not."""


# --- refusals -------------------------------------------------------------------------


class RunRefused(Refused):
    """A refusal that concerns one run.

    Parameters
    ----------
    run_id : str
        The run concerned.
    state : str
        Its state when the decision was made.
    because : str
        What is so, and what to type next.
    """

    def __init__(self, *, run_id: str, state: str, because: str) -> None:
        self.run_id = run_id
        self.state = state
        super().__init__(because)


class AlreadyCompleted(RunRefused):
    """The run is completed: it never runs again and never changes."""


class StillActive(RunRefused):
    """The run is requested, queued, extracting or publishing."""


class RestsUntilResumed(RunRefused):
    """The run failed, was cancelled or interrupted; only a person's ``resume()`` goes on."""


class TrainingBusy(RunRefused):
    """Another run of the same training is active."""


class NothingToResume(RunRefused):
    """There is no attempt that could be continued."""


class NothingToCancel(RunRefused):
    """The run is not active any more."""


class TooLateToCancel(RunRefused):
    """The results are being published; the run completes."""


class RunDeleted(RunRefused):
    """A person deleted the run; until it is restored nothing reads or continues it."""


class GenerationUnavailable(RunRefused):
    """The generation asked for may not be created yet."""


class TrainingConflict(Refused):
    """A training id is registered already, with other content.

    Parameters
    ----------
    training_id : str
        The id in question.
    registered, offered : str
        The digest on record and the one of the content that was offered.
    """

    def __init__(self, *, training_id: str, registered: str, offered: str) -> None:
        self.training_id = training_id
        self.registered = registered
        self.offered = offered
        super().__init__(
            f"training {training_id!r} is registered with digest {registered}, the content "
            f"offered now has digest {offered}: a training never changes under its id. "
            f"Register the new content under another id, for example {training_id + '-2'!r}"
        )


# --- bad input ------------------------------------------------------------------------


def near(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return the names that somebody who typed `name` may have meant, the nearest first."""
    known = sorted(set(known))
    starting = [one for one in known if name and one.startswith(name)]
    alike = get_close_matches(name, known, n=limit)
    return list(dict.fromkeys([*alike, *starting]))[:limit]


def _listing(names: Iterable[str], asked: str, limit: int = 10) -> str:
    known = sorted(names)
    if not known:
        return "there are none yet"
    shown = ", ".join(known[:limit])
    more = len(known) - limit
    meant = near(asked, known)
    hint = f"did you mean {' or '.join(map(repr, meant))}? " if meant else ""
    return f"{hint}known: {shown}" + (f" and {more} more" if more > 0 else "")


class UnknownTraining(BadInput):
    """No training is registered under this id."""

    def __init__(self, *, training_id: str, known: Iterable[str] = ()) -> None:
        self.training_id = training_id
        super().__init__(
            f"no training {training_id!r} is registered ({_listing(known, training_id)}). "
            f"Type ws.register_training({training_id!r}, sae=..., model=...) first"
        )


class UnknownRun(BadInput):
    """No run has this id."""

    def __init__(self, *, run_id: str, known: Iterable[str] = ()) -> None:
        self.run_id = run_id
        super().__init__(
            f"no run {run_id!r} ({_listing(known, run_id)}). Type ws.runs() for the list"
        )


class UnknownFeature(BadInput):
    """The feature index is outside the SAE."""

    def __init__(self, *, feature: object, d_sae: int) -> None:
        self.feature = feature
        self.d_sae = d_sae
        super().__init__(
            f"feature {feature!r} does not exist: this SAE has d_sae={d_sae}, "
            f"so an integer from 0 to {d_sae - 1} is allowed"
        )


class BadTrainingId(BadInput):
    """A training id has characters that cannot be used in a job id or a path."""

    def __init__(self, *, training_id: object) -> None:
        self.training_id = training_id
        super().__init__(
            f"training id {training_id!r} cannot be used: 1 to 120 characters, letters, digits, "
            "'-', '_' and '.', beginning with a letter or digit, for example 'gpt2-l6-topk32'"
        )


class BadConfig(BadInput):
    """A field of :class:`~extraction_kit.ExtractionConfig` is out of range or unknown."""


class BadSettings(BadInput):
    """A field of :class:`~extraction_kit.Settings` is out of range or unknown."""


class BadSae(BadInput):
    """An SAE folder is missing, torn, of another width, or of an unknown kind."""


class BadModel(BadInput):
    """A model cannot be found, or does not have the hookpoint asked for."""


class BadCorpus(BadInput):
    """A corpus is empty, unreadable, too small, or prepared for something else."""


class PreparedOtherwise(BadCorpus):
    """A prepared corpus is not what the config asks for.

    Parameters
    ----------
    name : str
        The first thing that differs: a field of the config, or ``tokenizer``.
    made, asked : object
        What the corpus was prepared with, and what the launch asks for.
    """

    def __init__(self, *, name: str, made: object, asked: object) -> None:
        self.name, self.made, self.asked = name, made, asked
        super().__init__(
            f"this corpus was prepared with {name}={made!r}, the launch asks for {asked!r}: "
            "pass the texts instead, or prepare them with this config"
        )


class BadQuery(BadInput):
    """A SQL statement cannot be run on the catalog."""


class BadExport(BadInput):
    """An export cannot be made as asked: its name is taken, or something it needs is absent."""

    @classmethod
    def taken(cls, path: Path) -> Self:
        """Return the error of a name that is taken."""
        return cls(
            f"{path} is there already, and an export replaces nothing: choose another name, or "
            "remove it first"
        )


class BadLabel(BadInput):
    """A label says nothing, is too long, or a table of labels has a row that cannot be read."""


# --- failures -------------------------------------------------------------------------


class WorkspaceUnusable(Failure):
    """The workspace directory cannot be used as it is."""


class LedgerBusy(Failure):
    """The ledger stayed locked longer than its busy timeout."""


class LedgerConflict(Failure):
    """A uniqueness rule of the ledger refused a row: another process was faster."""


class QueueUnreachable(Failure):
    """The Redis-compatible server does not answer."""


class ServerNotStarted(Failure):
    """The embedded server could not be started."""


class WorkerNotStarted(Failure):
    """The worker process could not be started."""


class ResultsDamaged(Failure):
    """A published file is missing, torn or altered."""


class CatalogLocked(Failure):
    """Another program holds the catalog snapshot in a way that stops this step."""


class CheckpointUnusable(Failure):
    """A checkpoint cannot be continued here: torn, or made under other numerics."""


class RunFailed(Failure):
    """The run ended without a result.

    Parameters
    ----------
    run_id : str
        The run.
    state : str
        ``failed``, ``cancelled`` or ``interrupted``.
    because : str
        The worker's own words, and what to type next.
    """

    def __init__(self, *, run_id: str, state: str, because: str) -> None:
        self.run_id = run_id
        self.state = state
        super().__init__(because)


class WaitTimeout(Failure, TimeoutError):
    """The run did not end within the time given; it goes on."""
