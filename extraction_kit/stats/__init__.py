"""What is measured: streaming statistics that can be merged, saved and continued."""

from extraction_kit.stats.activations import Activations, Contexts
from extraction_kit.stats.collection import Collection, Sizes
from extraction_kit.stats.histogram import Histogram
from extraction_kit.stats.moments import LastFired, Maximum, Moments
from extraction_kit.stats.quality import Quality
from extraction_kit.stats.sample import ActivationSample
from extraction_kit.stats.samples import BandExamples, RandomExamples
from extraction_kit.stats.silent import SilentExamples
from extraction_kit.stats.statistic import FeatureStatistic, Statistic
from extraction_kit.stats.topk import TopK

__all__ = [
    "ActivationSample",
    "Activations",
    "BandExamples",
    "Collection",
    "Contexts",
    "FeatureStatistic",
    "Histogram",
    "LastFired",
    "Maximum",
    "Moments",
    "Quality",
    "RandomExamples",
    "SilentExamples",
    "Sizes",
    "Statistic",
    "TopK",
]
