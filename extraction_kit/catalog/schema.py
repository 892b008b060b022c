"""The tables, columns and macros of the catalog as text, for people."""

from collections.abc import Iterator

from extraction_kit.catalog.macros import MACROS
from extraction_kit.catalog.relations import keys_of
from extraction_kit.catalog.tables import CATALOG


def reference() -> str:
    """Return all tables, columns, types, units and meanings, and the macros, as Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for table in CATALOG:
        yield f"**`{table.name}`**: {table.meaning}"
        yield ""
        yield "| column | type | unit | meaning |"
        yield "|---|---|---|---|"
        for column in (*keys_of(table), *table.columns):
            unit = _escaped(column.unit)
            yield f"| `{column.name}` | {column.type} | {unit} | {_escaped(column.meaning)} |"
        yield ""
    yield "| question | what it returns |"
    yield "|---|---|"
    for macro in MACROS:
        yield f"| `FROM {macro.call}` | {_escaped(macro.comment)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("^", "\\^")
