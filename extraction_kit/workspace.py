"""The workspace as a researcher holds it: register, launch, look, ask."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from extraction_kit import cataloguing, embedded, service, widgets
from extraction_kit.comparison import compare
from extraction_kit.config import ExtractionConfig, Settings, config_or_defaults
from extraction_kit.corpora import Corpus, progress_bar
from extraction_kit.curation import Curated
from extraction_kit.errors import WorkerNotStarted
from extraction_kit.estimate import Estimate, estimate
from extraction_kit.lifecycle import Answer
from extraction_kit.paths import find_workspace
from extraction_kit.portable import export_catalog
from extraction_kit.reader import ResultReader
from extraction_kit.repair import Repair, plan, repair
from extraction_kit.run import Run
from extraction_kit.shelf import TrainingRuns
from extraction_kit.trainings import Training, describe_training
from extraction_kit.trainings.saelens_release import fetch_release, is_release
from extraction_kit.verification import Verification, verify
from extraction_kit.views import RunView
from extraction_kit.watcher import Watcher
from extraction_kit.widgets.dashboard import Dashboard
from extraction_kit.wishes import check_generation
from extraction_kit.workbench import Workbench

if TYPE_CHECKING:
    import duckdb


class Workspace(Curated):
    """A directory that holds trainings, runs and results, and the processes that serve it.

    Parameters
    ----------
    home : path, optional
        The directory; made if it does not exist. None takes ``EXTRACTION_KIT_HOME``, else
        the nearest ``.extraction_kit`` in the working directory or its parents, else a new
        one in the working directory.
    settings : Settings, optional
        Where and how; None reads the environment.

    Raises
    ------
    WorkspaceUnusable
        The directory is not writable, or was used by a newer release.
    """

    def __init__(
        self, home: Path | str | None = None, *, settings: Settings | None = None
    ) -> None:
        found = find_workspace() if home is None else Path(home)
        self._bench = Workbench.open(found.expanduser().absolute(), settings)
        self._watcher = Watcher(self._bench)

    @property
    def home(self) -> Path:
        """The directory."""
        return self._bench.paths.home

    @property
    def settings(self) -> Settings:
        """Where and how."""
        return self._bench.settings

    # --- trainings ---

    def register_training(
        self,
        training_id: str,
        *,
        sae: Path | str | tuple[str, str],
        model: Path | str,
        hook_name: str | None = None,
        tokenizer: Path | str | None = None,
    ) -> Training:
        """Register a trained SAE with its model and hookpoint.

        The files are referenced, not copied: keep them where they are. Their digests are
        recorded, and checked again before anything is computed.

        Parameters
        ----------
        training_id : str
            A name of your choice; its content can never change.
        sae : path, or (release, sae_id)
            Folder of an SAE or transcoder of SAELens, sparsify, dictionary_learning, Gemma
            Scope or Llama Scope; its files show which. Where a folder holds several, the
            path of the weight file that is meant. Other weights, and SAEs made by your own
            code, need a ``sae_spec.json``. A pair is a release of SAELens
            (``pip install 'extraction_kit[saelens]'``), saved once into the workspace.
        model : path or Hub id
            A transformers causal language model.
        hook_name : str, optional
            Where the SAE reads, e.g. ``blocks.5.hook_resid_post`` or ``model.layers.5``;
            None takes what the SAE's own metadata says.
        tokenizer : path, optional
            Folder with ``tokenizer.json``; None takes the model's.

        Raises
        ------
        BadTrainingId, BadSae, BadModel
            Something cannot be used; the message names it and what to type next.
        TrainingConflict
            The id is registered with other content.
        """
        folder = self._bench.paths.trainings / "saelens"
        training = describe_training(
            training_id,
            sae=fetch_release(*sae, folder=folder)
            if is_release(sae)
            else cast("Path | str", sae),
            model=model,
            hook_name=hook_name,
            tokenizer=tokenizer,
            cache=self._bench.paths.cache,
        )
        service.register(self._bench, training)
        return training

    def training(self, training_id: str) -> Training:
        """Return a registered training."""
        return self._bench.training(training_id)

    def trainings(self) -> "duckdb.DuckDBPyRelation":
        """Return all registered trainings as a relation, the newest first."""
        return self.sql("FROM trainings ORDER BY created_at DESC, training_id")

    # --- launch ---

    def corpus(
        self,
        source: Any,  # noqa: ANN401 - a path, texts, ids, a data set: see below
        *,
        training_id: str,
        config: ExtractionConfig | None = None,
        text_column: str | None = None,
    ) -> Corpus:
        """Prepare texts as contexts of tokens; cached, so the second time takes milliseconds.

        Parameters
        ----------
        source : path, iterable of str, token ids, or Hugging Face data set
            A text file, ``.jsonl`` or ``.parquet`` with a text column, strings, or
            pre-tokenized ids (lists of integers, a 2-d array).
        training_id : str
            Whose tokenizer is used.
        config : ExtractionConfig, optional
            ``n_tokens``, ``context_size``, packing and masks.
        text_column : str, optional
            Name of the text column; None takes ``text``, or the only column of texts.

        Raises
        ------
        BadCorpus
            It is empty, unreadable, or has fewer tokens than asked for.
        BadConfig
            An option does not fit the model or its tokenizer.
        """
        training = self.training(training_id)
        with progress_bar("corpus") as progress:
            return self._bench.prepare_corpus(
                training,
                source,
                config=config_or_defaults(config),
                text_column=text_column,
                progress=progress,
            )

    def launch(
        self,
        training_id: str,
        *,
        corpus: Any,  # noqa: ANN401 - see `corpus`
        config: ExtractionConfig | None = None,
        generation: int | None = None,
        text_column: str | None = None,
        strict: bool | None = None,
    ) -> Run:
        """Launch an extraction, or find the one that is running or done: the same call.

        Parameters
        ----------
        training_id : str
            A registered training.
        corpus : Corpus, path, iterable of str, token ids, or Hugging Face data set
            What the model reads; see :meth:`corpus`.
        config : ExtractionConfig, optional
            What is computed; part of the run's identity.
        generation : int, optional
            The next number computes completed or deleted content anew; None returns what is
            there.
        text_column : str, optional
            Name of the text column; None takes ``text``, or the only column of texts.
        strict : bool, optional
            Whether a run that failed, was cancelled or interrupted raises instead of coming
            back with ``run.refusal``. None: yes, except in a notebook.

        Returns
        -------
        Run
            A new run, the one that is active, or the one that is completed.

        Raises
        ------
        UnknownTraining, BadCorpus, BadConfig
            Something was passed that cannot be used.
        TrainingBusy
            Another run of this training is active.
        RunDeleted
            The run of this content was deleted, and no other generation is there.
        GenerationUnavailable
            `generation` is not the next one.
        RestsUntilResumed
            Only if `strict`.
        """
        check_generation(generation)  # before a corpus is prepared for nothing
        training, config = self.training(training_id), config_or_defaults(config)
        prepared = self.corpus(
            corpus, training_id=training_id, config=config, text_column=text_column
        )
        content = service.content_of(self._bench, training, corpus=prepared, config=config)
        launched = service.launch(self._bench, content, generation=generation)
        rests = launched.refusal is not None and launched.answer is Answer.REST
        if rests and (not widgets.in_notebook() if strict is None else strict):
            assert launched.refusal is not None  # noqa: S101 - for the type checker
            raise launched.refusal
        return Run(self._watcher, launched.run_id, refusal=launched.refusal)

    def estimate(
        self,
        training_id: str,
        *,
        corpus: Any,  # noqa: ANN401 - see `corpus`
        config: ExtractionConfig | None = None,
        text_column: str | None = None,
    ) -> Estimate:
        """Say what a launch with the same arguments would take: time, memory and disk.

        The corpus is prepared, as a launch would; nothing is launched. See
        :func:`extraction_kit.estimate.estimate` for where the numbers come from.
        """
        training, config = self.training(training_id), config_or_defaults(config)
        prepared = self.corpus(
            corpus, training_id=training_id, config=config, text_column=text_column
        )
        return estimate(self._bench, training, corpus=prepared, config=config)

    # --- runs ---

    def run(self, run_id: str) -> Run:
        """Return the handle of a run.

        Raises
        ------
        UnknownRun
            There is none.
        """
        return Run(self._watcher, service.read_run(self._bench, run_id).run_id)

    def views(self) -> list[RunView]:
        """Return all runs as they stand, the newest first."""
        return self._watcher.views()

    def dashboard(self) -> Dashboard:
        """Return all runs as a table to look at: live in a notebook, static HTML elsewhere."""
        return Dashboard(self._watcher)

    def runs(self) -> "duckdb.DuckDBPyRelation":
        """Return all runs as a relation, the newest first."""
        return self.sql("FROM runs ORDER BY created_at DESC, run_id")

    def sql(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> "duckdb.DuckDBPyRelation":
        """Ask the catalog: ``runs``, ``trainings``, ``events``, ``features``, ``examples`` ...

        Raises
        ------
        BadQuery
            DuckDB's message, and the names that can be used.
        """
        return self._watcher.session.sql(query, params)

    def search(self, text: str, *, k: int | None = None) -> "duckdb.DuckDBPyRelation":
        """Return which features fire on a token, in all completed runs: see `Run.search`.

        Columns run_id, training_id, token, text, feature, n_examples, max_act, n_active.

        Raises
        ------
        BadQuery
            No token of these runs has this text.
        ResultsDamaged
            A file that it reads is damaged; run and file are named.
        """
        return self._watcher.session.search(text, k=k)

    def compare(
        self, a: ResultReader | str, b: ResultReader | str, *, match: str = "auto"
    ) -> "duckdb.DuckDBPyRelation":
        """Return two completed runs side by side, one row per feature of the first.

        The same to look at, with the examples of both: ``a.browse(compare=b)``.

        Of one SAE (another corpus, another config) they are joined by ``feature``. Of two
        SAEs of one model each feature of `a` is paired with the feature of `b` whose decoder
        row has the largest cosine with its own: ``feature_a``, ``feature_b``, ``cosine``,
        and ``mutual``, whether it is the best one in the other direction too. All cosines
        are computed, in blocks, by another process, once per pair of SAEs: 4 n m width
        operations for n and m features.

        Parameters
        ----------
        a, b : Run, LocalResult or run id
            What is compared.
        match : str
            ``auto``: as above. ``number``: features of the same number, for checkpoints of
            one SAE; ``cosine`` says how far each has turned. ``decoder``: by cosine, also
            within one SAE.

        Returns
        -------
        DuckDBPyRelation
            Then ``density_a``, ``density_b`` and other statistics of both, and
            ``log2_ratio`` of the densities, NULL where a feature is dead in one of them.

        Raises
        ------
        UnknownRun, StillActive, RunFailed
            There is no such run, or it has no result.
        BadQuery
            The runs cannot be compared; the message says why.
        BadSae
            The weights of an SAE are not where they were registered, or are damaged.
        """
        first, second = (self.run(one) if isinstance(one, str) else one for one in (a, b))
        return compare(
            first.results_folder,
            second.results_folder,
            match=match,
            cache=self._bench.paths.cache,
        )

    def __getitem__(self, training_id: str) -> TrainingRuns:
        """Return a training with its runs: ``ws["gpt2-l6"].latest``.

        Raises
        ------
        UnknownTraining
            There is none.
        """
        training = self.training(training_id)
        found = service.runs_of(self._bench, training.training_id)
        runs = tuple(Run(self._watcher, one.run_id) for one in found)
        return TrainingRuns(training=training, runs=runs)

    def _ipython_key_completions_(self) -> list[str]:
        return self._bench.training_ids()

    def refresh_catalog(self) -> Path:
        """Rebuild ``catalog.duckdb``; return its path."""
        cataloguing.write_snapshot(self._bench, anew=True)
        return self._bench.paths.catalog

    # --- processes ---

    def up(self) -> None:
        """Start the embedded server and a worker, unless they are alive; reconcile.

        Raises
        ------
        ServerNotStarted, WorkerNotStarted
            The message holds the end of the log.
        WorkspaceUnusable
            Another process hangs while it starts one of them; its lock is named.
        """
        self._bench.start_server()
        self._bench.start_worker()
        self._bench.start_monitor()
        self._bench.reconcile()
        self.refresh_catalog()

    def down(self) -> None:
        """Stop worker and server; a job that runs writes a checkpoint and is interrupted.

        Raises
        ------
        WorkerNotStarted
            The worker does not end; its pid is named.
        """
        paths = self._bench.paths
        embedded.monitor_slot(paths).stop()
        if not embedded.stop_workers(paths):
            raise WorkerNotStarted(
                f"worker {embedded.worker_pid(paths)} does not end: its job may be in a long "
                f"step. Wait and type it again, or look at {paths.logs / 'worker.log'}"
            )
        if not self._bench.uses_own_server:
            embedded.stop_server(paths)
        self._bench.reconcile()

    def reconcile(self) -> list[Any]:
        """Bring the ledger in line with the evidence; done by itself now and then."""
        return self._bench.reconcile()

    def repair(self, *, apply: bool = False) -> Repair:
        """Show how the ledger can be restored from published results, or do it.

        Reads every byte of every result: about 1 s per GB. A workspace whose ledger is too
        damaged to be opened is repaired by the command ``extraction-kit repair``.

        Parameters
        ----------
        apply : bool
            Do what would be shown.
        """
        return (repair if apply else plan)(self.home, self.settings)

    def export_catalog(
        self, path: Path | str, runs: Iterable[Run | str] | None = None
    ) -> Path:
        """Write completed runs with all that belongs to them into one new DuckDB file.

        It has native tables with comments and the macros of `sql`, and needs nothing of
        this workspace: copy it anywhere, open it with DuckDB 1.4 or later.

        Parameters
        ----------
        path : path
            Where the file appears, e.g. ``"runs.duckdb"``; nothing is replaced.
        runs : iterable of Run or run id, optional
            None takes all completed ones.

        Raises
        ------
        UnknownRun, RunDeleted, BadExport
            There is no such run, it is deleted or not completed, or something is at `path`.
        ResultsDamaged
            A file of a run is not the one that was published.
        """
        some = None if runs is None else [_id_of(run) for run in runs]
        return export_catalog(self._bench, path, some)

    def verify(self) -> Verification:
        """Read every byte of every result and corpus; say what is damaged or missing.

        Takes about 1 s per GB. A run that is damaged is left out of the views of `sql` from
        then on, which its column ``damage`` in ``runs`` says; everything else works on.
        """
        with progress_bar("verify", unit="B") as progress:
            found = verify(self._bench, progress)
        cataloguing.refresh_snapshot(self._bench)
        return found

    def __repr__(self) -> str:
        """Return one line."""
        return f"<Workspace {self.home}>"


def _id_of(run: Run | str) -> str:
    return run.run_id if isinstance(run, Run) else str(run)


_default: dict[str, Workspace] = {}


def default_workspace() -> Workspace:
    """Return the workspace of the working directory, opened once."""
    home = str(find_workspace())
    if home not in _default:
        _default[home] = Workspace(home)
    return _default[home]


def _on_default(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        return getattr(default_workspace(), name)(*args, **kwargs)

    call.__name__ = name
    call.__doc__ = f"On the default workspace: see `Workspace.{name}`."
    return call


launch = _on_default("launch")
register_training = _on_default("register_training")
runs = _on_default("runs")
sql = _on_default("sql")
