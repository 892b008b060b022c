"""What was found: published results as Parquet, questions about them through DuckDB."""

from extraction_kit.catalog.publish import (
    publish,
    read_manifest,
    stage,
    staged_and_sound,
    verify,
)
from extraction_kit.catalog.reading import (
    ExampleWindow,
    example_windows,
    examples,
    features,
    histogram,
)
from extraction_kit.catalog.relations import CatalogRows
from extraction_kit.catalog.session import Session
from extraction_kit.catalog.snapshot import write_snapshot

__all__ = [
    "CatalogRows",
    "ExampleWindow",
    "Session",
    "example_windows",
    "examples",
    "features",
    "histogram",
    "publish",
    "read_manifest",
    "stage",
    "staged_and_sound",
    "verify",
    "write_snapshot",
]
