"""Every table of the catalog, with type, unit and meaning of each column, in one place.

The same lines make the Parquet schemas, the typed empty views and the comments in the
snapshot. Types are DuckDB's names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pyarrow as pa

from extraction_kit.config import STATISTICS_FORMAT
from extraction_kit.results import (
    DENSE,
    N_BINS,
)

ARROW_TYPES: Mapping[str, pa.DataType] = MappingProxyType(
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
"""Arrow's types by DuckDB's names."""


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
                    c.name,
                    ARROW_TYPES[c.type],
                    metadata={"unit": c.unit, "meaning": c.meaning},
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
LABEL_COLUMNS = (
    Column("label", "VARCHAR", "", "name that somebody gave the feature; NULL if nobody"),
    Column("description", "VARCHAR", "", "what somebody says of it; NULL if nobody"),
)
"""Of the labels of the SAE, beside its features."""
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
        Column("sae_digest", "VARCHAR", "", "sha256 of the SAE; labels belong to it"),
        Column("n_tokens", "BIGINT", "tokens", "valid tokens to measure"),
        Column("n_tokens_done", "BIGINT", "tokens", "valid tokens measured so far"),
        Column("created_at", "TIMESTAMP", "UTC", "first launch"),
        Column("created_by", "VARCHAR", "", "user@host of the first launch"),
        Column("started_at", "TIMESTAMP", "UTC", "claim of the current attempt"),
        Column("ended_at", "TIMESTAMP", "UTC", "end of the current attempt"),
        Column("completed_at", "TIMESTAMP", "UTC", "when its result was recorded"),
        Column("results_dir", "VARCHAR", "", "folder of its Parquet files"),
        Column("result_digest", "VARCHAR", "", "sha256 over the exact numbers"),
        Column("results_bytes", "BIGINT", "bytes", "size of its files; NULL if not known"),
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
        Column("tokenizer_digest", "VARCHAR", "", "tokenizer"),
        Column("config", "VARCHAR", "", "ExtractionConfig as JSON"),
        Column(
            "statistics_format",
            "BIGINT",
            "",
            f"of its files; the views show those of format {STATISTICS_FORMAT}",
        ),
        Column(
            "damage",
            "VARCHAR",
            "",
            "what the last verification found wrong with its files: the views leave it out; "
            "NULL if nothing is known",
        ),
    ),
)
TRAININGS = Table(
    "trainings",
    "Registered trainings",
    (
        Column("training_id", "VARCHAR", "", "name given by a person"),
        Column("digest", "VARCHAR", "", "sha256 over SAE, model, tokenizer and hookpoint"),
        Column("sae_digest", "VARCHAR", "", "sha256 of the SAE; labels belong to it"),
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
_SAID = (
    Column("sae_digest", "VARCHAR", "", "sha256 of the SAE"),
    Column("feature", "INTEGER", "", "index of the feature in the SAE"),
    Column("name", "VARCHAR", "", "one line"),
    Column("description", "VARCHAR", "", "longer"),
    Column("source", "VARCHAR", "", "who or what says so; NULL if not told"),
    Column("changed_at", "TIMESTAMP", "UTC", "when"),
    Column("changed_by", "VARCHAR", "", "user@host"),
)
LABELS = Table("labels", "What is said of features now, for all runs of an SAE", _SAID)
LABEL_HISTORY = Table(
    "label_history",
    "Every change of a label; one without name and description takes it away",
    (Column("seq", "BIGINT", "", "order of the changes"), *_SAID),
)
LEDGER_TABLES = (RUNS, TRAININGS, EVENTS, LABEL_HISTORY)
"""What is copied from the ledger."""

PEAKS = Table(
    "peaks",
    "Tokens on which the top examples of each feature peak, or on which it was counted most",
    (
        Column("feature", "INTEGER", "", "index of the feature in the SAE"),
        Column("token", "INTEGER", "", "token id"),
        Column("n_examples", "BIGINT", "examples", "top examples whose peak is on it"),
        Column(
            "max_act",
            "FLOAT",
            "activation",
            "largest known on it: of the peaks, and of `tokens` where it is there",
        ),
        Column(
            "n_active",
            "BIGINT",
            "tokens",
            "as in `tokens`; NULL where the run did not count it",
        ),
    ),
)
"""Derived from `EXAMPLES` and `TOKENS`: it has no file in the folder of a run."""

CATALOG = (*LEDGER_TABLES, LABELS, *RESULT_TABLES, PEAKS, CONTEXTS, VOCAB)
"""Everything that can be named in SQL."""
