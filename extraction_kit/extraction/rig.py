"""Model, SAE and corpus together on a device: loaded, checked, and read in tiles.

The shape of a tile depends on the length of its contexts alone (the last one of a kind is
padded), so that the numbers do not depend on where the work was interrupted.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from extraction_kit.config import (
    TILE_TOKENS,
    TILE_TOKENS_OF_OTHERS,
    ExtractionConfig,
    Settings,
)
from extraction_kit.corpora import ContextBatch, Corpus, ReadingOrder, TilePlan
from extraction_kit.errors import BadCorpus, BadModel, BadSettings
from extraction_kit.extraction.given import Given
from extraction_kit.sources.custom_sae import CustomAutoencoder
from extraction_kit.sources.devices import (
    DTYPES,
    describe_device,
    resolve_device,
    statistics_device,
)
from extraction_kit.sources.loading import load_model
from extraction_kit.sources.models import HookedModel
from extraction_kit.sources.preflight import Batch, Parts, Preflight, preflight
from extraction_kit.sources.saes import Autoencoder, load_sae
from extraction_kit.stats import Collection, Contexts, Sizes
from extraction_kit.trainings import Training, resolve_target

log = logging.getLogger(__name__)

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
    tile : int, optional
        Whole contexts per tile of a checkpoint that is to be continued; used where
        ``settings.tile_tokens`` is None.
    given : Given
        Model or SAE, where they are in memory already.

    Raises
    ------
    BadModel, BadSae, BadCorpus
        A part cannot be used, or they do not belong together.
    BadSettings
        The device is not there, or the tile does not fit into its memory.
    """

    def __init__(  # noqa: PLR0913 - what to compute, and what is known of it
        self,
        training: Training,
        corpus: Corpus,
        *,
        config: ExtractionConfig,
        settings: Settings,
        threads: int,
        tell: Callable[[str], None],
        given: Given,
        tile: int | None = None,
    ) -> None:
        _check_sizes(training, corpus)
        self.training, self.corpus, self._given = training, corpus, given
        self.config, self.settings = config, settings
        self.device = resolve_device(settings.device)
        self.target, self.not_compared_because = resolve_target(training)
        self.compared_at = self.target or training.hookpoint
        tell("loading model")
        self.model = self._load_model()
        tell("loading SAE")
        self.sae = self._load_sae()
        self.tile = tile or self._first_tile()
        """Contexts of full length that are computed together."""
        tell("checking")
        self._check_hookpoint()
        self._preflight(may_halve=tile is None and settings.tile_tokens is None)
        self.fingerprint = self._fingerprint(threads)

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

    @property
    def order(self) -> ReadingOrder:
        """The tiles in the order in which they are computed."""
        size = self.corpus.context_size
        return ReadingOrder(
            self.corpus.lengths(), context_size=size, tile_tokens=self.tile * size
        )

    def tiles(self, n_done: int = 0) -> Generator[Tile, None, None]:
        """Yield what the model computes for the contexts after the first `n_done`.

        The next tile is read from the disk while the one before is computed.
        """
        plans = self.order.after(n_done)
        with ThreadPoolExecutor(1, thread_name_prefix="xk-read") as reader:
            plan = next(plans, None)
            waiting = reader.submit(self._read, plan)
            while plan is not None:
                batch = waiting.result()
                following = next(plans, None)
                waiting = reader.submit(self._read, following)
                yield self._computed(plan, batch)
                plan = following

    def _read(self, plan: TilePlan | None) -> ContextBatch | None:
        return None if plan is None else self.corpus.read_at(plan.contexts, plan.length)

    def _computed(self, plan: TilePlan, batch: ContextBatch | None) -> Tile:
        assert batch is not None  # noqa: S101 - only read for a plan
        contexts = self._on_device(plan, batch)
        x, target = self.model.with_target(contexts.tokens, self._present(plan, batch))
        return Tile(batch=batch, contexts=contexts, x=x, target=target)

    def gather(self, numbers: np.ndarray) -> Contexts:
        """Return the contexts of some `numbers`, at most a tile of them."""
        plan = TilePlan(np.sort(numbers), self.tile, self.corpus.context_size)
        return self._on_device(plan, self.corpus.read_at(plan.contexts, plan.length))

    def load_whole_model(self) -> HookedModel:
        """Load the model with all its layers and its head, in the place of the cut one."""
        del self.model  # not both at once
        self.model = self._load_model(whole=True)
        return self.model

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
                context, pos = divmod(int(valid[bad[0]]), tile.contexts.size)
                raise BadModel(
                    f"the {name} at {self.compared_at.hook_name!r} are not finite "
                    f"at context {int(tile.contexts.number[context])}, position {pos} "
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
                f"tile_tokens={self._tile_tokens} does not fit into the memory of "
                f"{describe_device(self.device)}: lower it, for example "
                f"Settings(tile_tokens={max(1, self._tile_tokens // 2)}). "
                "Checkpoints continue only under the tile that they were made with"
            ) from error

    # --- loading and checking ---

    def _first_tile(self) -> int:
        wanted = self.settings.tile_tokens
        if wanted is None:
            wanted = TILE_TOKENS.get(self.device.type, TILE_TOKENS_OF_OTHERS)
        return max(1, wanted // self.corpus.context_size)

    @property
    def _tile_tokens(self) -> int:
        return self.settings.tile_tokens or self.tile * self.corpus.context_size

    def _check_hookpoint(self) -> None:
        plan = next(iter(self.order))
        batch = self.corpus.read_at(plan.contexts[:1], plan.length)
        tokens = self._on_device(plan, batch).tokens[:1, :HOOK_TOKENS]
        self.equals_hidden_state = self.model.check_hookpoint(tokens)

    def _load_sae(self) -> Autoencoder:
        config, spec = self.config, self.training.sae
        dtype = DTYPES[config.sae_dtype or config.dtype]
        if self._given.sae is not None:
            return CustomAutoencoder(spec, self._given.sae, device=self.device, dtype=dtype)
        return load_sae(spec, device=self.device, dtype=dtype)

    def _load_model(self, *, whole: bool = False) -> HookedModel:
        target = None if whole else self.target
        if self._given.model is not None:
            return self._given.hooked(self.training.model, self.training.hookpoint, target)
        return load_model(
            self.training.model,
            self.training.hookpoint,
            device=self.device,
            dtype=DTYPES[self.config.dtype],
            target=target,
            device_map=self.settings.device_map,
            whole=whole,
        )

    def _fingerprint(self, threads: int) -> dict[str, Any]:
        found = {
            "device": describe_device(self.device),
            "dtype": self.config.dtype,
            "sae_dtype": self.config.sae_dtype or self.config.dtype,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": threads,
            "tile_contexts": self.tile,
            "context_size": self.corpus.context_size,
        }
        if self.settings.device_map is not None:
            found["device_map"] = self.settings.device_map
        return found

    def _preflight(self, *, may_halve: bool) -> None:
        """Measure the first tile; where it does not fit, one half as large if that is allowed.

        Before the first token is counted the tile is free: afterwards it is part of the
        numerics.
        """
        while True:
            try:
                with self.memory_errors():
                    self.preflight = self._measured_first_tile()
            except BadSettings:
                if not may_halve or self.tile == 1:
                    raise
                self.tile //= 2
                log.info("the tile does not fit into memory: halved to %s", self.tile)
            else:
                return

    def _measured_first_tile(self) -> Preflight:
        tiles = self.tiles()
        try:
            tile = next(tiles)
        finally:
            tiles.close()
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
        return preflight(parts, batch, refuse=self.settings.preflight == "refuse")

    # --- tiles on the device ---

    def _on_device(self, plan: TilePlan, batch: ContextBatch) -> Contexts:
        """Return `batch` as tensors, filled up to the rows of its tile."""
        shape = (plan.rows, plan.length)
        number = np.full(plan.rows, -1, dtype=np.int64)
        tokens = np.zeros(shape, dtype=np.int64)
        valid = np.zeros(shape, dtype=bool)
        # The pad id may lie outside the model's vocabulary; the model never looks back
        # from padding, so any known id will do.
        number[: len(batch)] = plan.contexts[: len(batch)]
        tokens[: len(batch)] = np.where(batch.present, batch.tokens, 0)
        valid[: len(batch)] = batch.valid
        self._check_known(number, tokens)
        return Contexts(
            self._sent(number), tokens=self._sent(tokens), valid=self._sent(valid)
        )

    def _sent(self, array: np.ndarray) -> Tensor:
        here = torch.from_numpy(array)
        if self.device.type == "cuda":  # the copy overlaps with what is being computed
            return here.pin_memory().to(self.device, non_blocking=True)
        return here.to(self.device)

    def _check_known(self, number: np.ndarray, tokens: np.ndarray) -> None:
        largest = int(tokens.max())
        if largest >= self.training.model.vocab_size:
            context = number[np.argmax(tokens.max(axis=1))]
            raise BadCorpus(
                f"token id {largest} in context {context}: the model has vocab_size="
                f"{self.training.model.vocab_size}. Prepare the corpus with its tokenizer"
            )

    def _present(self, plan: TilePlan, batch: ContextBatch) -> Tensor | None:
        """Return where no padding is, for a model whose tokens see ahead."""
        if not self.model.sees_ahead:
            return None
        present = np.zeros((plan.rows, plan.length), dtype=bool)
        present[: len(batch)] = batch.present
        return self._sent(present)


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
