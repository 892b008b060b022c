"""What the feature browser reads: one result, wherever its files are."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from extraction_kit.catalog.listing import LABEL, Labels, Names
from extraction_kit.corpora import Corpus

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, kw_only=True)
class Browsed:
    """One result to browse.

    `ask` may be called from any thread and raises members of
    :class:`~extraction_kit.errors.ExtractionKitError`.
    """

    title: str
    """What it is called, e.g. the training's id."""
    call: str
    """What opens the browser, e.g. ``run.browse``."""
    about: tuple[str, ...]
    """Facts beside the title."""
    key: str
    """What no other result of this title has: a run's id, the path of a folder."""
    folder: Path
    """Its Parquet files."""
    corpus: Corpus
    names: Names
    """How its tables are written in SQL."""
    ask: "Callable[[str], duckdb.DuckDBPyRelation]"
    """Answers a SELECT of these tables."""
    label: "Callable[..., object] | None" = None
    """Keeps ``name`` and ``description`` of a feature; None where nothing keeps labels."""

    @cached_property
    def labelled(self) -> bool:
        """Whether its features have labels."""
        return LABEL in self.ask(self.names["features"].select("*", "false")).columns

    def labels(self, only: Collection[int] | None = None) -> Labels:
        """Return what is said of all features (of those in `only`), as it was written."""
        if (only is not None and not only) or not self.labelled:
            return {}
        query = self.names["features"].select(
            f"feature, {LABEL}, description",
            "true" if only is None else f"feature IN ({', '.join(map(str, only))})",
            f"coalesce({LABEL}, description) IS NOT NULL",
        )
        return {
            feature: (name, description)
            for feature, name, description in self.ask(query).fetchall()
        }
