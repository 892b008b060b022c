"""The computation: contexts through the model and the SAE into the statistics, once.

Knows neither ledger nor queue; imported by a worker only after its claim.
"""

from extraction_kit.extraction.engine import StopAfterCheckpoint, extract, extract_together
from extraction_kit.extraction.given import Given
from extraction_kit.extraction.progress import OnProgress, Progress

__all__ = [
    "Given",
    "OnProgress",
    "Progress",
    "StopAfterCheckpoint",
    "extract",
    "extract_together",
]
