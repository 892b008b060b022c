"""What the model reads: texts made into contexts of tokens once, before a launch.

Nothing here imports torch. A prepared corpus is a folder named by the digest of its tokens
and masks: the same texts under the same options are the same corpus.
"""

from extraction_kit.corpora.corpus import ContextBatch, Corpus
from extraction_kit.corpora.preparation import Progress, prepare
from extraction_kit.corpora.progress import progress_bar

__all__ = ["ContextBatch", "Corpus", "Progress", "prepare", "progress_bar"]
