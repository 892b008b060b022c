"""An extraction in this process: for SAEs that are objects, and for breakpoints.

No ledger, no queue, nothing published, nothing resumed. torch is imported here, into the
process that calls, with the first call.
"""

import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from extraction_kit.atomic import remove_folder
from extraction_kit.catalog import asking, reading
from extraction_kit.catalog.listing import Named
from extraction_kit.catalog.reading import ExampleWindow
from extraction_kit.catalog.relations import scan
from extraction_kit.catalog.tables import EXAMPLES, FEATURES
from extraction_kit.config import ExtractionConfig, Settings, config_or_defaults
from extraction_kit.corpora import Corpus, prepare, progress_bar
from extraction_kit.described import ALONE, describe_parts, named_saes
from extraction_kit.errors import BadSettings
from extraction_kit.paths import Paths
from extraction_kit.reader import ResultReader
from extraction_kit.trainings import Training
from extraction_kit.version import __version__
from extraction_kit.widgets.browsed import Browsed
from extraction_kit.workbench import corpus_record, person, utc_now

if TYPE_CHECKING:
    import duckdb

    from extraction_kit.extraction import Given, Progress

_RESULTS = "results"
_SHARED = "_shared"  # by several SAEs, none of which can have that name


class LocalResult(ResultReader):
    """What `extract_here` found; it is read as a `Run` is.

    Parameters
    ----------
    folder : path
        The ``folder`` of `extract_here`; of several SAEs, the one of that name in it.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._manifest()  # refused now if there is no result

    def _results(self) -> Path:
        return self.folder / _RESULTS

    def _corpus(self) -> Path:
        known = self._manifest()["corpus"]
        # the folder may have been moved
        homes = (self.folder, self.folder.parent / _SHARED)
        own = (home / "corpora" / known["digest"] for home in homes)
        return next((each for each in own if each.exists()), Path(known["path"]))

    def _read_windows(
        self, feature: SupportsIndex, *, k: int, group: str
    ) -> list[ExampleWindow]:
        corpus = Corpus.load(self._corpus())
        return reading.example_windows(
            self._results(),
            feature,
            contexts=corpus.contexts,
            vocab=corpus.vocab,
            k=k,
            group=group,
        )

    def _vocab(self) -> Path:
        return Corpus.load(self._corpus()).vocab

    def _contexts(self) -> Path:
        return Corpus.load(self._corpus()).contexts

    def _cache(self) -> Path:
        return self.folder / "cache"

    def _browsed(self) -> Browsed:
        files = {"features": FEATURES, "examples": EXAMPLES}
        names = {
            name: Named(scan([self._results() / table.file]))
            for name, table in files.items()
        }
        corpus, training = Corpus.load(self._corpus()), self._manifest()["training"]
        return Browsed(
            title=_title(training["training_id"]),
            call="result.browse",
            about=(
                Path(training["model"]["source"]).name,
                training["hookpoint"]["hook_name"],
            ),
            key=str(self.folder),
            folder=self._results(),
            corpus=corpus,
            names=names | {"vocab": Named(scan([corpus.vocab]))},
            ask=lambda query: asking.ask(self._results(), query),
        )

    def _kept(self, rows: "duckdb.DuckDBPyRelation") -> "duckdb.DuckDBPyRelation":
        return asking.in_memory(rows)  # it may outlive this object and its folder

    def __repr__(self) -> str:
        """Return one line."""
        found = self.summary
        fvu = "" if found["fvu"] is None else f", FVU {found['fvu']:.3g}"
        return (
            f"<LocalResult {found['d_sae']:,} features on {found['n_tokens']:,} tokens: "
            f"L0 {found['l0']:.3g}{fvu}, {found['n_dead']:,} dead>"
        )


def _title(name: str) -> str:
    return "extract_here" if name == ALONE else name


def extract_here(  # noqa: PLR0913 - what `register_training` and `launch` take, together
    sae: Any,  # noqa: ANN401 - a folder, an object, two functions or several: see below
    *,
    model: Any,  # noqa: ANN401 - a folder, a Hub id or a loaded model
    corpus: Any,  # noqa: ANN401 - see `Workspace.corpus`
    hook_name: str | Mapping[str, str] | None = None,
    d_in: int | Mapping[str, int] | None = None,
    d_sae: int | Mapping[str, int] | None = None,
    tokenizer: Path | str | None = None,
    config: ExtractionConfig | None = None,
    settings: Settings | None = None,
    text_column: str | None = None,
    folder: Path | str | None = None,
) -> LocalResult | Any:  # noqa: ANN401 - or a dict of them where `sae` is a mapping
    """Extract in this process: no worker, no resuming, but any SAE that can be called.

    Imports torch here. The numbers are those of a launched run; breakpoints in the SAE's or
    the model's code work, and interrupting the cell ends it and leaves nothing behind.

    Several SAEs of one model, at the same or at different hookpoints, are fed by one run of
    the model, where a launch is one run per training. Each gets the result, to the last bit,
    that it gets alone under the same ``Settings.tile_tokens``. All of them are in memory:
    their weights and statistics, and of one tile the activations at each hookpoint.

    Parameters
    ----------
    sae : object, (callable, callable), path, or mapping of str to any of them
        Anything with ``encode(x)`` [row, d_in] -> [row, d_sae], never negative, and
        ``decode(f)`` [row, d_sae] -> [row, d_in], biases included; or these two functions; or
        a folder as `register_training` takes it. A module computes in eval mode and is left
        as it was: modes, buffers, device; what it is given are copies. Several are passed by
        names of yours: ``{"layer-5": ..., "layer-8": ...}``.
    model : transformers model, path or Hub id
        A loaded model must be what ``AutoModelForCausalLM`` (encoders: ``AutoModel``) gives,
        on one device, in the dtype of `config`; it is left as it was. It needs `tokenizer`.
    corpus : Corpus, path, iterable of str, token ids, or Hugging Face data set
        What the model reads. It is tokenised anew each time, unless it is what
        ``ws.corpus(...)`` returned.
    hook_name : str or mapping, optional
        Where the SAE reads; needed unless a folder says it. Of several SAEs: one for all, or
        by name.
    d_in, d_sae : int or mapping, optional
        Of an SAE that is an object. None: the width at the hook, and what ``encode`` makes
        of one row of zeros.
    tokenizer : path, optional
        Folder with ``tokenizer.json``; None takes the model's.
    config : ExtractionConfig, optional
        What is computed.
    settings : Settings, optional
        Device, threads, compute tile and preflight; None reads the environment. Objects
        decide the device.
    text_column : str, optional
        Name of the text column; None takes ``text``, or the only column of texts.
    folder : path, optional
        New or empty folder that keeps corpus and result: ``LocalResult(folder)`` opens it
        again, ``LocalResult(folder / name)`` one of several. None takes a temporary one,
        removed with the last result.

    Returns
    -------
    LocalResult, or dict of str to LocalResult
        The latter where `sae` is a mapping, by its names.

    Raises
    ------
    BadSae, BadModel, BadCorpus, BadConfig, BadSettings, BadTrainingId
        Something cannot be used; the message names it and what to type next. Of several SAEs
        it begins with the name of the one that it is about.
    """
    config = config_or_defaults(config)
    settings = settings or Settings.from_environment()
    saes = named_saes(sae, hook_name=hook_name, d_in=d_in, d_sae=d_sae)
    is_alone = not isinstance(sae, Mapping)
    with _kept(folder) as (home, keep):
        shared = home if is_alone else home / _SHARED
        trainings, given, settings = describe_parts(
            saes, model, home=shared, config=config, settings=settings, tokenizer=tokenizer
        )
        prepared = _prepared(
            trainings[0], corpus, config, home=shared, text_column=text_column
        )
        folders = {name: home if is_alone else home / name for name in saes}
        _extract_into(
            folders, trainings, prepared, config=config, settings=settings, given=given
        )
        found = {name: keep(LocalResult(each)) for name, each in folders.items()}
        return found[ALONE] if is_alone else found


@contextmanager
def _kept(
    folder: Path | str | None,
) -> Iterator[tuple[Path, Callable[[LocalResult], LocalResult]]]:
    """Yield a folder to work in, removed if this fails, and what makes a result keep it."""
    if folder is None:
        home = Path(tempfile.mkdtemp(prefix="extraction_kit-"))
    else:
        home = Path(folder).expanduser().absolute()
        if home.exists() and (not home.is_dir() or any(home.iterdir())):
            raise BadSettings(
                f"folder={str(folder)!r} is there and not empty: pass a new one. What is in "
                "it may be opened with xk.LocalResult(folder)"
            )
    n_kept = 0

    def keep(result: LocalResult) -> LocalResult:
        nonlocal n_kept
        n_kept += 1
        if folder is None:
            weakref.finalize(result, drop)
        return result

    def drop() -> None:
        nonlocal n_kept
        n_kept -= 1
        if not n_kept:
            remove_folder(home)

    try:
        yield home, keep
    except BaseException:  # an interrupt too
        remove_folder(home)
        raise


def _prepared(
    training: Training,
    corpus: Any,  # noqa: ANN401 - see `extract_here`
    config: ExtractionConfig,
    *,
    home: Path,
    text_column: str | None,
) -> Corpus:
    with progress_bar("corpus") as progress:
        return prepare(
            corpus,
            tokenizer=training.tokenizer,
            config=config,
            paths=Paths(home=home, shared=home),
            progress=progress,
            text_column=text_column,
            max_context=training.model.max_context,
        )


def _extract_into(
    folders: Mapping[str, Path],
    trainings: Sequence[Training],
    corpus: Corpus,
    *,
    config: ExtractionConfig,
    settings: Settings,
    given: "Given",
) -> None:
    from extraction_kit.catalog.publish import stage  # noqa: PLC0415 - with torch
    from extraction_kit.extraction import extract_together  # noqa: PLC0415 - torch
    from extraction_kit.extraction.given import left_as_they_were  # noqa: PLC0415 - torch

    at = utc_now()
    with progress_bar("extraction") as report, left_as_they_were(*given.modules):

        def on_progress(progress: "Progress") -> None:
            report(progress.n_tokens_done, progress.n_tokens, progress.phase)

        results = extract_together(
            trainings,
            corpus,
            config=config,
            settings=settings,
            on_progress=on_progress,
            given=given,
        )
    common = {
        "corpus": {**corpus_record(corpus), "path": str(corpus.path)},
        "config": config.to_dict(),
        "settings": settings.to_dict(),
        "n_tokens": corpus.n_tokens,
        "kit_version": __version__,
        "created_at": at.isoformat(),
        "created_by": person(),
    }
    for training, result in zip(trainings, results, strict=True):
        manifest = {"training": training.to_dict(), **common}
        stage(folders[training.training_id] / _RESULTS, result, manifest)
