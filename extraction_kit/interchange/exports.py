"""The formats of a result, as methods of ``run.export``."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, SupportsIndex

from extraction_kit.catalog.bulk import ResultFiles
from extraction_kit.catalog.listing import Labels
from extraction_kit.corpora import Corpus
from extraction_kit.errors import BadExport
from extraction_kit.interchange import circuit_tracer, delphi, neuronpedia, report, tables

Features = Iterable[SupportsIndex] | None
_FORMATS = ("neuronpedia", "circuit_tracer", "delphi", "report", "parquet", "csv")


class Exports:
    """The formats that a result can be written in: one method each.

    All of them write something new at `path` and return where it is; a path at which
    something is raises `BadExport`, and an export that fails leaves nothing behind. A number
    that the run did not measure is left out, never filled in. `features` are indices, in any
    order; None takes all. Indices outside the SAE raise `UnknownFeature`.

    Parameters
    ----------
    files : ResultFiles
        Of the result.
    labels : callable
        Returns the name and the description of each feature that has a label; None where
        nothing keeps labels.
    """

    def __init__(
        self, files: ResultFiles, *, labels: Callable[[], Labels | None] = lambda: None
    ) -> None:
        self._files = files
        self._labels = labels

    def neuronpedia(  # noqa: PLR0913 - names that only a person knows
        self,
        path: Path | str,
        *,
        model_id: str,
        source_set: str,
        layer: int | None = None,
        features: Features = None,
        creator_name: str = "",
        description: str | None = None,
        creator_id: str = neuronpedia.CREATOR_ID,
    ) -> Path:
        """Write the folder that Neuronpedia imports.

        ``<path>/<model_id>/<layer>-<source_set>/`` with ``model.jsonl``,
        ``sourceset.jsonl``, ``source.jsonl``, ``features/batch-*.jsonl.gz`` and
        ``activations/batch-*.jsonl.gz``: densities, maxima, logits, nearest decoder rows,
        examples ``top`` and of the four octaves. The histogram has 50 equal bins, for which
        the tokens within each 1/8 octave are taken to lie evenly. Absent, because the run
        does not measure them: correlations, neuron alignment, the histogram of all logits,
        and the share of tokens in an octave. Labels are explanations by the creator, name
        before description (``explanations/batch-0.jsonl.gz``); Neuronpedia shows them with
        the feature, its search by meaning needs embeddings, which are not made here.
        Importing it twice adds nothing.

        Parameters
        ----------
        path : path
            New folder.
        model_id : str
            Model as Neuronpedia names it, e.g. ``gemma-2-2b``.
        source_set : str
            Set of SAEs without the layer, e.g. ``res-16k``.
        layer : int, optional
            None takes that of the hookpoint.
        features : iterable of int, optional
            All if None.
        creator_name, description : str, optional
            Shown with the set.
        creator_id : str
            User in the database that the import belongs to; the default is the one that a
            local Neuronpedia is set up with.

        Raises
        ------
        BadExport, UnknownFeature, WorkspaceUnusable
            See :class:`Exports`; or a name cannot be used.
        """
        source = neuronpedia.Source(
            model_id=model_id,
            source_set=source_set,
            layer=self._layer(layer),
            creator_id=creator_id,
            creator_name=creator_name,
            description=source_set if description is None else description,
        )
        return neuronpedia.write(
            self._files,
            path,
            source=source,
            features=features,
            labels=self._labels() or {},
        )

    def circuit_tracer(
        self,
        path: Path | str,
        *,
        layer: int | None = None,
        transcoder_id: str | None = None,
        features: Features = None,
    ) -> Path:
        """Write one JSON file per feature, named by its number in circuit-tracer's graphs.

        Put the folder below the ``data_dir`` of ``serve(...)`` and name it in the graph's
        ``scan``: ``./data/<folder>``. Several layers may share a folder: move the files.
        Quantiles and histogram (50 equal bins) are those of the run's logarithmic histogram,
        right within 1/8 octave. Without logits in the run their lists are empty.

        Parameters
        ----------
        path : path
            New folder.
        layer : int, optional
            Layer in the graph; None takes that of the hookpoint.
        transcoder_id : str, optional
            None takes the training id.
        features : iterable of int, optional
            All if None.

        Raises
        ------
        BadExport, UnknownFeature, WorkspaceUnusable
            See :class:`Exports`.
        """
        return circuit_tracer.write(
            self._files,
            path,
            layer=self._layer(layer),
            transcoder_id=self._training_id() if transcoder_id is None else transcoder_id,
            features=features,
        )

    def delphi(
        self,
        path: Path | str,
        *,
        features: Features = None,
        incomplete: bool = False,
        module: str | None = None,
        n_splits: int = 5,
    ) -> Path:
        """Write a cache of latents that Delphi's ``LatentDataset(raw_dir=path)`` loads.

        It holds the contexts in which the chosen features have examples, whole, and the
        activations in the windows of these examples, in float32. Delphi takes every other
        token for one on which the feature is not active. So features whose examples do not
        hold all of their active tokens are refused, unless you say `incomplete`: top
        activations are right then, frequencies and non-activating examples are not. Launch
        with a large ``top_k`` and a window as wide as the context for complete ones. Shorter
        contexts are padded.

        Parameters
        ----------
        path : path
            New folder, Delphi's ``raw_dir``.
        features : iterable of int, optional
            All if None.
        incomplete : bool
            Also write features of which the examples hold only a part.
        module : str, optional
            Name of the folder in `path`, Delphi's hookpoint; None takes the module's path.
        n_splits : int
            Files that the latents are spread over.

        Raises
        ------
        BadExport, UnknownFeature, WorkspaceUnusable
            See :class:`Exports`; or a feature is not known completely.
        """
        hookpoint = self._files.manifest["training"]["hookpoint"]
        return delphi.write(
            self._files,
            path,
            module=hookpoint["module_path"] if module is None else module,
            features=features,
            incomplete=incomplete,
            n_splits=n_splits,
            pad_id=Corpus.load(self._files.contexts.parent).pad_id,
        )

    def report(
        self,
        path: Path | str,
        *,
        features: Iterable[SupportsIndex],
        k: int = 10,
        title: str | None = None,
    ) -> Path:
        """Write one HTML file about some features: labels, statistics, logits, examples.

        It needs no other file and no network, runs no script, and follows the reader's light
        or dark theme.

        Parameters
        ----------
        path : path
            New file, e.g. ``dates.html``.
        features : iterable of int
            At most 2,000, shown in this order.
        k : int
            Examples of each group, at most.
        title : str, optional
            None takes the training id.

        Raises
        ------
        BadExport, UnknownFeature, WorkspaceUnusable
            See :class:`Exports`.
        """
        return report.write(
            self._files,
            path,
            labels=self._labels() or {},
            features=features,
            k=k,
            title=f"Features of {self._training_id()}" if title is None else title,
        )

    def parquet(self, path: Path | str, *, features: Features = None) -> Path:
        """Write ``features``, ``examples`` and, where measured, ``logits``, ``neighbours``.

        As Parquet; examples with their token texts and one activation per token. Columns are
        those of the catalog (``ws.sql('DESCRIBE features')``), labels among them.

        Parameters
        ----------
        path : path
            New folder.
        features : iterable of int, optional
            All if None.

        Raises
        ------
        BadExport, UnknownFeature, WorkspaceUnusable
            See :class:`Exports`.
        """
        return self._tables(path, as_csv=False, features=features)

    def csv(self, path: Path | str, *, features: Features = None) -> Path:
        """Write what :meth:`parquet` writes as CSV; tokens and activations as JSON lists.

        Parameters and errors as for :meth:`parquet`.
        """
        return self._tables(path, as_csv=True, features=features)

    def _tables(self, path: Path | str, *, as_csv: bool, features: Features) -> Path:
        return tables.write(
            self._files, path, as_csv=as_csv, features=features, labels=self._labels()
        )

    def _layer(self, layer: int | None) -> int:
        found = self._files.manifest["training"]["hookpoint"]["layer"]
        layer = found if layer is None else layer
        if type(layer) is not int or layer < 0:
            raise BadExport(
                f"layer={layer!r}: this format needs the layer that the SAE reads, an "
                "integer from 0, for example layer=9"
            )
        return layer

    def _training_id(self) -> str:
        return str(self._files.manifest["training"]["training_id"])

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - refused
        """Say what to type: the format is a method."""
        name = args[0] if args and args[0] in _FORMATS else _FORMATS[0]
        del kwargs
        raise BadExport(f"type run.export.{name}(path, ...): {self._names()}")

    def __getattr__(self, name: str) -> NoReturn:
        """Say which formats there are."""
        raise AttributeError(f"no export {name!r}: {self._names()}")

    @staticmethod
    def _names() -> str:
        return f"the formats are {', '.join(_FORMATS)}"

    def __repr__(self) -> str:
        """Return the formats."""
        return f"<exports: {', '.join(_FORMATS)}>"
