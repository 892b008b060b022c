"""Model, SAE and corpus together on a device: loaded, checked, and read in tiles.

Every tile has the same shape (the last one is padded), so that the numbers do not depend on
where the work was interrupted.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import ContextBatch, Corpus
from extraction_kit.errors import BadCorpus, BadModel, BadSettings
from extraction_kit.sources.devices import (
    DTYPES,
    describe_device,
    resolve_device,
    statistics_device,
)
from extraction_kit.sources.loading import load_model
from extraction_kit.sources.models import HookedModel
from extraction_kit.sources.preflight import Batch, Parts, preflight
from extraction_kit.sources.saes import Autoencoder, load_sae
from extraction_kit.stats import Collection, Contexts, Sizes
from extraction_kit.trainings import Training, resolve_target

HOOK_TOKENS = 16
"""Tokens on which the hookpoint is checked against the model's own hidden states."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Contexts with what the model computed for them."""

    batch: ContextBatch
    contexts: Contexts
    x: Tensor
    """What the SAE reads, (row, d_in)."""
    target: Tensor | None
    """What it should give where that is not `x` (transcoders), (row, d_out)."""


class Rig:
    """What an extraction reads with.

    Parameters
    ----------
    training : Training
        The SAE, its model and the hookpoint.
    corpus : Corpus
        Prepared with the same `config` and tokenizer.
    config : ExtractionConfig
        What is computed.
    settings : Settings
        Device, device map and compute tile.
    threads : int
        CPU threads in use; part of the numerics.
    tell : callable
        Called with the name of each phase.

    Raises
    ------
    BadModel, BadSae, BadCorpus
        A part cannot be used, or they do not belong together.
    BadSettings
        The device is not there, or the tile does not fit into its memory.
    """

    def __init__(
        self,
        training: Training,
        corpus: Corpus,
        *,
        config: ExtractionConfig,
        settings: Settings,
        threads: int,
        tell: Callable[[str], None],
    ) -> None:
        _check_sizes(training, corpus)
        self.training, self.corpus = training, corpus
        self.config, self.settings = config, settings
        self.device = resolve_device(settings.device)
        self.target, self.not_compared_because = resolve_target(training)
        self.compared_at = self.target or training.hookpoint
        tell("loading model")
        self.model = self._load_model()
        tell("loading SAE")
        self.sae: Autoencoder = load_sae(
            training.sae, device=self.device, dtype=DTYPES[config.dtype]
        )
        self.tile = max(1, settings.tile_tokens // corpus.context_size)
        self.fingerprint = self._fingerprint(threads)
        tell("checking")
        first = self._on_device(corpus.read(0, 1), at=0).tokens[:1, :HOOK_TOKENS]
        self.equals_hidden_state = self.model.check_hookpoint(first)
        self._preflight()

    @property
    def compares(self) -> bool:
        """Whether there is anything to compare the SAE's output with."""
        return self.not_compared_because is None

    def new_statistics(self) -> Collection:
        """Return accumulators of the right sizes, empty."""
        config = self.config
        d_in = self.training.sae.d_in if self.target is None else self.target.width
        return Collection(
            d_in=d_in,
            d_sae=self.training.sae.d_sae,
            sizes=Sizes(
                top_k=config.top_k,
                window=config.window,
                per_band=config.per_band,
                n_random=config.n_random,
                n_silent=config.n_silent,
                held_out_share=config.held_out_share,
                dedupe=config.dedupe,
                n_top_tokens=config.n_top_tokens,
                n_coactive=config.n_coactive,
                seed=config.seed,
            ),
            compared=self.compares,
            device=statistics_device(self.device),
        )

    def read(self, first: int) -> Tile:
        """Run the model over the contexts of a tile, beginning with `first`."""
        batch = self.corpus.read(first, self.tile)
        contexts = self._on_device(batch, at=first)
        x, target = self.model.with_target(contexts.tokens, self._present(batch))
        return Tile(batch=batch, contexts=contexts, x=x, target=target)

    def refuse_non_finite(self, x: Tensor, x_hat: Tensor, tile: Tile) -> None:
        """Name the first valid token whose row of `x` or `x_hat` is not finite.

        Raises
        ------
        BadModel
            There is one.
        """
        valid = torch.nonzero(tile.contexts.valid.reshape(-1)).squeeze(1)
        for name, values in (("activations", x), ("reconstruction", x_hat)):
            bad = torch.nonzero(~torch.isfinite(values[valid]).all(dim=1)).squeeze(1)
            if bad.numel():
                context, pos = divmod(int(valid[bad[0]]), self.corpus.context_size)
                raise BadModel(
                    f"the {name} at {self.compared_at.hook_name!r} are not finite "
                    f"at context {tile.contexts.first + context}, position {pos} "
                    f"(dtype={self.config.dtype!r}): use dtype='float32' or 'bfloat16', or "
                    "another hook_name"
                )

    @contextmanager
    def memory_errors(self) -> Iterator[None]:
        """Say which setting to lower when the device's memory is full."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _is_memory(error):
                raise
            raise BadSettings(
                f"tile_tokens={self.settings.tile_tokens} does not fit into the memory of "
                f"{describe_device(self.device)}: lower it, for example "
                f"Settings(tile_tokens={max(1, self.settings.tile_tokens // 2)}). "
                "Checkpoints continue only under the tile that they were made with"
            ) from error

    # --- loading and checking ---

    def _load_model(self, *, whole: bool = False) -> HookedModel:
        return load_model(
            self.training.model,
            self.training.hookpoint,
            device=self.device,
            dtype=DTYPES[self.config.dtype],
            target=None if whole else self.target,
            device_map=self.settings.device_map,
            whole=whole,
        )

    def _fingerprint(self, threads: int) -> dict[str, Any]:
        found = {
            "device": describe_device(self.device),
            "dtype": self.config.dtype,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": threads,
            "tile_contexts": self.tile,
            "context_size": self.corpus.context_size,
        }
        if self.settings.device_map is not None:
            found["device_map"] = self.settings.device_map
        return found

    def _preflight(self) -> None:
        with self.memory_errors():
            tile = self.read(0)
        target = tile.x if tile.target is None else tile.target
        for values in (tile.x, target):
            self.refuse_non_finite(values, values, tile)
        present = torch.zeros_like(tile.contexts.valid)
        present[: len(tile.batch)] = torch.from_numpy(tile.batch.present).to(self.device)
        parts = Parts(
            training=self.training,
            model=self.model,
            sae=self.sae,
            load_whole=lambda: self._load_model(whole=True),
            compared=self.compares,
        )
        batch = Batch(
            tokens=tile.contexts.tokens, present=present, valid=tile.contexts.valid
        )
        with self.memory_errors():
            self.preflight = preflight(
                parts, batch, refuse=self.settings.preflight == "refuse"
            )

    # --- the corpus in tiles ---

    def _on_device(self, batch: ContextBatch, *, at: int) -> Contexts:
        """Return `batch` as tensors, padded to the compute tile."""
        shape = (self.tile, self.corpus.context_size)
        tokens = np.zeros(shape, dtype=np.int64)
        valid = np.zeros(shape, dtype=bool)
        # The pad id may lie outside the model's vocabulary; the model never looks back
        # from padding, so any known id will do.
        tokens[: len(batch)] = np.where(batch.present, batch.tokens, 0)
        valid[: len(batch)] = batch.valid
        if int(tokens.max()) >= self.training.model.vocab_size:
            raise BadCorpus(
                f"token id {int(tokens.max())} in contexts {at} to "
                f"{at + len(batch) - 1}: the model has vocab_size="
                f"{self.training.model.vocab_size}. Prepare the corpus with its tokenizer"
            )
        return Contexts(
            first=at,
            tokens=torch.from_numpy(tokens).to(self.device),
            valid=torch.from_numpy(valid).to(self.device),
        )

    def _present(self, batch: ContextBatch) -> Tensor | None:
        """Return where no padding is, for a model whose tokens see ahead."""
        if not self.model.sees_ahead:
            return None
        present = np.zeros((self.tile, self.corpus.context_size), dtype=bool)
        present[: len(batch)] = batch.present
        return torch.from_numpy(present).to(self.device)


def _check_sizes(training: Training, corpus: Corpus) -> None:
    model, sae = training.model, training.sae
    if training.hookpoint.width != sae.d_in:
        raise BadModel(
            f"{training.hookpoint.hook_name!r} is {training.hookpoint.width} "
            f"wide, the SAE has d_in={sae.d_in}: choose another hook_name or SAE"
        )
    if model.max_context is not None and corpus.context_size > model.max_context:
        raise BadCorpus(
            f"context_size={corpus.context_size}: the model takes at most "
            f"{model.max_context} tokens. Prepare the corpus with a smaller one"
        )
    if corpus.tokenizer_digest != training.tokenizer.digest:
        raise BadCorpus(
            f"corpus {corpus.digest[:12]} was made with another tokenizer "
            f"({corpus.tokenizer_digest[:12]}) than the training's "
            f"({training.tokenizer.digest[:12]}): prepare it again with "
            "ws.corpus(..., training_id=...)"
        )
    if not corpus.n_tokens:
        raise BadCorpus(
            f"corpus {corpus.digest[:12]} has no valid token: every one is masked"
        )


def _is_memory(error: RuntimeError) -> bool:
    # The CPU allocator raises a bare RuntimeError, told apart by torch's own words.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
