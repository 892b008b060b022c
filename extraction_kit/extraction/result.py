"""What is handed on of one SAE after the pass: tables, summary, provenance."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from extraction_kit.config import STATISTICS_FORMAT, ExtractionConfig
from extraction_kit.extraction.ce_loss import CeLoss, measure_ce_loss
from extraction_kit.extraction.from_weights import left_out, tables_from_weights
from extraction_kit.extraction.rig import Rig
from extraction_kit.extraction.station import Station
from extraction_kit.results import ExtractionResult, joined_tables
from extraction_kit.sources.devices import peak_rss_bytes
from extraction_kit.version import __version__


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What the stations of one pass have in common."""

    n_tokens: int
    n_contexts: int
    elapsed_s: float
    """Of the pass as a whole, all attempts together."""
    resumed_from: int | None
    """Valid tokens of the checkpoint that was continued."""


def results_of(
    rig: Rig, done: Pass, *, content_keys: Mapping[str, str], tell: Callable[[], None]
) -> list[ExtractionResult]:
    """Return what was measured, station by station.

    Parameters
    ----------
    rig : Rig
        After the pass.
    done : Pass
        How it went.
    content_keys : mapping
        By training id.
    tell : callable
        Called now and then; what it raises ends the work.
    """
    # From the weights first: the whole model takes the place of the cut one after that.
    from_weights = [tables_from_weights(rig, each, tell=tell) for each in rig.stations]
    losses = [measure_ce_loss(rig, each, tell=tell) for each in rig.stations]
    results = []
    for station, (tables, read_off), loss in zip(
        rig.stations, from_weights, losses, strict=True
    ):
        found = station.statistics.compute()
        results.append(
            ExtractionResult(
                features=found["features"] | station.sae.weight_columns,
                histograms=found["histograms"],
                examples=found["examples"],
                held_out=found["held_out"],
                summary=_summary(rig, station, done=done, quality=found["quality"])
                | loss.summary
                | found["sampled"],
                provenance={
                    "content_key": content_keys[station.training.training_id],
                    **_provenance(rig, station, done=done, losses=loss),
                    "logits": read_off["logits"],
                    "neighbours": {
                        "decoder": read_off["decoder"],
                        "coactivation": _asked_for(rig.config, "n_coactive"),
                    },
                    "tokens": _asked_for(rig.config, "n_top_tokens"),
                },
                tables=joined_tables(found["tables"], tables),
            )
        )
    return results


def _asked_for(config: ExtractionConfig, option: str) -> dict[str, Any]:
    return {"absent_because": None if getattr(config, option) else left_out(option)}


def _summary(
    rig: Rig, station: Station, *, done: Pass, quality: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "n_tokens": done.n_tokens,
        "n_tokens_total": rig.corpus.n_tokens_total,
        "n_contexts": done.n_contexts,
        "context_size": rig.corpus.context_size,
        "d_in": station.training.sae.d_in,
        "d_sae": station.training.sae.d_sae,
        "l0": quality["l0"],
        "fvu": quality["fvu"],
        "explained_variance": quality["explained_variance"],
        "mse": quality["mse"],
        "n_dead": station.statistics.n_dead(),
        "n_dense": station.statistics.n_dense(),
        "statistics_format": STATISTICS_FORMAT,
        "tokens_per_s": done.n_tokens / done.elapsed_s if done.elapsed_s > 0 else None,
        "elapsed_s": done.elapsed_s,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _provenance(
    rig: Rig, station: Station, *, done: Pass, losses: CeLoss
) -> dict[str, Any]:
    hookpoint = station.training.hookpoint
    return {
        "fingerprint": rig.fingerprint,
        "versions": {
            "extraction_kit": __version__,
            "statistics_format": STATISTICS_FORMAT,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
        "units": {
            "activation": "as the SAE's encoder gives it, not scaled by decoder norms",
            "density": "share of valid tokens with activation above 0",
        },
        "masks": dict(rig.corpus.masks),
        "corpus_digest": rig.corpus.digest,
        "training_digest": station.training.digest,
        "together_with": [
            each.training.training_id for each in rig.stations if each is not station
        ],
        "hookpoint": {
            "hook_name": hookpoint.hook_name,
            "module_path": hookpoint.module_path,
            "side": hookpoint.side,
            "resolved": str(hookpoint),
            "equals_hidden_state": station.equals_hidden_state,
        },
        "preflight": station.preflight.to_dict(),
        "reconstruction": {
            "compared_with": station.compared_at.hook_name if station.compares else None,
            "not_compared_because": station.not_compared_because,
        },
        "ce_loss": losses.provenance(),
        "resumed_from_tokens": done.resumed_from,
    }
