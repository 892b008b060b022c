"""What the model reads: texts made into contexts of tokens once, before a launch.

Nothing here imports torch. A prepared corpus is a folder named by the digest of its tokens
and masks: the same texts under the same options are the same corpus.
"""

from extraction_kit.corpora.corpus import ContextBatch, Corpus
from extraction_kit.corpora.preparation import Progress, prepare
from extraction_kit.corpora.progress import progress_bar
from extraction_kit.corpora.tiles import ReadingOrder, TilePlan

__all__ = [
    "ContextBatch",
    "Corpus",
    "Progress",
    "ReadingOrder",
    "TilePlan",
    "prepare",
    "progress_bar",
]
