"""What is read: the language model up to its hookpoint, and the SAE."""

from extraction_kit.sources.devices import resolve_device
from extraction_kit.sources.loading import load_model
from extraction_kit.sources.models import HookedModel
from extraction_kit.sources.saes import SparseAutoencoder, load_sae

__all__ = ["HookedModel", "SparseAutoencoder", "load_model", "load_sae", "resolve_device"]
