"""What is measured: a trained SAE, the model it reads from, the hookpoint, the tokenizer.

Everything here is read from files before a launch, without torch: shapes come from the
headers of the weight files, digests from their bytes.
"""

from extraction_kit.trainings.hookpoints import Hookpoint, resolve_hookpoint
from extraction_kit.trainings.model_folder import ModelSpec, describe_model
from extraction_kit.trainings.sae_folder import describe_sae
from extraction_kit.trainings.sae_formats.spec import SaeSpec
from extraction_kit.trainings.tokenizer_folder import TokenizerSpec, describe_tokenizer
from extraction_kit.trainings.training import (
    Training,
    describe_training,
    resolve_target,
    training_of,
)

__all__ = [
    "Hookpoint",
    "ModelSpec",
    "SaeSpec",
    "TokenizerSpec",
    "Training",
    "describe_model",
    "describe_sae",
    "describe_tokenizer",
    "describe_training",
    "resolve_hookpoint",
    "resolve_target",
    "training_of",
]
