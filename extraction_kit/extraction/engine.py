"""The loop: contexts through the model and the SAE into the statistics, once.

Knows neither ledger nor queue. The tiles and their shapes are the same from the first to the
last attempt, so that the result does not depend on where the work was interrupted.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from extraction_kit.checkpoints import Checkpoint, Saver, best
from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import Corpus
from extraction_kit.errors import BadCorpus, CheckpointUnusable
from extraction_kit.extraction.feed import Tile
from extraction_kit.extraction.given import Given
from extraction_kit.extraction.preview import Previews
from extraction_kit.extraction.progress import OnProgress, Progress, Rate
from extraction_kit.extraction.result import Pass, results_of
from extraction_kit.extraction.rig import Rig
from extraction_kit.extraction.station import Encoded, Station
from extraction_kit.results import ExtractionResult
from extraction_kit.sources.devices import cpu_threads
from extraction_kit.sources.lanes import Mark
from extraction_kit.trainings import Training


class StopAfterCheckpoint(BaseException):
    """Raised by ``on_progress``: save a checkpoint, then stop by letting this through."""


def extract(  # noqa: PLR0913 - what to compute, where to save, whom to tell
    training: Training,
    corpus: Corpus,
    *,
    config: ExtractionConfig,
    settings: Settings,
    content_key: str = "",
    checkpoints: Path | None = None,
    resume_from: Path | None = None,
    on_progress: OnProgress | None = None,
    clock: Callable[[], float] = time.monotonic,
    given: Given | None = None,
) -> ExtractionResult:
    """Measure every feature of a training's SAE on a corpus.

    Parameters
    ----------
    training : Training
        The SAE, its model and the hookpoint.
    corpus : Corpus
        Prepared with the same `config` and tokenizer.
    config : ExtractionConfig
        What is computed.
    settings : Settings
        Device, threads, compute tile and time between checkpoints.
    content_key : str
        Identity of the computation; a checkpoint with another one is refused.
    checkpoints : Path, optional
        Folder of this attempt's checkpoints; None saves none.
    resume_from : Path, optional
        Folder with the checkpoints of all attempts; continues from the best, else starts
        from the beginning.
    on_progress : callable, optional
        Called with a `Progress` at each phase and after each batch. What it raises stops
        the extraction at once and nothing more is written; `StopAfterCheckpoint` stops it
        after a checkpoint.
    clock : callable
        Seconds that only go up.
    given : Given, optional
        Model or SAE as objects of this process, which `training` only describes.

    Raises
    ------
    BadModel, BadSae, BadCorpus
        A part cannot be used, or they do not belong together.
    BadSettings
        The device is not there, or the compute tile does not fit into its memory.
    CheckpointUnusable
        The checkpoint was made for something else, or under other numerics.
    WorkspaceUnusable
        A checkpoint cannot be written.
    """
    [result] = extract_together(
        [training],
        corpus,
        config=config,
        settings=settings,
        content_keys={training.training_id: content_key},
        checkpoints=checkpoints,
        resume_from=resume_from,
        on_progress=on_progress,
        clock=clock,
        given=given,
    )
    return result


def extract_together(  # noqa: PLR0913 - as `extract`
    trainings: Sequence[Training],
    corpus: Corpus,
    *,
    config: ExtractionConfig,
    settings: Settings,
    content_keys: Mapping[str, str] | None = None,
    checkpoints: Path | None = None,
    resume_from: Path | None = None,
    on_progress: OnProgress | None = None,
    clock: Callable[[], float] = time.monotonic,
    given: Given | None = None,
) -> list[ExtractionResult]:
    """Measure several SAEs of one model, at any hookpoints, in one pass of the model.

    Each result equals, digest and all, what `extract` finds for that training under the same
    compute tile; only ``elapsed_s``, ``tokens_per_s`` and ``peak_rss_bytes`` are those of the
    whole. `Rig` says what is held in memory.

    Parameters
    ----------
    trainings : sequence of Training
        Of one model and tokenizer, each with an id of its own, which messages say.
    content_keys : mapping, optional
        Identity of each computation, by training id.
    corpus, config, settings, checkpoints, resume_from, on_progress, clock, given
        As for `extract`. A checkpoint holds all SAEs and continues with the same ones in the
        same order; `Progress` has no live figures where there are several.

    Returns
    -------
    list of ExtractionResult
        In the order of `trainings`.

    Raises
    ------
    BadModel, BadSae, BadCorpus, BadSettings, CheckpointUnusable, WorkspaceUnusable
        As `extract`, the SAE named in front; or their models or tokenizers differ, or there
        is no SAE.
    """
    tell = on_progress or _tell_nobody
    checkpoint = None if resume_from is None else best(resume_from)
    # What a caller's own module keeps of an inference tensor it could never train on again.
    without_grad = torch.inference_mode() if given is None else torch.no_grad()
    with cpu_threads(settings.threads) as threads, without_grad:
        rig = Rig(
            trainings,
            corpus,
            config=config,
            settings=settings,
            threads=threads,
            tell=lambda phase: tell(Progress(phase=phase, n_tokens=corpus.n_tokens)),
            tile=None if settings.tile_tokens is not None else _tile_of(checkpoint),
            given=given or Given(),
        )
        job = _Extraction(
            rig=rig,
            content_keys=dict.fromkeys((each.training_id for each in trainings), "")
            | dict(content_keys or {}),
            folder=checkpoints,
            tell=tell,
            clock=clock,
        )
        if on_progress is not None and len(rig.stations) == 1:
            job.previews = Previews(rig.stations[0].statistics, corpus, clock=clock)
        if checkpoint is not None:
            job.resume(checkpoint)
        job.run()
        return job.results()


def _tell_nobody(_: Progress) -> None:
    pass


def _tile_of(checkpoint: Checkpoint | None) -> int | None:
    """Return the tile that a checkpoint was made with, if it says so."""
    fingerprint = {} if checkpoint is None else checkpoint.meta.get("fingerprint") or {}
    tile = fingerprint.get("tile_contexts")
    return tile if isinstance(tile, int) and tile > 0 else None


@dataclass(kw_only=True)
class _Extraction:
    """One pass: its cursor, its checkpoints and its clock."""

    rig: Rig
    content_keys: Mapping[str, str]
    folder: Path | None
    tell: OnProgress
    clock: Callable[[], float]
    n_contexts_done: int = 0
    n_tokens_done: int = 0
    earlier_s: float = 0.0  # computing of the attempts before this one
    resumed: Mapping[str, Any] | None = None  # what the checkpoint says that was continued
    saver: Saver | None = None  # during the loop
    tiles: Generator[Tile, None, None] = field(init=False, repr=False)
    following: Tile | None = None
    rate: Rate = field(default_factory=Rate)
    previews: Previews | None = None

    # --- before the first batch ---

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises
        ------
        CheckpointUnusable
            It was made for something else, or under other numerics.
        """
        self._phase("resuming")
        meta = checkpoint.meta
        self._refuse_foreign(checkpoint)
        arrays = checkpoint.load()
        try:
            for prefix, station in self._prefixed():
                station.statistics.load_state_dict(
                    {
                        name.removeprefix(prefix): torch.from_numpy(array)
                        for name, array in arrays.items()
                        if name.startswith(prefix)
                    }
                )
        except (KeyError, ValueError) as error:
            raise CheckpointUnusable(
                f"checkpoint {checkpoint.path} does not fit this extraction ({error}): "
                f"delete {checkpoint.path.parent.parent} to start from the beginning"
            ) from error
        self.n_contexts_done = int(meta["n_contexts_done"])
        self.n_tokens_done = int(meta["n_tokens_done"])
        self.earlier_s = float(meta["elapsed_s"])
        self.resumed = meta
        if self.previews is not None:  # no part of the numbers: an older one has none
            self.previews.go_on(meta.get("previewed"))

    def _refuse_foreign(self, checkpoint: Checkpoint) -> None:
        theirs = {
            "content_key": checkpoint.meta.get("content_key"),
            "corpus": checkpoint.meta.get("corpus_digest"),
            **(checkpoint.meta.get("fingerprint") or {}),
        }
        ours = {
            "content_key": self._content_key,
            "corpus": self.rig.corpus.digest,
            **self.rig.fingerprint,
        }
        differing = [
            f"{name}: {theirs.get(name)!r} then, {ours.get(name)!r} now"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
        ]
        if differing:
            raise CheckpointUnusable(
                f"checkpoint {checkpoint.path} was made under other conditions "
                f"({'; '.join(differing)}): continuing would change the numbers. Resume "
                "where they are the same (Settings threads, device and tile_tokens, the "
                "same torch, the same kind of processor), or delete "
                f"{checkpoint.path.parent.parent} to start from the beginning"
            )

    # --- the loop ---

    def run(self) -> None:
        """Measure the contexts that are left."""
        self.started = self.last_save = self.clock()
        self.rate.note(self.started, self.n_tokens_done)
        self._phase("extracting")
        with nullcontext() if self.folder is None else Saver(self.folder) as self.saver:
            self._compute()
        if self.n_tokens_done != self.rig.corpus.n_tokens:
            raise BadCorpus(
                f"corpus {self.rig.corpus.path} says it has {self.rig.corpus.n_tokens} valid "
                f"tokens, {self.n_tokens_done} were found: it is damaged, delete that "
                "folder and prepare it again"
            )

    def _compute(self) -> None:
        self.tiles = self.rig.tiles(self.n_contexts_done)
        try:
            while self.n_contexts_done < self.rig.corpus.n_contexts:
                with self.rig.memory_errors():
                    self._batch()
                self._look()
                if self.clock() - self.last_save >= self.rig.settings.checkpoint_every_s:
                    self._begin_to_save()
                self.tell(self._progress("extracting"))
        except StopAfterCheckpoint:
            self._save_the_rest()
            raise
        finally:
            self.tiles.close()
        self._look(at_once=True)
        self._save_the_rest()  # from here to the published result nothing is computed twice

    def _batch(self) -> None:
        lanes, tile = self.rig.lanes, self.following or next(self.tiles)
        for station, found, encoded in lanes.ahead_of(self._encoded(tile)):
            with lanes.aside(encoded), station.naming():
                station.count(found)
            lanes.join()
        self.n_contexts_done += len(tile.batch)
        self.n_tokens_done += int(tile.batch.valid.sum())

    def _encoded(self, tile: Tile) -> Iterator[tuple[Station, Encoded, Mark]]:
        """Yield what each SAE finds in a tile; where work is queued ahead, read the next."""
        lanes = self.rig.lanes
        for station in self.rig.stations:
            with station.naming():
                found = station.encode(tile)
            yield station, found, lanes.here()
        self.following = next(self.tiles, None) if lanes.ahead else None

    def results(self) -> list[ExtractionResult]:
        """Return what was measured."""
        self._phase("finishing")
        done = Pass(
            n_tokens=self.n_tokens_done,
            n_contexts=self.n_contexts_done,
            elapsed_s=self._elapsed_s(),
            resumed_from=self._resumed_tokens,
        )
        began = self.clock()
        found = results_of(
            self.rig,
            done,
            content_keys=self.content_keys,
            tell=lambda: self._phase("finishing"),
        )
        after_pass_s = self.clock() - began
        return [
            replace(each, summary={**each.summary, "after_pass_s": after_pass_s})
            for each in found
        ]

    # --- telling and saving ---

    def _phase(self, phase: str) -> None:
        self.tell(self._progress(phase))

    @property
    def _resumed_tokens(self) -> int | None:
        return None if self.resumed is None else int(self.resumed["n_tokens_done"])

    def _progress(self, phase: str) -> Progress:
        return Progress(
            phase=phase,
            n_tokens=self.rig.corpus.n_tokens,
            n_tokens_done=self.n_tokens_done,
            n_contexts_done=self.n_contexts_done,
            checkpoint_tokens=self._saved("n_tokens_done"),
            tokens_per_s=self.rate.tokens_per_s,
            **({} if self.previews is None else self.previews.figures),
        )

    def _look(self, *, at_once: bool = False) -> None:
        if self.saver is not None:
            self.saver.look()
        self.rate.note(self.clock(), self.n_tokens_done)
        if self.previews is not None:
            with self.rig.memory_errors():
                self.previews.look(at_once=at_once)

    def _elapsed_s(self) -> float:
        return self.earlier_s + self.clock() - self.started

    def _begin_to_save(self, *, at_work: bool = True) -> None:
        """Have the state as it is now written, by a thread; a copy if it changes meanwhile."""
        if self.saver is None:
            return
        arrays = {
            f"{prefix}{name}": tensor.to("cpu", copy=at_work).numpy()
            for prefix, station in self._prefixed()
            for name, tensor in station.statistics.state_dict().items()
        }
        meta = {
            "n_contexts_done": self.n_contexts_done,
            "n_tokens_done": self.n_tokens_done,
            "content_key": self._content_key,
            "corpus_digest": self.rig.corpus.digest,
            "fingerprint": self.rig.fingerprint,
            "elapsed_s": self._elapsed_s(),
            "previewed": [] if self.previews is None else self.previews.drawn,
        }
        self.saver.begin(arrays, meta)
        self.last_save = self.clock()

    def _save_the_rest(self) -> None:
        """Have all that was computed on disk before this returns."""
        if self.saver is None:
            return
        self.saver.finish()
        if self.n_contexts_done > (self._saved("n_contexts_done") or 0):
            self._begin_to_save(at_work=False)
            self.saver.finish()

    def _saved(self, what: str) -> int | None:
        """Return a number of the newest checkpoint on disk; None if there is none."""
        own = None if self.saver is None else self.saver.newest
        newest = own or self.resumed
        return None if newest is None else int(newest[what])

    @property
    def _content_key(self) -> str:
        """The content keys of all stations, in their order."""
        return "+".join(
            self.content_keys[each.training.training_id] for each in self.rig.stations
        )

    def _prefixed(self) -> Iterator[tuple[str, Station]]:
        """Yield the stations with what stands before their keys in a checkpoint."""
        for number, station in enumerate(self.rig.stations):
            yield "" if len(self.rig.stations) == 1 else f"{number}/", station
