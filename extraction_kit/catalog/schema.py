"""The tables, columns and macros of the catalog as text, for people.

``python -m extraction_kit.catalog.schema README.md`` puts it into the README.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from extraction_kit.catalog.macros import MACROS
from extraction_kit.catalog.relations import columns_of
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
        for column in columns_of(table):
            unit = _escaped(column.unit)
            yield f"| `{column.name}` | {column.type} | {unit} | {_escaped(column.meaning)} |"
        yield ""
    yield "| question | what it returns |"
    yield "|---|---|"
    for macro in MACROS:
        yield f"| `FROM {macro.call}` | {_escaped(macro.comment)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("^", "\\^")


def put_into(readme: Path) -> None:
    """Replace the reference between its two marks in `readme`."""
    marks = (
        r"(<summary>Every table[^\n]*</summary>\n\n).*?\n*(</details>\n<!-- end of schema)"
    )
    made, n = re.subn(
        marks,
        lambda found: f"{found[1]}{reference()}\n\n{found[2]}",
        readme.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if n != 1:
        raise ValueError(f"{readme} has no place for the schema")
    readme.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    put_into(Path(sys.argv[1]))
