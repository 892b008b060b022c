"""Which features fire on a token: `tables.PEAKS`, derived from examples and counted tokens."""

import operator
from collections.abc import Sequence
from typing import SupportsIndex


def peaks_of(examples: str, tokens: str | None = None, *, by: str = "") -> str:
    """Return the SQL of `tables.PEAKS`: the one place where it is defined.

    Parameters
    ----------
    examples, tokens : str
        Relations with the columns of `EXAMPLES` and `TOKENS`; tokens may be None.
    by : str
        ``"run_id, "`` if they have that column too.
    """
    counted = (
        ""
        if tokens is None
        else f" UNION ALL SELECT {by}feature, token, 0, max_act, n_active FROM {tokens}"  # noqa: S608 - ours
    )
    return (
        f"SELECT {by}feature, token, sum(n_examples)::BIGINT AS n_examples, "  # noqa: S608 - ours
        "max(max_act) AS max_act, max(n_active) AS n_active FROM ("
        f"SELECT {by}feature, peak_token AS token, 1 AS n_examples, act AS max_act, "
        f"NULL::BIGINT AS n_active FROM {examples} WHERE \"group\" = 'top'{counted}"
        f") GROUP BY {by}feature, token"
    )


FOUND = "token, text, feature, n_examples, max_act, n_active"
"""Columns of a search, after those that tell the run."""

ORDER = "n_examples DESC, max_act DESC"


def search(tokens: Sequence[tuple[str, int, str]], *, peaks: str, runs: str | None) -> str:
    """Return the SQL of a search for tokens.

    With their ids in it, of an index only the rows of these tokens are read; and they are
    read before they are sorted: DuckDB would read the best of them a second time.

    Parameters
    ----------
    tokens : sequence
        Tokenizer digest, token id and text of each, from `texts.tokens_of`.
    peaks : str
        Relation with the columns of `tables.PEAKS`.
    runs : str, optional
        Relation with the columns of `RUNS`, for peaks of several runs.
    """
    ids = ", ".join(str(token) for _, token, _ in tokens)
    found = f"WITH found AS MATERIALIZED (FROM {peaks} WHERE token IN ({ids})) "
    if runs is None:
        named = ", ".join(f"({token}, {_literal(text)})" for _, token, text in tokens)
        return (
            f"{found}SELECT {FOUND} FROM found "  # noqa: S608 - ours
            f"JOIN (VALUES {named}) AS texts(token, text) USING (token) "
            f"ORDER BY {ORDER}, feature"
        )
    named = ", ".join(
        f"({_literal(digest)}, {token}, {_literal(text)})" for digest, token, text in tokens
    )
    keys = "(tokenizer_digest, token)"
    return (
        f"{found}SELECT run_id, training_id, {FOUND} FROM found "  # noqa: S608 - ours
        f"JOIN (SELECT run_id, training_id, tokenizer_digest FROM {runs}) USING (run_id) "
        f"JOIN (VALUES {named}) AS texts(tokenizer_digest, token, text) USING {keys} "
        f"ORDER BY {ORDER}, run_id, feature"
    )


def limited(query: str, k: SupportsIndex | None) -> str:
    """Return `query` with at most `k` rows."""
    return query if k is None else f"{query} LIMIT {operator.index(k)}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
