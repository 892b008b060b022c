"""Every table of the catalog, with type, unit and meaning of each column, in one place.

The same lines make the Parquet schemas, the typed empty views and the comments in the
snapshot. Types are DuckDB's names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from extraction_kit.config import STATISTICS_FORMAT
from extraction_kit.results import (
    DENSE,
    GROUPS,
    KINDS,
    N_BINS,
    SIGNS,
    ExtractionResult,
    bin_edges,
)

_BLOCK = 2**16  # features whose histograms are summed up at once
_ARROW: Mapping[str, pa.DataType] = MappingProxyType(
    {
        "BOOLEAN": pa.bool_(),
        "SMALLINT": pa.int16(),
        "INTEGER": pa.int32(),
        "BIGINT": pa.int64(),
        "FLOAT": pa.float32(),
        "DOUBLE": pa.float64(),
        "VARCHAR": pa.string(),
        "BLOB": pa.binary(),
        "TIMESTAMP": pa.timestamp("us"),
        # 64-bit offsets: an SAE with a million features has more than 2^31 window tokens
        "INTEGER[]": pa.large_list(pa.int32()),
        "BIGINT[]": pa.large_list(pa.int64()),
        "FLOAT[]": pa.large_list(pa.float32()),
    }
)


@dataclass(frozen=True)
class Column:
    """One column: name, DuckDB type, unit ("" if it has none), meaning."""

    name: str
    type: str
    unit: str
    meaning: str

    @property
    def comment(self) -> str:
        """Meaning and unit in one line."""
        return f"{self.meaning} [{self.unit}]" if self.unit else self.meaning


@dataclass(frozen=True)
class Table:
    """One table or view."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    since: int = 1
    """Statistics format of the first results that have it."""

    @property
    def file(self) -> str:
        """Name of its Parquet file in the folder of a run."""
        return f"{self.name}.parquet"

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema; meaning and unit travel in the metadata of each field."""
        return pa.schema(
            [
                pa.field(
                    c.name, _ARROW[c.type], metadata={"unit": c.unit, "meaning": c.meaning}
                )
                for c in self.columns
            ]
        )


FEATURES = Table(
    "features",
    "One row per feature of each completed run",
    (
        Column("feature", "INTEGER", "", "index of the feature in the SAE"),
        Column("n_active", "BIGINT", "tokens", "valid tokens on which it is active"),
        Column("n_contexts", "BIGINT", "contexts", "contexts with an active token"),
        Column("sum_act", "DOUBLE", "activation", "sum over active tokens"),
        Column("sum_sq_act", "DOUBLE", "activation^2", "sum of squares over active tokens"),
        Column("max_act", "FLOAT", "activation", "largest activation"),
        Column("max_context", "BIGINT", "", "context of the largest; -1 if dead"),
        Column("max_pos", "INTEGER", "token", "its position there; -1 if dead"),
        Column(
            "last_context", "BIGINT", "", "last context with an active token; -1 if dead"
        ),
        Column("density", "DOUBLE", "share", "active tokens per valid token"),
        Column("context_density", "DOUBLE", "share", "active contexts per context"),
        Column("mean_act", "DOUBLE", "activation", "mean over active tokens; NULL if dead"),
        Column(
            "std_act",
            "DOUBLE",
            "activation",
            "population standard deviation over active tokens; NULL if dead",
        ),
        *(
            Column(
                f"q{percent}",
                "FLOAT",
                "activation",
                f"{percent} % quantile over active tokens, within one histogram bin "
                "(1/8 octave, 9 %); NULL if dead",
            )
            for percent in (50, 90, 99)
        ),
        Column("decoder_norm", "FLOAT", "", "L2 norm of the decoder row"),
        Column("encoder_norm", "FLOAT", "", "L2 norm of the encoder column"),
        Column("enc_dec_cos", "FLOAT", "", "cosine between encoder and decoder direction"),
        Column("dead", "BOOLEAN", "", "never active on the valid tokens"),
    ),
)
HISTOGRAMS = Table(
    "histograms",
    "Activations of each feature on a logarithmic scale",
    (
        Column("feature", "INTEGER", "", "index of the feature in the SAE"),
        Column(
            "hist",
            "BIGINT[]",
            "tokens",
            f"active tokens in {N_BINS} bins: below 2^-10, 1/8 octave each, from 2^10",
        ),
    ),
)
EXAMPLES = Table(
    "examples",
    "Examples of each feature, in each group at most one per context",
    (
        Column("feature", "INTEGER", "", "index of the feature in the SAE"),
        Column(
            "group",
            "VARCHAR",
            "",
            "how it was chosen: top (largest), band_1 to band_4 (drawn among the contexts "
            "whose peak is in the octave of the largest activation, the one below, ...), "
            "random (drawn among all active contexts), silent (drawn where it is not active)",
        ),
        Column("rank", "SMALLINT", "", "0 is the first of its group"),
        Column("context", "BIGINT", "", "context in the corpus"),
        Column("pos", "INTEGER", "token", "position of the peak in its context"),
        Column("start", "INTEGER", "token", "first position of the window"),
        Column("act", "FLOAT", "activation", "activation at the peak"),
        Column("peak_token", "INTEGER", "", "token id at the peak"),
        Column("held_out", "BOOLEAN", "", "for scoring: explain with the others"),
        Column("act_off", "INTEGER[]", "token", "active tokens, as offsets from start"),
        Column("act_val", "FLOAT[]", "activation", "their activations"),
    ),
)
LOGITS = Table(
    "logits",
    "Tokens that each feature makes most and least likely, read off the weights",
    (
        Column("feature", "INTEGER", "", "index of the feature in the SAE"),
        Column("sign", "VARCHAR", "", "top (most promoted) or bottom (most suppressed)"),
        Column("rank", "SMALLINT", "", "0 is the largest of top, the smallest of bottom"),
        Column("token", "INTEGER", "", "token id"),
        Column(
            "value",
            "FLOAT",
            "logit per unit of activation",
            "decoder row times final norm weight times unembedding, without the scale that "
            "the final norm takes from the data",
        ),
    ),
    since=3,
)
NEIGHBOURS = Table(
    "neighbours",
    "Features that are like each feature",
    (
        Column("feature", "INTEGER", "", "index of the feature in the SAE"),
        Column(
            "kind",
            "VARCHAR",
            "",
            "decoder (by the cosine of their decoder rows) or coactivation (by the tokens "
            "on which both are active)",
        ),
        Column("rank", "SMALLINT", "", "0 is the nearest"),
        Column("other", "INTEGER", "", "index of the other feature"),
        Column("value", "FLOAT", "", "how near: 1 is the same"),
        Column("n_both", "BIGINT", "tokens", "on which both are active; NULL for decoder"),
    ),
    since=3,
)
TOKENS = Table(
    "tokens",
    "Tokens on which each feature is active",
    (
        Column("feature", "INTEGER", "", "index of the feature in the SAE"),
        Column("rank", "SMALLINT", "", "0 is the first"),
        Column("token", "INTEGER", "", "token id"),
        Column(
            "n_active", "BIGINT", "tokens", "valid tokens of this id where it is active"
        ),
        Column("sum_act", "DOUBLE", "activation", "sum over them"),
        Column("mean_act", "DOUBLE", "activation", "mean over them"),
        Column("max_act", "FLOAT", "activation", "largest of them"),
    ),
    since=3,
)
FLAT_TABLES = (LOGITS, NEIGHBOURS, TOKENS)
"""Those that a result holds as plain rows, `ExtractionResult.tables`."""

RESULT_TABLES = (FEATURES, HISTOGRAMS, EXAMPLES, *FLAT_TABLES)
"""What the folder of a completed run holds."""

CONTEXTS = Table(
    "contexts",
    "Token ids of the prepared corpora",
    (
        Column("context", "BIGINT", "", "number of the context, from 0"),
        Column("n_tok", "INTEGER", "tokens", "its length without padding"),
        Column("doc", "BIGINT", "", "its first document"),
        Column("tokens", "BLOB", "", "token ids, uint16 or uint32, little-endian"),
    ),
)
VOCAB = Table(
    "vocab",
    "Texts of the tokens",
    (
        Column("token_id", "INTEGER", "", "token id"),
        Column("text", "VARCHAR", "", "its text"),
        Column("bytes", "BLOB", "", "its bytes"),
    ),
)

RUNS = Table(
    "runs",
    "All runs, as the ledger knew them when this was written",
    (
        Column("run_id", "VARCHAR", "", "identity: training, content, generation"),
        Column("training_id", "VARCHAR", "", "training whose features are extracted"),
        Column("generation", "INTEGER", "", "1 unless a person asked for the next"),
        Column("state", "VARCHAR", "", "requested ... completed"),
        Column("attempt", "INTEGER", "", "number of the current attempt"),
        Column("job_id", "VARCHAR", "", "RQ job of the current attempt"),
        Column("content_key", "VARCHAR", "", "hash of all that decides the numbers"),
        Column("n_tokens", "BIGINT", "tokens", "valid tokens to measure"),
        Column("n_tokens_done", "BIGINT", "tokens", "valid tokens measured so far"),
        Column("created_at", "TIMESTAMP", "UTC", "first launch"),
        Column("created_by", "VARCHAR", "", "user@host of the first launch"),
        Column("started_at", "TIMESTAMP", "UTC", "claim of the current attempt"),
        Column("ended_at", "TIMESTAMP", "UTC", "end of the current attempt"),
        Column("completed_at", "TIMESTAMP", "UTC", "when its result was recorded"),
        Column("results_dir", "VARCHAR", "", "folder of its Parquet files"),
        Column("result_digest", "VARCHAR", "", "sha256 over the exact numbers"),
        Column("error", "VARCHAR", "", "why it failed"),
        Column("l0", "DOUBLE", "features/token", "mean active features per valid token"),
        Column("fvu", "DOUBLE", "share", "fraction of variance unexplained"),
        Column("mse", "DOUBLE", "activation^2", "mean squared error, summed over d_in"),
        Column("n_dead", "BIGINT", "features", "features that were never active"),
        Column(
            "n_dense",
            "BIGINT",
            "features",
            f"active on more than {DENSE:.0%} of the tokens",
        ),
        Column(
            "ce_loss_recovered",
            "DOUBLE",
            "share",
            "(H_zero - H_sae) / (H_zero - H_orig) of the next-token loss; NULL if not asked",
        ),
        Column("d_sae", "BIGINT", "features", "features of the SAE"),
        Column("model", "VARCHAR", "", "language model"),
        Column("hook_name", "VARCHAR", "", "where activations are read"),
        Column("corpus_digest", "VARCHAR", "", "corpus"),
        Column("config", "VARCHAR", "", "ExtractionConfig as JSON"),
        Column(
            "statistics_format",
            "BIGINT",
            "",
            f"of its files; the views show those of format {STATISTICS_FORMAT}",
        ),
    ),
)
TRAININGS = Table(
    "trainings",
    "Registered trainings",
    (
        Column("training_id", "VARCHAR", "", "name given by a person"),
        Column("digest", "VARCHAR", "", "sha256 over SAE, model, tokenizer and hookpoint"),
        Column("architecture", "VARCHAR", "", "of the SAE"),
        Column("d_in", "BIGINT", "", "width of the activations"),
        Column("d_sae", "BIGINT", "features", "features of the SAE"),
        Column("hook_name", "VARCHAR", "", "where activations are read"),
        Column("model", "VARCHAR", "", "language model"),
        Column("sae_path", "VARCHAR", "", "folder of the SAE"),
        Column("created_at", "TIMESTAMP", "UTC", "when it was registered"),
    ),
)
EVENTS = Table(
    "events",
    "What happened, in order",
    (
        Column("seq", "BIGINT", "", "order of the events"),
        Column("run_id", "VARCHAR", "", "run concerned"),
        Column("attempt", "INTEGER", "", "attempt concerned"),
        Column("at", "TIMESTAMP", "UTC", "when"),
        Column("kind", "VARCHAR", "", "move, refusal, ..."),
        Column("actor", "VARCHAR", "", "who"),
        Column("text", "VARCHAR", "", "in words"),
        Column("count", "BIGINT", "", "how often it was repeated"),
    ),
)
LEDGER_TABLES = (RUNS, TRAININGS, EVENTS)
"""What is copied from the ledger."""

CATALOG = (*LEDGER_TABLES, *RESULT_TABLES, CONTEXTS, VOCAB)
"""Everything that can be named in SQL."""


# --- arrays to tables -------------------------------------------------------------------


def features_table(result: ExtractionResult) -> pa.Table:
    """Return the features of `result` with their derived columns.

    Columns from the weights that `result` does not have are NULL; columns that the schema
    does not know are kept, after the known ones.
    """
    columns = {
        name: pa.array(np.ascontiguousarray(values))
        for name, values in result.features.items()
    }
    columns |= _derived(result)
    known = [
        columns.pop(field.name, pa.nulls(result.d_sae)).cast(field.type)
        for field in FEATURES.schema
    ]
    schema = FEATURES.schema
    for name, array in columns.items():
        schema = schema.append(pa.field(name, array.type))
    return pa.table([*known, *columns.values()], schema=schema)


def _derived(result: ExtractionResult) -> dict[str, pa.Array]:
    given = result.features
    n_active = given["n_active"]
    dead = n_active == 0
    active = np.maximum(n_active, 1)
    mean = given["sum_act"] / active
    variance = np.maximum(given["sum_sq_act"] / active - mean**2, 0)
    columns = {
        "feature": pa.array(np.arange(result.d_sae, dtype=np.int32)),
        "density": pa.array(n_active / max(int(result.summary["n_tokens"]), 1)),
        "context_density": pa.array(
            given["n_contexts"] / max(int(result.summary["n_contexts"]), 1)
        ),
        "mean_act": pa.array(mean, mask=dead),
        "std_act": pa.array(np.sqrt(variance), mask=dead),
        "dead": pa.array(dead),
    }
    for percent in (50, 90, 99):
        values = quantile(result.histograms, given["max_act"], percent)
        columns[f"q{percent}"] = pa.array(values, mask=dead)
    return columns


def quantile(histograms: np.ndarray, max_act: np.ndarray, percent: int) -> np.ndarray:
    """Return a quantile of the active tokens of each feature, read off its histogram.

    The value with rank ``ceil(n * percent / 100)`` is placed in its bin by linear
    interpolation, and is never above `max_act`. It lies in the bin of the true one, so the
    error is less than 1/8 octave (9 %); below 2^-10 it is less than 2^-10, and above 2^10
    it is bounded by `max_act` only.

    Parameters
    ----------
    histograms : ndarray int64 [feature, N_BINS]
        Active tokens per bin.
    max_act : ndarray float32 [feature]
        Largest activations.
    percent : int
        1 to 100.

    Returns
    -------
    ndarray float32 [feature]
        Without meaning where a histogram is empty.
    """
    found = [
        _quantile(histograms[i : i + _BLOCK], max_act[i : i + _BLOCK], percent)
        for i in range(0, len(histograms), _BLOCK)
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.float32)


def _quantile(histograms: np.ndarray, max_act: np.ndarray, percent: int) -> np.ndarray:
    edges = bin_edges()
    upto = np.cumsum(histograms, axis=1)
    rank = -(-upto[:, -1] * percent // 100)  # integers: 0.99 * n may round up
    bins = np.argmax(upto >= rank[:, None], axis=1)
    row = np.arange(len(histograms))
    inside = histograms[row, bins]
    share = (rank - (upto[row, bins] - inside)) / np.maximum(inside, 1)
    low = edges[bins]
    high = np.minimum(edges[bins + 1], max_act)
    value: np.ndarray = np.minimum(low + (high - low) * share, max_act).astype(np.float32)
    return value


def histograms_table(result: ExtractionResult) -> pa.Table:
    """Return the histograms of `result`."""
    bins = result.histograms.shape[1]
    offsets = np.arange(result.d_sae + 1, dtype=np.int64) * bins
    flat = np.ascontiguousarray(result.histograms).reshape(-1)
    feature = pa.array(np.arange(result.d_sae, dtype=np.int32))
    hist = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))
    return pa.table([feature, hist.cast(_ARROW["BIGINT[]"])], schema=HISTOGRAMS.schema)


def examples_table(result: ExtractionResult) -> pa.Table:
    """Return the examples of `result`, groups by name."""
    given = result.examples
    names = pa.DictionaryArray.from_arrays(pa.array(given.group), pa.array(GROUPS))
    offsets = pa.array(given.offsets)
    special = {
        "group": names.cast(pa.string()),
        "held_out": pa.array(result.held_out),
        "act_off": pa.LargeListArray.from_arrays(offsets, pa.array(given.act_off)),
        "act_val": pa.LargeListArray.from_arrays(offsets, pa.array(given.act_val)),
    }
    arrays = [
        special[field.name].cast(field.type)
        if field.name in special
        else pa.array(getattr(given, field.name)).cast(field.type)
        for field in EXAMPLES.schema
    ]
    return pa.table(arrays, schema=EXAMPLES.schema)


def flat_table(table: Table, result: ExtractionResult) -> pa.Table:
    """Return the rows that `result` has of one of the `FLAT_TABLES`; none is fine."""
    given = result.tables.get(table.name)
    if given is None:
        return table.schema.empty_table()
    arrays = [
        _flat_column(column.name, given[column.name]).cast(_ARROW[column.type])
        for column in table.columns
    ]
    return pa.table(arrays, schema=table.schema)


def _flat_column(name: str, values: np.ndarray) -> pa.Array:
    array = pa.array(
        np.ascontiguousarray(values), mask=values < 0 if name == "n_both" else None
    )
    names = {"sign": SIGNS, "kind": KINDS}.get(name)
    return (
        array if names is None else pa.DictionaryArray.from_arrays(array, pa.array(names))
    )


def rows_table(table: Table, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return ledger rows as an Arrow table; a missing key is NULL, also with no row at all.

    Aware datetimes become naive UTC (DuckDB needs pytz to return aware ones).
    """
    arrays = [
        pa.array(
            [_plain(row.get(column.name), column) for row in rows], _ARROW[column.type]
        )
        for column in table.columns
    ]
    return pa.table(arrays, schema=table.schema)


def _plain(value: object, column: Column) -> object:
    if value is None:
        return None
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None)
    return str(value) if column.type == "VARCHAR" else value
