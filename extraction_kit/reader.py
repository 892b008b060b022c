"""Reading a result: the same questions of a published run and of one made in this process."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from extraction_kit import comparison, plots
from extraction_kit.catalog import reading
from extraction_kit.catalog.asking import manifest_of
from extraction_kit.catalog.bulk import ResultFiles
from extraction_kit.catalog.reading import ExampleWindow
from extraction_kit.errors import BadQuery
from extraction_kit.interchange import Exports
from extraction_kit.widgets.browsed import Browsed

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    from matplotlib.axes import Axes

    from extraction_kit.catalog.listing import Labels
    from extraction_kit.widgets.against import Against
    from extraction_kit.widgets.browser import FeatureBrowser


class ResultReader(ABC):
    """What can be read of a result; a subclass says where its files are."""

    @abstractmethod
    def _results(self) -> Path:
        """Return the folder with the Parquet files, or raise what tells why there is none."""

    @abstractmethod
    def _read_windows(
        self, feature: SupportsIndex, *, k: int, group: str
    ) -> list[ExampleWindow]:
        """Return decoded examples of one feature."""

    @abstractmethod
    def _vocab(self) -> Path:
        """Return the file with the texts of the tokens."""

    @abstractmethod
    def _contexts(self) -> Path:
        """Return the file with the token ids of the corpus."""

    @abstractmethod
    def _browsed(self) -> Browsed:
        """Return what the feature browser reads."""

    @abstractmethod
    def _cache(self) -> Path:
        """Return the folder for what can be computed again."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """Numbers of the whole run: tokens, L0, FVU, dead features, speed, memory."""
        found: Mapping[str, Any] = self._manifest()["summary"]
        return found

    @property
    def provenance(self) -> Mapping[str, Any]:
        """How the numbers came about: numerics, versions, units, masks, preflight."""
        found: Mapping[str, Any] = self._manifest()["provenance"]
        return found

    def _kept(self, rows: "duckdb.DuckDBPyRelation") -> "duckdb.DuckDBPyRelation":
        """Return `rows` as they are handed over: here, read when they are asked for."""
        return rows

    def features(self) -> "duckdb.DuckDBPyRelation":
        """Return one row per feature: ``.df()``, ``.pl()``, ``.arrow()``, or SQL on it."""
        return self._kept(reading.features(self._results()))

    def examples(
        self,
        feature: SupportsIndex | None = None,
        *,
        k: int | None = None,
        group: str = "top",
    ) -> "duckdb.DuckDBPyRelation":
        """Return examples of one feature, or of all, as rows.

        Parameters
        ----------
        feature : int, optional
            All features if None.
        k : int, optional
            At most so many per feature.
        group : str
            ``top``; ``band_1`` to ``band_4``, drawn from the octaves below the largest
            activation; ``random``, drawn from all contexts in which the feature is active;
            ``silent``, drawn where it is not.

        Raises
        ------
        UnknownFeature
            `feature` is outside the SAE.
        BadQuery
            There is no such group.
        """
        return self._kept(reading.examples(self._results(), feature, k=k, group=group))

    def windows(
        self, feature: SupportsIndex, *, k: int = 20, group: str = "top"
    ) -> list[ExampleWindow]:
        """Return examples of one feature with token texts and activations."""
        self._results()
        return self._read_windows(feature, k=k, group=group)

    def show_examples(
        self, feature: SupportsIndex, *, k: int = 10, group: str = "top"
    ) -> Any:  # noqa: ANN401 - IPython's
        """Return examples of one feature as highlighted text for a notebook."""
        from extraction_kit.widgets.examples import ExamplesPage  # noqa: PLC0415 - only when shown

        windows = tuple(self.windows(feature, k=k, group=group))
        return ExamplesPage(feature=int(feature), windows=windows, group=group)

    def browse(
        self,
        feature: SupportsIndex | None = None,
        *,
        compare: "ResultReader | None" = None,
        match: str = "auto",
    ) -> "FeatureBrowser":
        """Return the feature browser: a list to sort and filter, and all of one feature.

        As the last line of a cell it is shown. What a person sees in it can be read:
        ``browser.feature``, ``browser.selection``, ``browser.sql``.

        Parameters
        ----------
        feature : int, optional
            The feature shown at first; None takes the first of the list.
        compare : Run or LocalResult, optional
            Shown side by side with this one, A and B: the list has the densities of both
            and their change, the page statistics, histogram and examples of both. Of one SAE
            each feature is shown with itself, of two SAEs of one model with the feature of
            `compare` whose decoder row has the largest cosine with its own.
        match : str
            Which features belong together: as in `Workspace.compare`.

        Raises
        ------
        UnknownFeature
            `feature` is outside the SAE.
        StillActive, RunFailed
            One of the runs has no result yet, or ended without one.
        BadQuery, BadSae
            The two cannot be compared; the message says why.
        """
        from extraction_kit.widgets.browser import FeatureBrowser  # noqa: PLC0415 - only when shown

        return FeatureBrowser(self._browsed(), feature, self._against(compare, match))

    def _against(self, other: "ResultReader | None", match: str) -> "Against | None":
        """Return the other side of the feature browser; None if nothing is compared."""
        if other is None:
            if match == "auto":
                return None
            raise BadQuery(
                f"match={match!r} says how two runs are compared: pass compare=other too"
            )
        if not isinstance(other, ResultReader):
            raise BadQuery(
                f"compare={other!r}: a run is compared with a run; type compare=ws.run('...')"
            )
        folders = self.results_folder, other.results_folder
        if folders[0].resolve() == folders[1].resolve():
            raise BadQuery("both runs are the same one: pass another one as compare=")
        pairing = comparison.pair(*folders, match=match, cache=self._cache())
        from extraction_kit.widgets.against import Against  # noqa: PLC0415 - only when shown

        return Against(browsed=other._browsed(), pairing=pairing)  # noqa: SLF001 - its own class

    def logits(
        self,
        feature: SupportsIndex | None = None,
        *,
        k: int | None = None,
        sign: str | None = None,
    ) -> "duckdb.DuckDBPyRelation":
        """Return the tokens that a feature makes most and least likely (logit lens).

        What that is, and what it leaves out: :mod:`extraction_kit.sources.lens`.

        Parameters
        ----------
        feature : int, optional
            All features if None.
        k : int, optional
            At most so many at each end.
        sign : str, optional
            ``top`` or ``bottom``; both if None.

        Raises
        ------
        UnknownFeature
            `feature` is outside the SAE.
        BadQuery
            There is no such sign, or the run has no logits; the message says why.
        """
        folder = self._results()
        return self._kept(
            reading.logits(folder, feature, vocab=self._vocab(), k=k, sign=sign)
        )

    def similar(
        self,
        feature: SupportsIndex | None = None,
        *,
        k: int | None = None,
        kind: str = "decoder",
    ) -> "duckdb.DuckDBPyRelation":
        """Return the features that are most like a feature, nearest first.

        Parameters
        ----------
        feature : int, optional
            All features if None.
        k : int, optional
            At most so many per feature.
        kind : str
            ``decoder``: by the cosine of their decoder rows; ``coactivation``: by the tokens
            on which both are active.

        Raises
        ------
        UnknownFeature
            `feature` is outside the SAE.
        BadQuery
            There is no such kind, or the run has none of it; the message says why.
        """
        return self._kept(reading.similar(self._results(), feature, k=k, kind=kind))

    def top_tokens(
        self, feature: SupportsIndex | None = None, *, k: int | None = None
    ) -> "duckdb.DuckDBPyRelation":
        """Return the tokens on which a feature is active most often, with their texts.

        One row per token id with ``n_active``, ``sum_act``, ``mean_act`` and ``max_act``;
        ``run.summary["tokens_share"]`` is the share of the corpus in which they
        were counted.

        Parameters
        ----------
        feature : int, optional
            All features if None.
        k : int, optional
            At most so many per feature.

        Raises
        ------
        UnknownFeature
            `feature` is outside the SAE.
        BadQuery
            The run did not count them.
        """
        folder = self._results()
        return self._kept(reading.top_tokens(folder, feature, vocab=self._vocab(), k=k))

    def search(self, text: str, *, k: int | None = None) -> "duckdb.DuckDBPyRelation":
        """Return the features that fire on a token, those that it marks most surely first.

        One row per feature and token: ``token``, ``text``, ``feature``, ``n_examples`` (of
        its top examples so many peak on this token), ``max_act`` (largest activation known
        on it) and ``n_active`` (where the run counted tokens, `top_tokens`: on how many of
        them it is active). A feature is found if one of its top examples peaks on the token,
        or if the token is among its `top_tokens`.

        Parameters
        ----------
        text : str
            The exact text of a token, capitals as they are. ``"Paris"`` finds ``"Paris"``
            and ``" Paris"``, which most tokenizers tell apart; ``" Paris"`` only the latter.
        k : int, optional
            At most so many rows.

        Raises
        ------
        BadQuery
            No token has this text; tokens that contain it are named.
        """
        return self._kept(reading.search(self._results(), text, vocab=self._vocab(), k=k))

    def histogram(self, feature: SupportsIndex) -> "np.ndarray":
        """Return the active tokens per bin of ``results.bin_edges()``, int64 [N_BINS]."""
        return reading.histogram(self._results(), feature)

    @property
    def results_folder(self) -> Path:
        """The folder with the Parquet files of the result and its manifest."""
        return self._results()

    @property
    def export(self) -> Exports:
        """Write the result for another program: ``run.export.neuronpedia(path, ...)`` ...

        Also ``circuit_tracer``, ``delphi``, ``report`` (HTML), ``parquet`` and ``csv``.
        """
        return Exports(
            ResultFiles(
                folder=self._results(), contexts=self._contexts(), vocab=self._vocab()
            ),
            labels=self._labels,
        )

    def _labels(self) -> "Labels | None":
        browsed = self._browsed()
        return browsed.labels() if browsed.labelled else None

    def plot_density(self, ax: "Axes | None" = None) -> "Axes":
        """Draw how many features have which density; needs matplotlib.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; None makes a figure.

        Raises
        ------
        ImportError
            matplotlib is not installed; the message says what to type.
        """
        return plots.density(self.features(), ax)

    def plot_histogram(self, feature: SupportsIndex, ax: "Axes | None" = None) -> "Axes":
        """Draw the activations of a feature on their logarithmic scale; needs matplotlib.

        Parameters and errors as for :meth:`plot_density`; `UnknownFeature` if there is none.
        """
        return plots.histogram(self.histogram(feature), int(feature), ax)

    def _manifest(self) -> Mapping[str, Any]:
        return manifest_of(self._results())
