"""The page side of the widgets: files beside this one, put together without a build step."""

import re
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_EARLIER_EXPORT = r"^export default [^\n]*\n(?=[\s\S]*^export default )"


def esm(*names: str) -> str:
    """Return one module: ``page.js``, shared by all widgets, and the named files.

    A file that is a widget of its own ends with its export; the last one's counts.
    """
    return re.sub(_EARLIER_EXPORT, "", _joined("js", names), flags=re.MULTILINE)


def css(*names: str) -> str:
    """Return one style sheet: ``page.css``, shared by all widgets, and the named files."""
    return _joined("css", names)


def live(model_id: str) -> dict[str, Any]:
    """Return the part of a MIME bundle in which JupyterLab finds a widget."""
    view = {"version_major": 2, "version_minor": 0, "model_id": model_id}
    return {"application/vnd.jupyter.widget-view+json": view}


def _joined(kind: str, names: tuple[str, ...]) -> str:
    files = (_HERE / f"{name}.{kind}" for name in ("page", *names))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
