"""An extraction in this process: for SAEs that are objects, and for breakpoints.

No ledger, no queue, nothing published, nothing resumed. torch is imported here, into the
process that calls, with the first call.
"""

import json
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from extraction_kit.atomic import remove_folder
from extraction_kit.catalog import reading
from extraction_kit.catalog.reading import ExampleWindow
from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import Corpus, prepare, progress_bar
from extraction_kit.errors import BadModel, BadSae, BadSettings
from extraction_kit.paths import Paths
from extraction_kit.reader import ResultReader
from extraction_kit.trainings import Training, describe_model, describe_sae, training_of
from extraction_kit.trainings.hookpoints import resolve_hookpoint
from extraction_kit.trainings.model_folder import (
    CONFIG,
    ModelSpec,
    model_of,
    read_model_config,
)
from extraction_kit.version import __version__
from extraction_kit.workbench import corpus_record, person, utc_now

if TYPE_CHECKING:
    import duckdb

    from extraction_kit.extraction import Given, Progress

_ID = "here"
_RESULTS = "results"


class LocalResult(ResultReader):
    """What `extract_here` found; it is read as a `Run` is.

    Parameters
    ----------
    folder : path
        The ``folder`` of `extract_here`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._manifest()  # refused now if there is no result

    def _results(self) -> Path:
        return self.folder / _RESULTS

    def _corpus(self) -> Path:
        known = self._manifest()["corpus"]
        own = self.folder / "corpora" / known["digest"]  # the folder may have been moved
        return own if own.exists() else Path(known["path"])

    def _read_windows(
        self, feature: SupportsIndex, *, k: int, group: str
    ) -> list[ExampleWindow]:
        corpus = Corpus.load(self._corpus())
        return reading.example_windows(
            self._results(),
            feature,
            contexts=corpus.path / "contexts.parquet",
            vocab=corpus.vocab,
            k=k,
            group=group,
        )

    def _vocab(self) -> Path:
        return Corpus.load(self._corpus()).vocab

    def _kept(self, rows: "duckdb.DuckDBPyRelation") -> "duckdb.DuckDBPyRelation":
        return reading.in_memory(rows)  # it may outlive this object and its folder

    def __repr__(self) -> str:
        """Return one line."""
        found = self.summary
        fvu = "" if found["fvu"] is None else f", FVU {found['fvu']:.3g}"
        return (
            f"<LocalResult {found['d_sae']:,} features on {found['n_tokens']:,} tokens: "
            f"L0 {found['l0']:.3g}{fvu}, {found['n_dead']:,} dead>"
        )


def extract_here(  # noqa: PLR0913 - what `register_training` and `launch` take, together
    sae: Any,  # noqa: ANN401 - a folder, an object or two functions: see below
    *,
    model: Any,  # noqa: ANN401 - a folder, a Hub id or a loaded model
    corpus: Any,  # noqa: ANN401 - see `Workspace.corpus`
    hook_name: str | None = None,
    d_in: int | None = None,
    d_sae: int | None = None,
    tokenizer: Path | str | None = None,
    config: ExtractionConfig | None = None,
    settings: Settings | None = None,
    text_column: str | None = None,
    folder: Path | str | None = None,
) -> LocalResult:
    """Extract in this process: no worker, no resuming, but any SAE that can be called.

    Imports torch here. The numbers are those of a launched run; breakpoints in the SAE's or
    the model's code work, and interrupting the cell ends it and leaves nothing behind.

    Parameters
    ----------
    sae : object, (callable, callable), or path
        Anything with ``encode(x)`` [row, d_in] -> [row, d_sae], never negative, and
        ``decode(f)`` [row, d_sae] -> [row, d_in], biases included; or these two functions; or
        a folder as `register_training` takes it. A module computes in eval mode and is left
        as it was: modes, buffers, device; what it is given are copies.
    model : transformers model, path or Hub id
        A loaded model must be what ``AutoModelForCausalLM`` (encoders: ``AutoModel``) gives,
        on one device, in the dtype of `config`; it is left as it was. It needs `tokenizer`.
    corpus : Corpus, path, iterable of str, token ids, or Hugging Face data set
        What the model reads. It is tokenised anew each time, unless it is what
        ``ws.corpus(...)`` returned.
    hook_name : str, optional
        Where the SAE reads; needed unless a folder says it.
    d_in, d_sae : int, optional
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
        again. None takes a temporary one, removed with the result.

    Raises
    ------
    BadSae, BadModel, BadCorpus, BadConfig, BadSettings
        Something cannot be used; the message names it and what to type next.
    """
    config = config or ExtractionConfig()
    settings = settings or Settings.from_environment()
    with _kept(folder) as (home, keep):
        parts, given, settings = _parts(
            sae, model, home=home, config=config, settings=settings,
            about={"hook_name": hook_name, "d_in": d_in, "d_sae": d_sae},
            tokenizer=tokenizer,
        )  # fmt: skip
        prepared = _prepared(parts, corpus, config, home=home, text_column=text_column)
        _extract_into(home, parts, prepared, config=config, settings=settings, given=given)
        return keep(LocalResult(home))


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

    def keep(result: LocalResult) -> LocalResult:
        if folder is None:
            weakref.finalize(result, remove_folder, home)
        return result

    try:
        yield home, keep
    except BaseException:  # an interrupt too
        remove_folder(home)
        raise


def _parts(
    sae: Any,  # noqa: ANN401 - see `extract_here`
    model: Any,  # noqa: ANN401 - see `extract_here`
    *,
    home: Path,
    config: ExtractionConfig,
    settings: Settings,
    about: dict[str, Any],
    tokenizer: Path | str | None,
) -> tuple[Training, "Given", Settings]:
    """Describe SAE and model, whatever they are, as a training."""
    from extraction_kit.extraction import given as objects  # noqa: PLC0415 - torch
    from extraction_kit.sources.devices import DTYPES, resolve_device  # noqa: PLC0415 - torch

    is_file, loads = isinstance(sae, (str, Path)), isinstance(model, (str, Path))
    given = objects.Given(
        saes={} if is_file else {_ID: objects.as_sae(sae)}, model=None if loads else model
    )
    cache = home / "cache"
    spec = describe_model(model, cache=cache) if loads else _describe_loaded(model, home)
    if not loads and tokenizer is None:
        raise BadModel(
            "a loaded model does not bring its tokenizer: pass tokenizer= the folder that "
            "tokenizer.save_pretrained(folder) wrote"
        )
    given.check_dtype(config)
    settings = given.settings(settings)
    if not given.saes:
        _refuse_given_sizes(about)
        sae_spec = describe_sae(sae, cache=cache)
    else:
        hook_name, d_in = _place(spec, about["hook_name"], about["d_in"])
        with objects.left_as_they_were(*given.modules):
            sae_spec = objects.describe_given(
                given.saes[_ID], d_in=d_in, d_sae=about["d_sae"], hook_name=hook_name,
                device=resolve_device(settings.device), dtype=DTYPES[config.dtype],
            )  # fmt: skip
    training = training_of(
        _ID, sae_spec, spec, hook_name=about["hook_name"], tokenizer=tokenizer, cache=cache
    )
    return training, given, settings


def _refuse_given_sizes(about: dict[str, Any]) -> None:
    for name in ("d_in", "d_sae"):
        if about[name] is not None:
            raise BadSae(f"{name}={about[name]!r}: the files say it, leave {name} out")


def _place(model: ModelSpec, hook_name: str | None, d_in: int | None) -> tuple[str, int]:
    """Return where an SAE that is an object reads, and how wide it is there."""
    if hook_name is None:
        raise BadSae(
            "an object does not say where it reads: pass hook_name=, for example "
            "hook_name='blocks.5.hook_resid_post'"
        )
    config = read_model_config(Path(model.path))
    width = resolve_hookpoint(hook_name, config, d_in=d_in).width
    return hook_name, d_in or width


def _describe_loaded(model: object, home: Path) -> ModelSpec:
    """Describe a model that is in memory; its weights are not hashed."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_json_string"):
        raise BadModel(
            f"model={type(model).__name__} object: a loaded transformers model, a folder or "
            "a Hub id is needed"
        )
    folder = home / "model"
    folder.mkdir(parents=True)
    # what a description reads of a model is in its config
    (folder / CONFIG).write_text(config.to_json_string(use_diff=False))
    values = json.loads((folder / CONFIG).read_text())
    return model_of(folder, values, source=f"{type(model).__name__} object")


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
    home: Path,
    training: Training,
    corpus: Corpus,
    *,
    config: ExtractionConfig,
    settings: Settings,
    given: "Given",
) -> None:
    from extraction_kit.catalog.publish import stage  # noqa: PLC0415 - with torch
    from extraction_kit.extraction import extract  # noqa: PLC0415 - torch
    from extraction_kit.extraction.given import left_as_they_were  # noqa: PLC0415 - torch

    at = utc_now()
    with progress_bar("extraction") as report, left_as_they_were(*given.modules):

        def on_progress(progress: "Progress") -> None:
            report(progress.n_tokens_done, progress.n_tokens, progress.phase)

        result = extract(
            training,
            corpus,
            config=config,
            settings=settings,
            on_progress=on_progress,
            given=given,
        )
    manifest = {
        "training": training.to_dict(),
        "corpus": {**corpus_record(corpus), "path": str(corpus.path)},
        "config": config.to_dict(),
        "settings": settings.to_dict(),
        "n_tokens": corpus.n_tokens,
        "kit_version": __version__,
        "created_at": at.isoformat(),
        "created_by": person(),
    }
    stage(home / _RESULTS, result, manifest)
