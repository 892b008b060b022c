"""What a person asks for in a form: a launch told in texts, and what it would come to."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from extraction_kit import service
from extraction_kit.config import ExtractionConfig
from extraction_kit.corpora import Corpus, Progress
from extraction_kit.errors import (
    BadConfig,
    BadCorpus,
    BadInput,
    BadModel,
    PreparedOtherwise,
)
from extraction_kit.estimate import Estimate, estimate
from extraction_kit.ledger import records
from extraction_kit.ledger.records import RunRecord
from extraction_kit.lifecycle import Answer
from extraction_kit.refusals import deleted
from extraction_kit.service import Content, Foreseen, Launched
from extraction_kit.views import short
from extraction_kit.workbench import Workbench

MAX_CORPORA = 30
"""Corpora offered for one training, the newest."""
_FIELDS = {"n_tokens": "Tokens", "context_size": "Context size"}
"""What the form calls fields of the config; the others have their own names there."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A launch as a form tells it: nothing of it was looked at yet."""

    training_id: str
    path: str | None = None
    """A file of texts, as it was typed; or:"""
    run_id: str | None = None
    """An earlier run, whose corpus is taken."""
    text_column: str | None = None
    """Column of the texts in that file; blank: ``text``, or the only one of texts."""
    config: str = ""
    """Fields of `ExtractionConfig` as lines of TOML."""
    generation: int | None = None

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Build a wish from the plain values of a page.

        Raises
        ------
        BadInput
            It is no mapping, or a key or value is not allowed.
        """
        names = cls.__dataclass_fields__
        if not isinstance(values, Mapping) or not set(values) <= set(names):
            raise BadInput(f"wish={values!r}: a mapping with {', '.join(names)} is allowed")
        for name, value in values.items():
            may_be_none = name in {"path", "run_id", "text_column"} and value is None
            if name != "generation" and not (isinstance(value, str) or may_be_none):
                raise BadInput(f"{name}={value!r}: a text is allowed")
        check_generation(values.get("generation"))
        if not values.get("training_id"):
            raise BadInput("no training is chosen: choose one that is registered")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """What a wish would come to if it were launched now."""

    content: Content
    foreseen: Foreseen
    estimate: Estimate | None
    """Of a new run that nothing is in the way of."""
    code: str
    """The call of Python that launches the same."""


def check_generation(generation: object) -> None:
    """Refuse what is no number of a generation.

    Raises
    ------
    BadConfig
        It is neither None nor an integer from 1.
    """
    if generation is None or (type(generation) is int and generation >= 1):
        return
    raise BadConfig(
        f"generation={generation!r}: an integer from 1 is allowed, or None for the run that "
        "is there. Type generation=2 to compute completed content anew"
    )


# --- what can be wished for -----------------------------------------------------------------


def trainings(bench: Workbench) -> list[dict[str, Any]]:
    """Return the registered trainings by id, with a few words about each."""
    with bench.store.read() as connection:
        known = records.all_trainings(connection)
    return [
        {
            "training_id": one.training_id,
            "about": f"{short(one.spec['model']['source'])} · "
            f"{one.spec['hookpoint']['hook_name']} · {one.spec['sae']['d_sae']:,} features",
        }
        for one in known
    ]


def corpora(bench: Workbench, training_id: str) -> list[dict[str, Any]]:
    """Return the corpora of a training's runs that are still there, the newest first.

    Each is ``{run_id, source, n_tokens, context_size, config}``; ``config`` are the fields of
    the run's config that are not at their defaults, each as a value in TOML: with these the
    corpus fits.

    Raises
    ------
    UnknownTraining
        There is no such training.
    """
    bench.training(training_id)
    found: dict[str, dict[str, Any]] = {}
    for run in service.runs_of(bench, training_id):
        if len(found) == MAX_CORPORA:
            break
        if run.corpus_digest in found or not _is_there(bench, run):
            continue
        found[run.corpus_digest] = {
            "run_id": run.run_id,
            "source": run.corpus["source"],
            "n_tokens": run.n_tokens,
            "context_size": run.corpus["context_size"],
            "config": {
                name: json.dumps(value)
                for name, value in _chosen(bench.config_of(run)).items()
            },
        }
    return list(found.values())


def _is_there(bench: Workbench, run: RunRecord) -> bool:
    return (bench.paths.corpora / run.corpus_digest).is_dir()


def _chosen(config: ExtractionConfig) -> dict[str, Any]:
    """Return the fields that are not at their defaults, as plain values."""
    usual = ExtractionConfig().to_dict()
    return {name: one for name, one in config.to_dict().items() if one != usual[name]}


# --- what it would come to, and doing it ----------------------------------------------------


def foresee(bench: Workbench, wish: Wish, *, progress: Progress | None = None) -> Prospect:
    """Say what a launch would come to; the corpus is prepared for it, nothing is launched.

    Parameters
    ----------
    bench : Workbench
        The workspace.
    wish : Wish
        What would be launched.
    progress : callable, optional
        Told of the preparation of the corpus; see :data:`extraction_kit.corpora.Progress`.

    Raises
    ------
    ExtractionKitError
        Whatever a launch would raise before its rule decides: of the training, the corpus,
        the config, the generation or the disk. What the rule decides is in the value.
    """
    content = _content(bench, wish, progress)
    foreseen = service.foresee(bench, content, generation=wish.generation)
    is_new = foreseen.answer is Answer.NEW_RUN and foreseen.refusal is None
    training, corpus, config = content.training, content.corpus, content.config
    takes = None
    if is_new:
        # A launch never opens the model's weights, and the worker may see what this machine
        # does not.
        with suppress(BadModel):
            takes = estimate(bench, training, corpus=corpus, config=config)
    return Prospect(
        content=content, foreseen=foreseen, estimate=takes, code=_code(wish, config)
    )


def launch(bench: Workbench, wish: Wish, *, progress: Progress | None = None) -> Launched:
    """Launch what a form asks for; see :func:`extraction_kit.service.launch`."""
    content = _content(bench, wish, progress)
    return service.launch(bench, content, generation=wish.generation)


def _content(bench: Workbench, wish: Wish, progress: Progress | None) -> Content:
    training = bench.training(wish.training_id)
    config = ExtractionConfig.from_toml(wish.config)
    source, column = _source(bench, wish), _column(wish)
    try:
        corpus = bench.prepare_corpus(
            training, source, config=config, text_column=column, progress=progress
        )
    except PreparedOtherwise as error:
        if error.name == "tokenizer":
            raise
        raise BadCorpus(_other_texts(error, wish)) from None
    return service.content_of(bench, training, corpus=corpus, config=config)


def _source(bench: Workbench, wish: Wish) -> Corpus | str:
    if wish.run_id is not None:
        run = service.read_run(bench, wish.run_id)
        if run.deleted_at is not None:  # its corpus may be gone
            raise deleted(run)
        return bench.corpus_of(run)
    path = (wish.path or "").strip()
    if not path:
        raise BadCorpus(
            "no corpus is given: type the path of a .txt, .jsonl, .parquet or .npy file"
        )
    return path


def _column(wish: Wish) -> str | None:
    column = (wish.text_column or "").strip()
    if column and wish.run_id is not None:
        raise BadCorpus(
            f"text_column={column!r}: the corpus of run {wish.run_id} has no columns any more. "
            "Leave it out, or give the path of the file"
        )
    return column or None


def _other_texts(error: PreparedOtherwise, wish: Wish) -> str:
    """Say in the words of the form why the corpus of an earlier run does not fit."""
    name = _FIELDS.get(error.name, error.name)
    return (
        f"{name}: the corpus of run {str(wish.run_id)[:8]} was prepared with {error.made}, and "
        f'{error.asked} is asked for. Choose "A file…" as the corpus and type the path of its '
        f"texts, or set {name} back"
    )


def _code(wish: Wish, config: ExtractionConfig) -> str:
    corpus = (
        repr((wish.path or "").strip())
        if wish.run_id is None
        else f"ws.run({wish.run_id!r}).corpus"
    )
    chosen = ", ".join(f"{name}={value!r}" for name, value in _chosen(config).items())
    parts = [repr(wish.training_id), f"corpus={corpus}"]
    if column := _column(wish):
        parts.append(f"text_column={column!r}")
    if chosen:
        parts.append(f"config=xk.ExtractionConfig({chosen})")
    if wish.generation is not None:
        parts.append(f"generation={wish.generation}")
    return f"run = ws.launch({', '.join(parts)})"
