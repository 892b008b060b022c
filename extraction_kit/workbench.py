"""An opened workspace: ledger, queue, paths and settings together, and what is read there."""

import getpass
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from extraction_kit import embedded, outbox
from extraction_kit.atomic import remove_folder, unusable, write_json
from extraction_kit.config import STATISTICS_FORMAT, ExtractionConfig, Settings
from extraction_kit.corpora import Corpus, Progress, prepare
from extraction_kit.errors import (
    BadConfig,
    BadModel,
    BadSae,
    UnknownTraining,
    WorkspaceUnusable,
)
from extraction_kit.jobqueue import JobQueue
from extraction_kit.ledger import records
from extraction_kit.ledger.beats import BeatRows
from extraction_kit.ledger.records import RunRecord
from extraction_kit.ledger.store import Store
from extraction_kit.ledger.transitions import Mover, Target
from extraction_kit.lifecycle import Actor, digest_of
from extraction_kit.liveness import BeatFiles, Beats, Observations
from extraction_kit.paths import Paths
from extraction_kit.reconcile import Done, Reconciler, idle_s
from extraction_kit.trainings import Training, describe_training
from extraction_kit.version import __version__

# What of the settings is the run's own: kept at its launch and used by whichever worker takes
# it, so that a resumed attempt computes with the same tile on the same kind of device.
_SETTINGS_OF_A_RUN = (
    "device", "device_map", "threads", "tile_tokens", "checkpoint_every_s", "beat_s", "lease_s",
    "self_check_share",
)  # fmt: skip


def utc_now() -> datetime:
    """Return the time, aware."""
    return datetime.now(UTC)


def person() -> str:
    """Return user@host, for the record of who did something."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's uid without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{platform.node()}"


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """An opened workspace.

    Nothing in it holds a connection open: it may be kept for a week, and across a fork.
    """

    paths: Paths
    settings: Settings
    store: Store
    queue: JobQueue

    @classmethod
    def open(cls, home: Path, settings: Settings | None = None) -> "Workbench":
        """Open (and if need be make) the workspace at `home`.

        Raises
        ------
        WorkspaceUnusable
            It is not writable, or was used by a newer release.
        """
        settings = settings or Settings.from_environment()
        paths = Paths.of(home, settings)
        _make_private(paths.home)
        if settings.ledger_url is None:
            store = Store.at(paths.ledger)
        else:
            store = Store(settings.ledger_url)
        store.prepare()
        queue = JobQueue(settings.redis_url or embedded.server_url(paths))
        return cls(paths=paths, settings=settings, store=store, queue=queue)

    def now(self) -> datetime:
        """Return the time, aware."""
        return utc_now()

    def mover(self, actor: Actor = Actor.USER) -> Mover:
        """Return who moves: the person of this process, now."""
        return Mover(actor=actor, name=person(), at=self.now())

    @property
    def beats(self) -> Beats:
        """Where beats are: files here, rows where the ledger is shared by several machines."""
        return BeatFiles(self.paths.beats) if self.store.is_sqlite else BeatRows(self.store)

    # --- processes ------------------------------------------------------------------------

    @property
    def uses_own_server(self) -> bool:
        """Whether a server of the user's is used instead of the embedded one."""
        return self.settings.redis_url is not None

    def start_server(self) -> None:
        """Start the embedded server unless it answers, or a server of the user's is used."""
        if not self.uses_own_server:
            embedded.start_server(self.paths)

    def start_processes(self) -> None:
        """Start what a launch needs here: nothing if a server of the user's is used.

        Whoever runs a server runs its workers too, where the GPUs are.
        """
        if not self.uses_own_server:
            self.start_server()
            self.start_worker()
            self.start_monitor()

    def start_worker(self) -> bool:
        """Start a detached worker unless one is alive; True if this call started it."""
        environment = self.settings.to_environment()
        return embedded.start_worker(
            self.paths, version=__version__, environment=environment
        )

    def start_monitor(self) -> bool:
        """Start a detached monitor unless one is alive; True if this call started it."""
        environment = self.settings.to_environment()
        return embedded.start_monitor(
            self.paths, version=__version__, environment=environment
        )

    def send(self, target: Target, job_id: str) -> bool:
        """Hand an attempt that was just committed to the queue; False if it is away."""
        by = self.mover(Actor.LAUNCHER)
        return outbox.send(self.store, self.queue, target, job_id=job_id, by=by)

    def reconcile(self) -> list[Done]:
        """Bring the ledger in line with the evidence."""
        return self.reconciler().reconcile()

    def reconciler(self) -> Reconciler:
        """Return who may act on the evidence."""
        return Reconciler(
            store=self.store,
            queue=self.queue,
            beats=self.beats,
            paths=self.paths,
            settings=self.settings,
            name=f"{platform.node()}:{os.getpid()}",
            now=self.now,
            observations=self.observations(),
        )

    def observations(self) -> Observations:
        """Return what observers of this machine have seen."""
        # Half a lease: two looks in a row are needed before anybody counts as silent.
        return Observations(self.paths.beats, longest_gap_s=self.settings.lease_s / 2)

    def is_stuck(self, run: RunRecord) -> bool:
        """Tell whether a claimed run has made no progress for ``Settings.stuck_after_s``."""
        beat = self.beats.read(run.run_id, run.attempt)
        observed = self.observations().load()
        return idle_s(observed, run, beat) >= self.settings.stuck_after_s

    def sign_card(self, card: Path) -> None:
        """Say which process holds a slot."""
        write_json(card, {"pid": os.getpid(), "version": __version__}, durable=False)

    # --- what a run was launched with -----------------------------------------------------

    def training(self, training_id: str) -> Training:
        """Return a registered training.

        Raises
        ------
        UnknownTraining
            There is none; the message lists those that are.
        """
        with self.store.read() as connection:
            record = records.training(connection, training_id)
        if record is None:
            raise UnknownTraining(training_id=str(training_id), known=self.training_ids())
        return Training.from_dict(record.spec)

    def training_ids(self) -> list[str]:
        """Return the ids of all registered trainings."""
        with self.store.read() as connection:
            return [one.training_id for one in records.all_trainings(connection)]

    def prepare_corpus(
        self,
        training: Training,
        source: object,
        *,
        config: ExtractionConfig,
        text_column: str | None = None,
        progress: Progress | None = None,
    ) -> Corpus:
        """Prepare texts for a training; see :func:`extraction_kit.corpora.prepare`."""
        return prepare(
            source,
            tokenizer=training.tokenizer,
            config=config,
            paths=self.paths,
            progress=progress,
            text_column=text_column,
            max_context=training.model.max_context,
        )

    def corpus_of(self, run: RunRecord) -> Corpus:
        """Open the corpus of a run."""
        return Corpus.load(self.paths.corpora / run.corpus_digest)

    def recorded_corpus(self, record: Mapping[str, Any]) -> Corpus:
        """Return a corpus as :func:`corpus_record` has it, without a look at its files."""
        values = {name: value for name, value in record.items() if name != "vocab"}
        return Corpus(
            path=self.paths.corpora / record["digest"],
            vocab=self.paths.vocab / record["vocab"],
            pad_id=0,  # not recorded
            **values,
        )

    def config_of(self, run: RunRecord) -> ExtractionConfig:
        """Return the config of a run."""
        return ExtractionConfig.from_dict(run.config)

    def settings_of(self, run: RunRecord) -> Settings:
        """Return this machine's settings with those that the run was launched with."""
        known = [name for name in _SETTINGS_OF_A_RUN if name in run.settings]
        recorded = {name: run.settings[name] for name in known}
        if run.settings.get("preflight") == "report":  # else as this machine has it
            recorded["preflight"] = "report"
        return replace(self.settings, **recorded)

    def content_key(
        self, training: Training, corpus: Corpus, config: ExtractionConfig
    ) -> str:
        """Return the hash of everything that decides the numbers."""
        decides = config.to_dict()
        # The corpus digest covers the tokens; how they were asked for must not matter twice.
        for name in ("n_tokens", "packing", "prepend_bos"):
            del decides[name]
        return digest_of(
            {
                "format": STATISTICS_FORMAT,
                "sae": training.sae.digest,
                "model": training.model.digest,
                "hookpoint": training.hookpoint.place,
                "corpus": corpus.digest,
                "config": decides,
            }
        )

    def manifest_of(self, run: RunRecord) -> dict[str, Any]:
        """Return the provenance that is published with the results of a run."""
        training = self.training(run.training_id)
        return {
            "run_id": run.run_id,
            "training_id": run.training_id,
            "generation": run.generation,
            "attempt": run.attempt,
            "job_id": run.job_id,
            "content_key": run.content_key,
            "training": training.to_dict(),
            "corpus": dict(run.corpus),
            "config": dict(run.config),
            "settings": dict(run.settings),
            "n_tokens": run.n_tokens,
            "kit_version": __version__,
            "created_at": run.created_at.isoformat(),
            "created_by": run.created_by,
            "published_at": self.now().isoformat(),
        }

    def check_unchanged(self, training: Training) -> None:
        """Refuse to compute with other weights than those that were registered.

        Raises
        ------
        BadSae, BadModel
            A file is missing, or has another digest than at registration.
        """
        found = describe_training(
            training.training_id,
            sae=training.sae.path,
            model=training.model.path or training.model.source,
            hook_name=training.hookpoint.hook_name,
            tokenizer=Path(training.tokenizer.path).parent,
            cache=self.paths.cache,
        )
        for part, error in (("sae", BadSae), ("model", BadModel), ("tokenizer", BadModel)):
            registered, now = getattr(training, part).digest, getattr(found, part).digest
            if registered != now:
                where = getattr(training, part).path
                raise error(
                    f"{where} has changed since training {training.training_id!r} was "
                    f"registered: digest {registered[:12]} then, {now[:12]} now. Put the old "
                    "files back, or register the new ones under another id"
                )

    def check_content(self, run: RunRecord, training: Training, corpus: Corpus) -> None:
        """Refuse to compute what would be something else than the run was launched for.

        Raises
        ------
        BadConfig
            This release reads the same words differently: statistics of another format.
        """
        found = self.content_key(training, corpus, self.config_of(run))
        if found != run.content_key:
            raise BadConfig(
                f"run {run.run_id} has content key {run.content_key[:12]}, this extraction_kit "
                f"({__version__}) would compute {found[:12]}: it was launched by a release "
                "with another format of statistics. Launch it again under this release"
            )

    # --- upkeep ---------------------------------------------------------------------------

    def forget_checkpoints(self, run_id: str) -> None:
        """Remove the checkpoints of a run that is completed."""
        remove_folder(self.paths.checkpoints_of(run_id))

    def free_bytes(self) -> int:
        """Return the free space where results are written, in bytes."""
        paths = self.paths
        folder = paths.shared if paths.shared.exists() else paths.home
        return shutil.disk_usage(folder).free

    def require_space(self, expected_bytes: int = 0) -> None:
        """Refuse to begin on a disk that is full, or will be.

        Raises
        ------
        WorkspaceUnusable
            Less than ``Settings.min_free_bytes``, or than what is expected to be written,
            is free.
        """
        folder, free = self.paths.shared, self.free_bytes()
        need = max(self.settings.min_free_bytes, expected_bytes)
        if free < need:
            fewer = (
                "" if need > expected_bytes else ", keep fewer examples (top_k, n_random)"
            )
            raise WorkspaceUnusable(
                f"{folder} has {free / 2**20:.0f} MiB free, {need / 2**20:.0f} MiB are needed: "
                f"free some space{fewer}, or choose another workspace with EXTRACTION_KIT_HOME"
            )


def corpus_record(corpus: Corpus) -> Mapping[str, Any]:
    """Return what the ledger and the manifest keep of a corpus."""
    return {
        "digest": corpus.digest,
        "source": corpus.source,
        "n_contexts": corpus.n_contexts,
        "n_tokens": corpus.n_tokens,
        "n_tokens_total": corpus.n_tokens_total,
        "context_size": corpus.context_size,
        "tokenizer_digest": corpus.tokenizer_digest,
        "vocab": corpus.vocab.name,
        "vocab_size": corpus.vocab_size,
        "masks": dict(corpus.masks),
        "accounting": None if corpus.accounting is None else dict(corpus.accounting),
    }


def _make_private(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise unusable(home, error) from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise unusable(home, PermissionError(13, "Permission denied", str(home)))
