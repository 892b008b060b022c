"""The loop: contexts through the model and the SAE into the statistics, once.

Knows neither ledger nor queue. Every batch has the same shape (the compute tile; the last
one is padded), so that the result does not depend on where the work was interrupted.
"""

import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from extraction_kit.checkpoints import Checkpoint, best, save
from extraction_kit.config import STATISTICS_FORMAT, ExtractionConfig, Settings
from extraction_kit.corpora import ContextBatch, Corpus
from extraction_kit.errors import BadCorpus, BadModel, BadSettings, CheckpointUnusable
from extraction_kit.results import ExtractionResult
from extraction_kit.sources.devices import (
    DTYPES,
    cpu_threads,
    describe_device,
    peak_rss_bytes,
    resolve_device,
    statistics_device,
)
from extraction_kit.sources.loading import load_model
from extraction_kit.sources.models import HookedModel
from extraction_kit.sources.preflight import Batch, Parts, preflight
from extraction_kit.sources.saes import Autoencoder, load_sae
from extraction_kit.stats import Collection, Contexts
from extraction_kit.trainings import Training, resolve_target
from extraction_kit.version import __version__

LIVE_EVERY_S = 1.0
"""Seconds between two refreshes of the live figures that need a look at the statistics."""
RATE_WINDOW_S = 15.0
"""Seconds over which the live rate is taken."""
PREFLIGHT_TOKENS = 16
"""Tokens on which the hookpoint is checked against the model's own hidden states."""


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
    """Mean active features per valid token so far."""
    fvu: float | None = None
    n_dead: int | None = None
    """Features that have not fired so far."""
    tokens_per_s: float | None = None
    """Valid tokens per second, lately."""


class StopAfterCheckpoint(BaseException):
    """Raised by ``on_progress``: save a checkpoint, then stop by letting this through."""


OnProgress = Callable[[Progress], None]


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
    job = _Extraction(
        training=training,
        corpus=corpus,
        config=config,
        settings=settings,
        content_key=content_key,
        folder=checkpoints,
        tell=on_progress or _tell_nobody,
        clock=clock,
    )
    with cpu_threads(settings.threads) as threads, torch.inference_mode():
        job.prepare(threads)
        if resume_from is not None:
            job.resume(resume_from)
        job.run()
        return job.result()


def _tell_nobody(_: Progress) -> None:
    pass


@dataclass(kw_only=True)
class _Extraction:
    """One call of `extract`: its parts, its cursor and its clock."""

    training: Training
    corpus: Corpus
    config: ExtractionConfig
    settings: Settings
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
    live: dict[str, Any] = field(default_factory=dict)

    # --- before the first batch ---

    def prepare(self, threads: int) -> None:
        """Load the parts and refuse what does not fit together."""
        self._check_sizes()
        self.device = resolve_device(self.settings.device)
        dtype = DTYPES[self.config.dtype]
        self._phase("loading model")
        self.target, self.no_target = resolve_target(self.training)
        self.compared_at = self.target or self.training.hookpoint
        self.model: HookedModel = load_model(
            self.training.model,
            self.training.hookpoint,
            device=self.device,
            dtype=dtype,
            target=self.target,
            device_map=self.settings.device_map,
        )
        self._phase("loading SAE")
        self.sae: Autoencoder = load_sae(self.training.sae, device=self.device, dtype=dtype)
        self.tile = max(1, self.settings.tile_tokens // self.corpus.context_size)
        self.fingerprint = {
            "device": describe_device(self.device),
            "dtype": self.config.dtype,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": threads,
            "tile_contexts": self.tile,
            "context_size": self.corpus.context_size,
        }
        if self.settings.device_map is not None:
            self.fingerprint["device_map"] = self.settings.device_map
        self.statistics = Collection(
            d_in=self.sae.spec.d_in if self.target is None else self.target.width,
            d_sae=self.sae.spec.d_sae,
            top_k=self.config.top_k,
            window=self.config.window,
            compared=self.no_target is None,
            device=statistics_device(self.device),
        )
        self._phase("checking")
        tokens = self._on_device(self.corpus.read(0, 1)).tokens[:1, :PREFLIGHT_TOKENS]
        self.hookpoint_checked = self.model.check_hookpoint(tokens)
        self._preflight()

    def _preflight(self) -> None:
        batch = self.corpus.read(0, self.tile)
        contexts = self._on_device(batch)
        present = torch.zeros_like(contexts.valid)
        present[: len(batch)] = torch.from_numpy(batch.present).to(self.device)
        x, target = self.model.with_target(contexts.tokens, self._present(batch))
        for values in (x, x if target is None else target):
            valid = torch.nonzero(contexts.valid.reshape(-1)).squeeze(1)
            self._refuse_non_finite(values[valid], values[valid], valid=valid)
        parts = Parts(
            training=self.training,
            model=self.model,
            sae=self.sae,
            load_whole=self._load_whole,
            compared=self.no_target is None,
        )
        found = Batch(tokens=contexts.tokens, present=present, valid=contexts.valid)
        with self._memory_errors():
            self.preflight = preflight(
                parts, found, refuse=self.settings.preflight == "refuse"
            )

    def _load_whole(self) -> HookedModel:
        return load_model(
            self.training.model,
            self.training.hookpoint,
            device=self.device,
            dtype=DTYPES[self.config.dtype],
            device_map=self.settings.device_map,
            whole=True,
        )

    def _check_sizes(self) -> None:
        model, sae, corpus = self.training.model, self.training.sae, self.corpus
        if self.training.hookpoint.width != sae.d_in:
            raise BadModel(
                f"{self.training.hookpoint.hook_name!r} is {self.training.hookpoint.width} "
                f"wide, the SAE has d_in={sae.d_in}: choose another hook_name or SAE"
            )
        if model.max_context is not None and corpus.context_size > model.max_context:
            raise BadCorpus(
                f"context_size={corpus.context_size}: the model takes at most "
                f"{model.max_context} tokens. Prepare the corpus with a smaller one"
            )
        if corpus.tokenizer_digest != self.training.tokenizer.digest:
            raise BadCorpus(
                f"corpus {corpus.digest[:12]} was made with another tokenizer "
                f"({corpus.tokenizer_digest[:12]}) than the training's "
                f"({self.training.tokenizer.digest[:12]}): prepare it again with "
                "ws.corpus(..., training_id=...)"
            )
        if not corpus.n_tokens:
            raise BadCorpus(
                f"corpus {corpus.digest[:12]} has no valid token: every one is masked"
            )

    def resume(self, run_folder: Path) -> None:
        """Continue from the best checkpoint below `run_folder`, if there is one.

        Raises
        ------
        CheckpointUnusable
            It was made for something else, or under other numerics.
        """
        checkpoint = best(run_folder)
        if checkpoint is None:
            return
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
                f"delete {run_folder} to start from the beginning"
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
            "corpus": self.corpus.digest,
            **self.fingerprint,
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
        self.rate = deque([(self.started, self.n_tokens_done)])
        self._phase("extracting")
        try:
            while self.n_contexts_done < self.corpus.n_contexts:
                with self._memory_errors():
                    self._batch()
                self._refresh_live()
                if self.clock() - self.last_save >= self.settings.checkpoint_every_s:
                    self._save()
                self.tell(self._progress("extracting"))
        except StopAfterCheckpoint:
            if self.n_contexts_done > self.saved_contexts:
                self._save()
            raise
        if self.n_contexts_done > self.saved_contexts:
            self._save()  # from here to the published result nothing is computed twice
        if self.n_tokens_done != self.corpus.n_tokens:
            raise BadCorpus(
                f"corpus {self.corpus.path} says it has {self.corpus.n_tokens} valid "
                f"tokens, {self.n_tokens_done} were found: it is damaged, delete that "
                "folder and prepare it again"
            )

    def _batch(self) -> None:
        batch = self.corpus.read(self.n_contexts_done, self.tile)
        contexts = self._on_device(batch)
        x, target = self.model.with_target(contexts.tokens, self._present(batch))
        self._measure(x, contexts, target)
        self.n_contexts_done += len(batch)
        self.n_tokens_done += int(batch.valid.sum())

    def _measure(self, x: Tensor, contexts: Contexts, target: Tensor | None) -> None:
        normal = self.sae.normalize(x)
        x_hat, n_active = self.sae.baseline(x), 0
        for active in self.sae.encode(normal.x, contexts):
            x_hat = x_hat + self.sae.decode(active, n_rows=x.shape[0])
            n_active += active.n_active
            self.statistics.update(active.to(self.statistics.device))
        valid = torch.nonzero(contexts.valid.reshape(-1)).squeeze(1)
        x_hat = normal.undo(x_hat)[valid]
        wanted = (x if target is None else target)[valid]
        self.statistics.update_quality(
            wanted, x_hat if self.no_target is None else None, n_active=n_active
        )
        if not self.statistics.quality.finite:
            self._refuse_non_finite(wanted, x_hat, valid=valid)

    def _refuse_non_finite(self, x: Tensor, x_hat: Tensor, *, valid: Tensor) -> None:
        for name, values in (("activations", x), ("reconstruction", x_hat)):
            bad = torch.nonzero(~torch.isfinite(values).all(dim=1)).squeeze(1)
            if bad.numel():
                context, pos = divmod(int(valid[bad[0]]), self.corpus.context_size)
                raise BadModel(
                    f"the {name} at {self.compared_at.hook_name!r} are not finite "
                    f"at context {self.n_contexts_done + context}, position {pos} "
                    f"(dtype={self.config.dtype!r}): use dtype='float32' or 'bfloat16', or "
                    "another hook_name"
                )

    def _on_device(self, batch: ContextBatch) -> Contexts:
        """Return `batch` as tensors, padded to the compute tile."""
        shape = (self.tile, self.corpus.context_size)
        tokens = np.zeros(shape, dtype=np.int64)
        valid = np.zeros(shape, dtype=bool)
        # The pad id may lie outside the model's vocabulary; the model never looks back
        # from padding, so any known id will do.
        tokens[: len(batch)] = np.where(batch.present, batch.tokens, 0)
        valid[: len(batch)] = batch.valid
        if int(tokens.max()) >= self.training.model.vocab_size:
            raise BadCorpus(
                f"token id {int(tokens.max())} in contexts {self.n_contexts_done} to "
                f"{self.n_contexts_done + len(batch) - 1}: the model has vocab_size="
                f"{self.training.model.vocab_size}. Prepare the corpus with its tokenizer"
            )
        return Contexts(
            first=self.n_contexts_done,
            tokens=torch.from_numpy(tokens).to(self.device),
            valid=torch.from_numpy(valid).to(self.device),
        )

    def _present(self, batch: ContextBatch) -> Tensor | None:
        """Return where no padding is, for a model whose tokens see ahead."""
        if not self.model.sees_ahead:
            return None
        present = np.zeros((self.tile, self.corpus.context_size), dtype=bool)
        present[: len(batch)] = batch.present
        return torch.from_numpy(present).to(self.device)

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _is_memory(error):
                raise
            raise BadSettings(
                f"tile_tokens={self.settings.tile_tokens} does not fit into the memory of "
                f"{describe_device(self.device)}: lower it, for example "
                f"Settings(tile_tokens={max(1, self.settings.tile_tokens // 2)}). "
                "Checkpoints continue only under the tile that they were made with"
            ) from error

    # --- telling and saving ---

    def _phase(self, phase: str) -> None:
        self.tell(self._progress(phase))

    def _progress(self, phase: str) -> Progress:
        return Progress(
            phase=phase,
            n_tokens=self.corpus.n_tokens,
            n_tokens_done=self.n_tokens_done,
            n_contexts_done=self.n_contexts_done,
            checkpoint_tokens=self.saved_tokens,
            l0=self.live.get("l0"),
            fvu=self.live.get("fvu"),
            n_dead=self.live.get("n_dead"),
            tokens_per_s=self.live.get("tokens_per_s"),
        )

    def _refresh_live(self) -> None:
        now = self.clock()
        self.rate.append((now, self.n_tokens_done))
        while len(self.rate) > 2 and now - self.rate[1][0] > RATE_WINDOW_S:  # noqa: PLR2004 - two ends
            self.rate.popleft()
        since, before = self.rate[0]
        if now > since:
            self.live["tokens_per_s"] = (self.n_tokens_done - before) / (now - since)
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
            "corpus_digest": self.corpus.digest,
            "fingerprint": self.fingerprint,
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
        features = found["features"] | self.sae.weight_columns
        summary = {
            "n_tokens": self.n_tokens_done,
            "n_tokens_total": self.corpus.n_tokens_total,
            "n_contexts": self.n_contexts_done,
            "context_size": self.corpus.context_size,
            "d_in": self.sae.spec.d_in,
            "d_sae": self.sae.spec.d_sae,
            "l0": quality["l0"],
            "fvu": quality["fvu"],
            "n_dead": int((features["n_active"] == 0).sum()),
            "tokens_per_s": self.n_tokens_done / elapsed_s if elapsed_s > 0 else None,
            "elapsed_s": elapsed_s,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        return ExtractionResult(
            features=features,
            histograms=found["histograms"],
            examples=found["examples"],
            summary=summary,
            provenance=self._provenance(),
        )

    def _provenance(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
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
            "masks": dict(self.corpus.masks),
            "corpus_digest": self.corpus.digest,
            "content_key": self.content_key,
            "training_digest": self.training.digest,
            "hookpoint": {
                "hook_name": self.training.hookpoint.hook_name,
                "module_path": self.training.hookpoint.module_path,
                "side": self.training.hookpoint.side,
                "resolved": str(self.training.hookpoint),
                "equals_hidden_state": self.hookpoint_checked,
            },
            "preflight": self.preflight.to_dict(),
            "reconstruction": {
                "compared_with": None if self.no_target else self.compared_at.hook_name,
                "not_compared_because": self.no_target,
            },
            "resumed_from_tokens": self.resumed_from,
        }


def _is_memory(error: RuntimeError) -> bool:
    # The CPU allocator raises a bare RuntimeError, told apart by torch's own words.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
