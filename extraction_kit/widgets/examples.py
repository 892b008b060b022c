"""Examples of one feature as highlighted text: static, for every place that shows HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from extraction_kit.widgets import static, words


class Window(Protocol):
    """One example with its surroundings; `catalog.reading.ExampleWindow` is one."""

    @property
    def act(self) -> float:
        """Activation at the peak."""
        ...

    @property
    def tokens(self) -> Sequence[str]:
        """Texts of the tokens."""
        ...

    @property
    def acts(self) -> Sequence[float]:
        """Activation of each token, 0.0 where the feature is not active."""
        ...


@dataclass(frozen=True, kw_only=True)
class ExamplesPage:
    """Examples of a feature of one group.

    The warmth of a token is its activation over the maximum of all examples shown.
    """

    feature: int
    windows: tuple[Window, ...]
    group: str = "top"

    def __repr__(self) -> str:
        """Return the number of examples and the maximum."""
        peak = words.number(max((window.act for window in self.windows), default=None))
        return f"<feature {self.feature}: {self._number()}, max {peak}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:  # noqa: ANN401 - IPython's
        return {"text/plain": repr(self), "text/html": self._html()}

    def _number(self) -> str:
        kind = "" if self.group == "top" else f"{self.group} "
        return f"{len(self.windows)} {kind}examples"

    def _html(self) -> str:
        if not self.windows:
            said = "never fired" if self.group == "top" else f"no example of {self.group}"
            return static.frame(f"<strong>feature {self.feature}</strong> · {said}")
        peak = max(window.act for window in self.windows)
        rows = "".join(
            '<tr><td style="text-align:right;vertical-align:top">'
            f"{words.number(window.act)}</td>"
            f'<td style="text-align:left">{static.heat(window.tokens, window.acts, peak)}'
            "</td></tr>"
            for window in self.windows
        )
        head = f"<strong>feature {self.feature}</strong> · {self._number()}"
        return static.frame(f"{head}<table>{rows}</table>")
