"""Questions that have a name in SQL: ``FROM top_features('<run id>', 50)``.

No parameter is called like a column: inside a macro it would stand for the column too. They
are the same in the notebook, in the snapshot and in an exported file (of one that is
attached, after ``USE``), and ask the views and tables of `tables` only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from extraction_kit.catalog.peaks import FOUND, ORDER
from extraction_kit.results import GROUPS


@dataclass(frozen=True)
class Macro:
    """A table macro: its name, its parameters with their meanings, what it returns."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    meaning: str
    query: str

    @property
    def call(self) -> str:
        """How it is called, with the names of its parameters."""
        return f"{self.name}({', '.join(name for name, _ in self.parameters)})"

    @property
    def comment(self) -> str:
        """Meaning, and what its parameters are, in one line."""
        what = "; ".join(f"{name}: {meaning}" for name, meaning in self.parameters)
        return f"{self.meaning} ({what})"

    @property
    def definition(self) -> str:
        """The SQL that makes it."""
        return f"CREATE OR REPLACE MACRO {self.call} AS TABLE {self.query}"


_RUN = ("run", "a run id")
_FEATURE = ("i", "index of the feature in the SAE")
_ORDER = ", ".join(f"'{group}'" for group in GROUPS)

TOP_FEATURES = Macro(
    "top_features",
    (_RUN, ("n", "at most so many")),
    "The features of a run with the largest activations, largest first",
    "SELECT f.* FROM features AS f WHERE f.run_id = run "
    "ORDER BY f.max_act DESC, f.feature LIMIT n",
)

# Token ids are decoded in SQL: two or four bytes each, little-endian.
EXAMPLES_OF = Macro(
    "examples_of",
    (_RUN, _FEATURE),
    "The examples of a feature with their text, the peak between « and »",
    f"""
WITH e AS (
  SELECT x.run_id, x."group", x.rank, x.context, x.pos, x.start, x.act, x.peak_token,
    x.held_out, x.act_off, x.act_val, r.corpus_digest, r.tokenizer_digest, r.config
  FROM examples AS x JOIN runs AS r ON r.run_id = x.run_id
  WHERE x.run_id = run AND x.feature = i
), w AS (
  SELECT e.run_id, e."group", e.rank, e.pos, e.tokenizer_digest, c.tokens,
    octet_length(c.tokens) // c.n_tok AS width,
    unnest(range(e.start, least(e.pos + 1 + (e.config->>'$.window[1]')::INTEGER, c.n_tok)))
      AS at
  FROM e JOIN contexts AS c ON c.corpus_digest = e.corpus_digest AND c.context = e.context
), t AS (
  SELECT w.*, hex(w.tokens[w.at * w.width + 1 : (w.at + 1) * w.width]) AS h FROM w
), d AS (
  SELECT t."group", t.rank, string_agg(
    CASE WHEN t.at = t.pos THEN '«' || coalesce(v.text, '?') || '»'
      ELSE coalesce(v.text, '?') END, '' ORDER BY t.at) AS text
  FROM t LEFT JOIN vocab AS v ON v.tokenizer_digest = t.tokenizer_digest
    AND v.token_id = ('0x' || CASE WHEN t.width = 4 THEN h[7:8] || h[5:6] ELSE '' END
      || h[3:4] || h[1:2])::INTEGER
  GROUP BY 1, 2
)
SELECT e.run_id, i AS feature, e."group", e.rank, e.act, e.context, e.pos, e.start,
  e.peak_token, e.held_out, d.text, e.act_off, e.act_val
FROM e LEFT JOIN d ON d."group" = e."group" AND d.rank = e.rank
ORDER BY list_position([{_ORDER}], e."group"), e.rank
""",  # noqa: S608 - our own names
)
COMPARED = (
    "density", "context_density", "n_active", "max_act", "mean_act", "q50", "dead",
)  # fmt: skip
"""What two runs are compared by."""


def compared(a: str, b: str) -> str:
    """Return what a SELECT shows of two rows of features, named `a` and `b` there.

    The last column is the logarithm of the ratio of their densities, NULL if one is dead.
    """
    both = ", ".join(f"{a}.{one} AS {one}_a, {b}.{one} AS {one}_b" for one in COMPARED)
    ratio = f"log2(nullif({b}.density, 0) / nullif({a}.density, 0)) AS log2_ratio"
    return f"{both}, {ratio}"


LARGEST_FIRST = (
    "dead_a = dead_b, abs(log2_ratio) DESC NULLS LAST, greatest(density_a, density_b) DESC"
)
"""The order of compared rows by how much their densities changed: first the features that are
dead in one run only, the densest in the other one first."""

COMPARE = Macro(
    "compare",
    (("a", "a run id"), ("b", "the run id of a run of the same SAE")),
    "Two runs side by side, the features whose density changed most first; no rows if they "
    "are of different SAEs: ws.compare pairs those",
    f"""
SELECT fa.feature, {compared("fa", "fb")}
FROM features AS fa JOIN features AS fb ON fa.feature = fb.feature
WHERE fa.run_id = a AND fb.run_id = b AND 1 = (
  SELECT count(DISTINCT coalesce(r.sae_digest, '')) FROM runs AS r
  WHERE r.run_id = a OR r.run_id = b)
ORDER BY {LARGEST_FIRST}, fa.feature
""",  # noqa: S608 - our own names
)
SIMILAR = Macro(
    "similar_to",  # SIMILAR alone is a keyword of SQL
    (_RUN, _FEATURE),
    "The features that are most like a feature, nearest first",
    """
SELECT n.run_id, n.feature, n.kind, n.rank, n.other, n.value, n.n_both,
  f.density AS density_of_other, f.max_act AS max_act_of_other
FROM neighbours AS n LEFT JOIN features AS f ON f.run_id = run AND f.feature = n.other
WHERE n.run_id = run AND n.feature = i
ORDER BY n.kind = 'coactivation', n.rank
""",
)
SEARCH = Macro(
    "search_token",
    (("wanted", "text of a token; without a space before it, also the one with it"),),
    "The features that fire on a token, in all runs, those that it marks most surely first",
    f"""
SELECT run_id, training_id, {FOUND} FROM peaks
JOIN (SELECT run_id, training_id, tokenizer_digest FROM runs) USING (run_id)
JOIN (SELECT tokenizer_digest, token_id AS token, text FROM vocab
  WHERE text = wanted OR text = ' ' || wanted) USING (tokenizer_digest, token)
ORDER BY {ORDER}, run_id, feature
""",  # noqa: S608 - our own names
)
MACROS: Sequence[Macro] = (TOP_FEATURES, EXAMPLES_OF, COMPARE, SIMILAR, SEARCH)
"""Every macro of the catalog."""
