"""What people and programs say of features: checked, kept in the ledger, in and out as CSV."""

import csv
import io
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import SupportsIndex

from extraction_kit.atomic import write_file
from extraction_kit.errors import BadLabel
from extraction_kit.ledger import labels
from extraction_kit.ledger.labels import Label
from extraction_kit.results import feature_number
from extraction_kit.trainings import Training
from extraction_kit.workbench import Workbench

LONGEST = {"name": 200, "description": 20_000, "source": 200}
"""Characters."""
_READ = ("feature", "name", "description", "source")
_WRITTEN = (*_READ, "training_id")


class Kept(Enum):
    """What is left out of a call stays as it is."""

    KEPT = "kept"

    def __repr__(self) -> str:
        """Return what the signature shows."""
        return "as it is"


KEPT = Kept.KEPT


def label(
    bench: Workbench,
    training_id: str,
    feature: SupportsIndex,
    *,
    name: str | Kept | None = KEPT,
    description: str | Kept | None = KEPT,
    source: str | None = None,
) -> bool:
    """Name or describe one feature of the SAE of a training.

    Returns
    -------
    bool
        True if something changed; the same again is no change.

    Raises
    ------
    UnknownTraining, UnknownFeature, BadLabel
        The message says what is allowed; nothing was changed.
    """
    training = bench.training(training_id)
    number = feature_number(feature, training.sae.d_sae)
    given = {"name": name, "description": description}
    if all(text is KEPT for text in given.values()):
        raise BadLabel(
            f"feature {number}: nothing is said of it. Type ws.label({training_id!r}, {number}, "
            "name=..., description=...); None takes one away"
        )
    texts = {k: _text(k, v) for k, v in given.items() if not isinstance(v, Kept)}
    said_by = _text("source", source)
    by = bench.mover()
    with bench.store.write() as connection:
        before = labels.of_feature(connection, training.sae.digest, number)
        after = _after(before, number, texts, source=said_by)
        changes = [] if _is_same(before, after) else [after]
        labels.add(connection, training.sae.digest, changes, by=by)
    return bool(changes)


def _after(
    before: Label | None,
    feature: int,
    texts: Mapping[str, str | None],
    *,
    source: str | None,
) -> Label:
    kept = (
        {} if before is None else {"name": before.name, "description": before.description}
    )
    values = {"name": None, "description": None} | kept | dict(texts)
    return Label(feature=feature, source=source, **values)


def _is_same(before: Label | None, after: Label) -> bool:
    return after.is_removal if before is None else before == after


def _text(what: str, value: object) -> str | None:
    """Return a text without blanks around it; None for an empty one."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadLabel(f"{what}={value!r}: a text is allowed, or None for none")
    text, longest = value.strip(), LONGEST[what]
    if len(text) > longest:
        raise BadLabel(
            f"{what}={text[:40] + '...'!r} has {len(text):,} characters: up to {longest:,} are "
            "allowed"
        )
    lines = text.splitlines()
    if what != "description" and len(lines) > 1:
        raise BadLabel(
            f"{what}={text!r}: one line is allowed; longer texts are descriptions"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadLabel(f"{what}={text!r} is no text that can be stored ({error})") from None
    if "\0" in text:
        raise BadLabel(f"{what}={text!r}: a NUL character cannot be stored")
    return text or None


# --- tables of labels -----------------------------------------------------------------------


def export(bench: Workbench, training_id: str, path: Path | str) -> int:
    """Write the labels of the SAE of a training as CSV, in UTF-8; return how many."""
    training = bench.training(training_id)
    with bench.store.read() as connection:
        found = labels.of_sae(connection, training.sae.digest)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_WRITTEN)
    for one in found.values():
        writer.writerow([*(getattr(one, column) for column in _READ), training_id])
    write_file(Path(path).expanduser(), table.getvalue().encode())
    return len(found)


def import_(bench: Workbench, training_id: str, path: Path | str) -> int:
    """Read labels of the SAE of a training from a CSV: all rows, or none.

    The first row names the columns: ``feature``, then ``name`` or ``description`` or both,
    and perhaps ``source``; a ``training_id``, which :func:`export` writes, is not read. A
    column that is absent leaves what is there, but for ``source``, which tells of the whole
    row; features that are not in the file are left.

    Returns
    -------
    int
        How many labels changed.

    Raises
    ------
    UnknownTraining, BadLabel
        The message names row, value and what is allowed; nothing was changed.
    """
    training = bench.training(training_id)
    rows = list(_rows(Path(path).expanduser(), training))
    by = bench.mover()
    with bench.store.write() as connection:
        known = labels.of_sae(connection, training.sae.digest)
        changes = []
        for feature, texts in rows:
            source = texts.pop("source", None)
            before = known.get(feature)
            after = _after(before, feature, texts, source=source)
            if not _is_same(before, after):
                changes.append(after)
        labels.add(connection, training.sae.digest, changes, by=by)
    return len(changes)


def _rows(path: Path, training: Training) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Yield each feature with its texts; refuse the file at the first thing that is not right."""
    reader = csv.reader(io.StringIO(_content(path), newline=""), strict=True)
    number, seen = 0, dict[int, int]()
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        number = 1
        _check_header(path, header)
        for number, cells in enumerate(reader, 2):
            if not cells:  # an empty line
                continue
            feature, texts = _row(header, cells, training.sae.d_sae)
            _check_new(feature, seen.setdefault(feature, number), number)
            yield feature, texts
    except (BadLabel, csv.Error) as error:
        row = number + isinstance(error, csv.Error)  # which could not be read to its end
        raise BadLabel(f"{path}, row {row}: {error}. Nothing was imported") from None


def _check_new(feature: int, first: int, number: int) -> None:
    if first != number:
        raise BadLabel(f"feature={feature}: it is in row {first} already, once is allowed")


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # spreadsheets begin with a mark
    except OSError as error:
        raise BadLabel(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        row = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise BadLabel(
            f"{path}, line {row}: byte {byte:#04x} is no UTF-8. Save it as CSV in UTF-8. "
            "Nothing was imported"
        ) from error


def _check_header(path: Path, header: list[str]) -> None:
    unknown = [name for name in header if name not in _WRITTEN]
    twice = [name for name in header if header.count(name) > 1]
    wanted = {"name", "description"} & set(header)
    if "feature" in header and wanted and not unknown and not twice:
        return
    raise BadLabel(
        f"its columns are {', '.join(header) or 'none'}: feature and name or description are "
        "needed, source is allowed, each once"
        + (f"; {path.name} has the unknown column {unknown[0]!r}" if unknown else "")
    )


def _row(
    header: list[str], cells: list[str], d_sae: int
) -> tuple[int, dict[str, str | None]]:
    if len(cells) != len(header):
        raise BadLabel(f"it has {len(cells)} cells, the first row names {len(header)}")
    row = dict(zip(header, cells, strict=True))
    written = row.pop("feature").strip()
    row.pop("training_id", None)
    if not written.isascii() or not written.isdigit() or int(written) >= d_sae:
        raise BadLabel(f"feature={written!r}: an integer from 0 to {d_sae - 1} is allowed")
    texts = {name: _text(name, cell) for name, cell in row.items()}
    if texts.get("name") is None and texts.get("description") is None:
        raise BadLabel(
            f"feature={written} has neither name nor description: give one, or leave the row "
            "out and remove its label with ws.unlabel(...)"
        )
    return int(written), texts
