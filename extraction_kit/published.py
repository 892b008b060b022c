"""Read a published result as rows of the ledger, if all of it fits together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from extraction_kit.catalog.publish import MANIFEST, bytes_of, read_manifest, verify
from extraction_kit.config import STATISTICS_FORMAT, ExtractionConfig
from extraction_kit.ledger.restoring import PublishedRun
from extraction_kit.lifecycle import check_training_id, digest_of, job_id_of, run_id_of
from extraction_kit.trainings import Training
from extraction_kit.workbench import Workbench

_NEEDED = (
    "run_id", "training_id", "generation", "attempt", "content_key", "training", "corpus",
    "config", "settings", "n_tokens", "created_at", "created_by", "published_at", "summary",
    "result_digest",
)  # fmt: skip
_BACKUP = (
    "Put the folder back from a backup and type `extraction-kit repair` again. Without one, "
    "only computing it anew helps"
)


@dataclass(frozen=True, kw_only=True)
class Unfit:
    """A folder that is no sound result of the run that it is named for."""

    subject: str
    text: str
    run_id: str | None  # the run that the folder is named for


class _Misfit(ValueError):
    """Two parts of a result contradict each other."""


def read_published(bench: Workbench, folder: Path) -> PublishedRun | Unfit:
    """Return what the result in `folder` says of its run, every byte of it verified."""
    run_id = folder.name.removeprefix("run_id=") if "=" in folder.name else None

    def unfit(text: str) -> Unfit:
        return Unfit(subject=str(folder), text=text, run_id=run_id)

    manifest = read_manifest(folder)
    if manifest is None:
        return unfit(
            f"{MANIFEST} is missing or torn: this is no whole result. {_advice(run_id)}"
        )
    missing = [name for name in _NEEDED if manifest.get(name) is None]
    if missing:
        release = manifest.get("kit_version", "an unknown release")
        return unfit(
            f"its {MANIFEST} (written by {release}) does not name {', '.join(missing)}: the "
            "ledger's row cannot be restored from it. The numbers can be read directly"
        )
    try:
        _check(bench, folder, manifest)
        published = _rows(bench, manifest, folder)
    except _Misfit as misfit:
        return unfit(f"{misfit}. Not restored: what does not fit together is no evidence")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        words = f"{type(error).__name__}: {error}"
        return unfit(f"its {MANIFEST} cannot be understood ({words}). {_BACKUP}")
    problems = verify(folder)
    return unfit(f"{'; '.join(problems)}. {_advice(run_id)}") if problems else published


def deleted_at(bench: Workbench, run_id: str) -> datetime | None:
    """Return since when a run is deleted, as is written beside the results; None if not."""
    path = bench.paths.tombstone_of(run_id)
    if not path.exists():
        return None
    try:
        return datetime.fromisoformat(json.loads(path.read_bytes())["deleted_at"])
    except (OSError, ValueError, KeyError, TypeError):  # it is there: that is what counts
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _advice(run_id: str | None) -> str:
    if run_id is None:
        return "If it is not one, move it out of the results"
    return f"{_BACKUP}: launch the same content with the next generation"


def _check(bench: Workbench, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise `_Misfit` unless name, ids, digests and contents belong together."""
    training = Training.from_dict(manifest["training"])
    training_id = check_training_id(manifest["training_id"])
    wanted = run_id_of(training_id, manifest["content_key"], manifest["generation"])
    corpus = manifest["corpus"]
    pairs = (
        ("run id of its training, content and generation", manifest["run_id"], wanted),
        ("training id", training.training_id, training_id),
        ("training digest", training.digest, _training_digest(training)),
        ("tokenizer of its corpus", corpus["tokenizer_digest"], training.tokenizer.digest),
        ("n_tokens", manifest["n_tokens"], corpus["n_tokens"]),
        ("content key", manifest["content_key"], _content_key(bench, training, manifest)),
    )
    for what, found, should in pairs:
        if found != should:
            raise _Misfit(f"its {what} does not fit: it is {found}, {should} is right")
    if folder.name != f"run_id={wanted}":
        raise _Misfit(
            f"the folder of this result must be named run_id={wanted}: rename it if there is "
            "none of that name, else move it out of the results"
        )
    if manifest["attempt"] < 1 or manifest["generation"] < 1:
        raise _Misfit("attempt and generation are integers from 1")


def _training_digest(training: Training) -> str:
    place = [training.hookpoint.module_path, training.hookpoint.side]
    return digest_of(
        {
            "sae": training.sae.digest,
            "model": training.model.digest,
            "hookpoint": place,
            "tokenizer": training.tokenizer.digest,
        }
    )


def _content_key(bench: Workbench, training: Training, manifest: Mapping[str, Any]) -> str:
    if manifest["format"] != STATISTICS_FORMAT:  # its recipe is another release's
        return str(manifest["content_key"])
    corpus = bench.recorded_corpus(manifest["corpus"])  # pad_id is no part of the key
    config = ExtractionConfig.from_dict(manifest["config"])
    return bench.content_key(training, corpus, config)


def _rows(bench: Workbench, manifest: Mapping[str, Any], folder: Path) -> PublishedRun:
    created_at = datetime.fromisoformat(manifest["created_at"])
    job_id = job_id_of(
        manifest["training_id"],
        manifest["content_key"],
        generation=manifest["generation"],
        attempt=manifest["attempt"],
    )
    same = (
        "training_id", "content_key", "generation", "corpus", "config", "settings",
        "n_tokens", "created_by", "result_digest", "summary",
    )  # fmt: skip
    return PublishedRun(
        run_id=manifest["run_id"],
        facts={name: manifest[name] for name in same}
        | {
            "corpus_digest": manifest["corpus"]["digest"],
            "created_at": created_at,
            "results_dir": str(folder),
            "published_attempt": manifest["attempt"],
        },
        defaults={
            "job_id": manifest.get("job_id", job_id),
            "kit_version": manifest.get("kit_version", "unknown"),
            "completed_at": datetime.fromisoformat(manifest["published_at"]),
            "results_bytes": bytes_of(manifest),
            "deleted_at": deleted_at(bench, manifest["run_id"]),
        },
        training={
            "training_id": manifest["training_id"],
            "digest": manifest["training"]["digest"],
            "spec": manifest["training"],
            "created_at": created_at,
            "created_by": manifest["created_by"],
        },
    )
