"""What is measured: streaming statistics that can be merged, saved and continued."""

from extraction_kit.stats.activations import Activations, Contexts
from extraction_kit.stats.collection import Collection
from extraction_kit.stats.histogram import Histogram
from extraction_kit.stats.moments import Maximum, Moments
from extraction_kit.stats.quality import Quality
from extraction_kit.stats.statistic import FeatureStatistic, Statistic
from extraction_kit.stats.topk import TopK

__all__ = [
    "Activations",
    "Collection",
    "Contexts",
    "FeatureStatistic",
    "Histogram",
    "Maximum",
    "Moments",
    "Quality",
    "Statistic",
    "TopK",
]
