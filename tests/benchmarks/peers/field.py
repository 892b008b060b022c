"""Who is measured, on what, and what each of them computes for its time."""

from dataclasses import dataclass

ALL_CONTEXTS = 256
"""32,768 tokens."""
COMPUTES_OURS = (
    "count, contexts, sum, sum of squares, max, histogram, top-20 contexts, 4 bands, random, "
    "silent, windows, L0, FVU, checkpoints: all features, one pass"
)
_DASHBOARD = (
    "per feature batch: max, quantiles, two histograms, logits, correlations, top-20 tokens, "
    "intervals; all features = first batch + the others at marginal cost"
)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One tool, as one row of the table."""

    key: str
    name: str
    environment: str
    script: str
    computes: str
    target: float | None = None
    """How many times faster `extraction_kit` is to be, at least."""
    option: str = ""
    n_contexts: int = ALL_CONTEXTS


PEERS = (
    Peer(
        key="saelens",
        name="SAELens evals",
        environment="saelens",
        script="saelens_density.py",
        computes="density of all features; no examples, no maxima",
        target=1.7,
    ),
    Peer(
        key="delphi",
        name="Delphi cache + examples",
        environment="delphi",
        script="delphi_cache.py",
        computes="every activation to disk, then the top-20 contexts of each latent",
        target=2.5,
    ),
    Peer(
        key="dashboard-cache",
        name="SAEDashboard, activation cache, 128 features a batch",
        environment="saelens",
        script="saedashboard.py",
        computes=_DASHBOARD,
        option="128-cache",
        target=14,
    ),
    Peer(
        key="dashboard-128",
        name="SAEDashboard, no cache, 128 features a batch",
        environment="saelens",
        script="saedashboard.py",
        computes=_DASHBOARD,
        option="128",
        target=65,
    ),
    Peer(
        key="dashboard-256",
        name="SAEDashboard, no cache, 256 features a batch",
        environment="saelens",
        script="saedashboard.py",
        computes=_DASHBOARD,
        option="256",
    ),
    Peer(
        key="predecessor",
        name="the predecessor's algorithm",
        environment="ours",
        script="predecessor.py",
        computes="contexts, top-20 contexts with windows, in Python objects (a stand-in)",
        target=5.5,
        n_contexts=128,
    ),
)
