"""The loop: contexts through the model and the SAE into the statistics, once.

Knows neither ledger nor queue. The tiles and their shapes are the same from the first to the
last attempt, so that the result does not depend on where the work was interrupted.
"""

import platform
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from extraction_kit.checkpoints import Checkpoint, best, save
from extraction_kit.config import STATISTICS_FORMAT, ExtractionConfig, Settings
from extraction_kit.corpora import Corpus
from extraction_kit.errors import BadCorpus, CheckpointUnusable
from extraction_kit.extraction.ce_loss import CeLoss, measure_ce_loss
from extraction_kit.extraction.from_weights import tables_from_weights
from extraction_kit.extraction.given import Given
from extraction_kit.extraction.progress import OnProgress, Progress, Rate
from extraction_kit.extraction.rig import Rig, Tile
from extraction_kit.results import ExtractionResult, joined_tables
from extraction_kit.sources.devices import cpu_threads, peak_rss_bytes
from extraction_kit.stats import Collection
from extraction_kit.trainings import Training
from extraction_kit.version import __version__

LIVE_EVERY_S = 1.0
"""Seconds between two refreshes of the live figures that need a look at the statistics."""


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
    tell = on_progress or _tell_nobody
    checkpoint = None if resume_from is None else best(resume_from)
    # What a caller's own module keeps of an inference tensor it could never train on again.
    without_grad = torch.inference_mode() if given is None else torch.no_grad()
    with cpu_threads(settings.threads) as threads, without_grad:
        rig = Rig(
            training,
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
            statistics=rig.new_statistics(),
            content_key=content_key,
            folder=checkpoints,
            tell=tell,
            clock=clock,
        )
        if checkpoint is not None:
            job.resume(checkpoint)
        job.run()
        return job.result()


def _tell_nobody(_: Progress) -> None:
    pass


def _tile_of(checkpoint: Checkpoint | None) -> int | None:
    """Return the tile that a checkpoint was made with, if it says so."""
    fingerprint = {} if checkpoint is None else checkpoint.meta.get("fingerprint") or {}
    tile = fingerprint.get("tile_contexts")
    return tile if isinstance(tile, int) and tile > 0 else None


@dataclass(kw_only=True)
class _Extraction:
    """One call of `extract`: its cursor, its statistics and its clock."""

    rig: Rig
    statistics: Collection
    content_key: str
    folder: Path | None
    tell: OnProgress
    clock: Callable[[], float]
    n_contexts_done: int = 0
    n_tokens_done: int = 0
    earlier_s: float = 0.0  # computing of the attempts before this one
    saved_contexts: int = 0
    saved_tokens: int | None = None
    resumed_from: int | None = None
    tiles: Generator[Tile, None, None] = field(init=False, repr=False)
    rate: Rate = field(default_factory=Rate)
    live: dict[str, Any] = field(default_factory=dict)

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
            self.statistics.load_state_dict(
                {name: torch.from_numpy(array) for name, array in arrays.items()}
            )
        except (KeyError, ValueError) as error:
            raise CheckpointUnusable(
                f"checkpoint {checkpoint.path} does not fit this extraction ({error}): "
                f"delete {checkpoint.path.parent.parent} to start from the beginning"
            ) from error
        self.n_contexts_done = self.saved_contexts = int(meta["n_contexts_done"])
        self.n_tokens_done = self.saved_tokens = int(meta["n_tokens_done"])
        self.earlier_s = float(meta["elapsed_s"])
        self.resumed_from = self.n_tokens_done

    def _refuse_foreign(self, checkpoint: Checkpoint) -> None:
        theirs = {
            "content_key": checkpoint.meta.get("content_key"),
            "corpus": checkpoint.meta.get("corpus_digest"),
            **(checkpoint.meta.get("fingerprint") or {}),
        }
        ours = {
            "content_key": self.content_key,
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
                f"same torch), or delete {checkpoint.path.parent.parent} to start from the "
                "beginning"
            )

    # --- the loop ---

    def run(self) -> None:
        """Measure the contexts that are left."""
        self.started = self.last_save = self.clock()
        self.rate.note(self.started, self.n_tokens_done)
        self._phase("extracting")
        self.tiles = self.rig.tiles(self.n_contexts_done)
        try:
            while self.n_contexts_done < self.rig.corpus.n_contexts:
                with self.rig.memory_errors():
                    self._batch()
                self._refresh_live()
                if self.clock() - self.last_save >= self.rig.settings.checkpoint_every_s:
                    self._save()
                self.tell(self._progress("extracting"))
        except StopAfterCheckpoint:
            if self.n_contexts_done > self.saved_contexts:
                self._save()
            raise
        finally:
            self.tiles.close()
        if self.n_contexts_done > self.saved_contexts:
            self._save()  # from here to the published result nothing is computed twice
        if self.n_tokens_done != self.rig.corpus.n_tokens:
            raise BadCorpus(
                f"corpus {self.rig.corpus.path} says it has {self.rig.corpus.n_tokens} valid "
                f"tokens, {self.n_tokens_done} were found: it is damaged, delete that "
                "folder and prepare it again"
            )

    def _batch(self) -> None:
        tile = next(self.tiles)
        self._measure(tile)
        self.n_contexts_done += len(tile.batch)
        self.n_tokens_done += int(tile.batch.valid.sum())

    def _measure(self, tile: Tile) -> None:
        sae, x = self.rig.sae, tile.x
        normal = sae.normalize(x)
        x_hat, n_active = sae.baseline(x), 0
        for active in sae.encode(normal.x, tile.contexts):
            x_hat = x_hat + sae.decode(active, n_rows=x.shape[0])
            n_active += active.n_active
            self.statistics.update(active.to(self.statistics.device))
        x_hat = normal.undo(x_hat)
        wanted = x if tile.target is None else tile.target
        valid = torch.nonzero(tile.contexts.valid.reshape(-1)).squeeze(1)
        made, compares = x_hat[valid], self.rig.compares
        self.statistics.update_quality(
            wanted[valid], made if compares else None, n_active=n_active
        )
        # What is not compared is in no sum that would show it.
        finite = compares or bool(torch.isfinite(made).all())
        if not (finite and self.statistics.quality.finite):
            self.rig.refuse_non_finite(wanted, x_hat, tile)

    # --- telling and saving ---

    def _phase(self, phase: str) -> None:
        self.tell(self._progress(phase))

    def _progress(self, phase: str) -> Progress:
        return Progress(
            phase=phase,
            n_tokens=self.rig.corpus.n_tokens,
            n_tokens_done=self.n_tokens_done,
            n_contexts_done=self.n_contexts_done,
            checkpoint_tokens=self.saved_tokens,
            l0=self.live.get("l0"),
            fvu=self.live.get("fvu"),
            n_dead=self.live.get("n_dead"),
            tokens_per_s=self.rate.tokens_per_s,
        )

    def _refresh_live(self) -> None:
        now = self.clock()
        self.rate.note(now, self.n_tokens_done)
        if now - self.live.get("at", -LIVE_EVERY_S) >= LIVE_EVERY_S:
            quality = self.statistics.quality.compute()
            self.live.update(
                at=now,
                l0=quality["l0"],
                fvu=quality["fvu"],
                n_dead=self.statistics.n_dead(),
            )

    def _elapsed_s(self) -> float:
        return self.earlier_s + self.clock() - self.started

    def _save(self) -> None:
        if self.folder is None:
            return
        state = self.statistics.state_dict()
        meta = {
            "n_contexts_done": self.n_contexts_done,
            "n_tokens_done": self.n_tokens_done,
            "content_key": self.content_key,
            "corpus_digest": self.rig.corpus.digest,
            "fingerprint": self.rig.fingerprint,
            "elapsed_s": self._elapsed_s(),
        }
        arrays = {name: tensor.cpu().numpy() for name, tensor in state.items()}
        save(self.folder, arrays, meta)
        self.saved_contexts, self.saved_tokens = self.n_contexts_done, self.n_tokens_done
        self.last_save = self.clock()

    # --- after the last batch ---

    def result(self) -> ExtractionResult:
        """Return what was measured."""
        self._phase("finishing")
        elapsed_s = self._elapsed_s()
        found = self.statistics.compute()
        quality = found["quality"]
        features = found["features"] | self.rig.sae.weight_columns
        tables, read_off = tables_from_weights(self.rig, lambda: self._phase("finishing"))
        losses = measure_ce_loss(self.rig, tell=lambda: self._phase("finishing"))
        summary = {
            "n_tokens": self.n_tokens_done,
            "n_tokens_total": self.rig.corpus.n_tokens_total,
            "n_contexts": self.n_contexts_done,
            "context_size": self.rig.corpus.context_size,
            "d_in": self.rig.sae.spec.d_in,
            "d_sae": self.rig.sae.spec.d_sae,
            "l0": quality["l0"],
            "fvu": quality["fvu"],
            "explained_variance": quality["explained_variance"],
            "mse": quality["mse"],
            "n_dead": self.statistics.n_dead(),
            "n_dense": self.statistics.n_dense(),
            **losses.summary,
            "statistics_format": STATISTICS_FORMAT,
            "tokens_per_s": self.n_tokens_done / elapsed_s if elapsed_s > 0 else None,
            "elapsed_s": elapsed_s,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        return ExtractionResult(
            features=features,
            histograms=found["histograms"],
            examples=found["examples"],
            held_out=found["held_out"],
            summary=summary,
            provenance=self._provenance(losses) | read_off,
            tables=joined_tables(tables),
        )

    def _provenance(self, losses: CeLoss) -> dict[str, Any]:
        rig, hookpoint = self.rig, self.rig.training.hookpoint
        return {
            "fingerprint": rig.fingerprint,
            "versions": {
                "extraction_kit": __version__,
                "statistics_format": STATISTICS_FORMAT,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "numpy": np.__version__,
            },
            "units": {
                "activation": "as the SAE's encoder gives it, not scaled by decoder norms",
                "density": "share of valid tokens with activation above 0",
            },
            "masks": dict(rig.corpus.masks),
            "corpus_digest": rig.corpus.digest,
            "content_key": self.content_key,
            "training_digest": rig.training.digest,
            "hookpoint": {
                "hook_name": hookpoint.hook_name,
                "module_path": hookpoint.module_path,
                "side": hookpoint.side,
                "resolved": str(hookpoint),
                "equals_hidden_state": rig.equals_hidden_state,
            },
            "preflight": rig.preflight.to_dict(),
            "reconstruction": {
                "compared_with": rig.compared_at.hook_name if rig.compares else None,
                "not_compared_because": rig.not_compared_because,
            },
            "ce_loss": losses.provenance(),
            "resumed_from_tokens": self.resumed_from,
        }
