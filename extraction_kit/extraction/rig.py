"""A language model and a corpus on a device, read once for the SAEs along the way."""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
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
from extraction_kit.corpora import Corpus
from extraction_kit.errors import BadCorpus, BadModel, BadSae, BadSettings
from extraction_kit.extraction.feed import Fed, Feed, Tile
from extraction_kit.extraction.given import Given
from extraction_kit.extraction.station import Station
from extraction_kit.sources.blocks import Blocks
from extraction_kit.sources.devices import (
    DTYPES,
    describe_device,
    reduced_precision,
    resolve_device,
)
from extraction_kit.sources.lanes import Lanes
from extraction_kit.sources.loading import load_model
from extraction_kit.sources.models import HookedModel
from extraction_kit.stats import Contexts
from extraction_kit.trainings import Hookpoint, Training

log = logging.getLogger(__name__)

HOOK_TOKENS = 16
"""Tokens on which the hookpoint is checked against the model's own hidden states."""


class Rig:
    """What an extraction reads with, and the stations that are fed.

    Held at a time: the model up to the last hookpoint; of each SAE its weights and
    statistics; of one tile the activations at each place; of one SAE the pre-activations.

    Parameters
    ----------
    trainings : sequence of Training
        The SAEs and their hookpoints in one model.
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
        Model or SAEs, where they are in memory already.

    Raises
    ------
    BadModel, BadSae, BadCorpus
        A part cannot be used, or they do not belong together.
    BadSettings
        The device is not there, or the tile does not fit into its memory.
    """

    def __init__(  # noqa: PLR0913 - what to compute, and what is known of it
        self,
        trainings: Sequence[Training],
        corpus: Corpus,
        *,
        config: ExtractionConfig,
        settings: Settings,
        threads: int,
        tell: Callable[[str], None],
        given: Given,
        tile: int | None = None,
    ) -> None:
        _check_one_model(trainings)
        _check_corpus(trainings[0], corpus)
        self.corpus, self._given = corpus, given
        self.config, self.settings = config, settings
        self.device = resolve_device(settings.device)
        self.lanes = Lanes(self.device)
        is_alone = len(trainings) == 1
        self.stations = [Station(each, config, is_alone=is_alone) for each in trainings]
        self._spec = trainings[0].model
        self._feed = Feed(corpus, device=self.device, vocab_size=self._spec.vocab_size)
        tell("loading model")
        self.model = self._load_model()
        self._is_whole = False
        tell("loading SAE")
        self._load_saes()
        self.tile = tile or self._first_tile()
        """Contexts of full length that are computed together."""
        tell("checking")
        self._check_hookpoints()
        self._preflight(may_halve=tile is None and settings.tile_tokens is None)
        self.fingerprint = self._fingerprint(threads)

    def tiles(self, n_done: int = 0) -> Generator[Tile, None, None]:
        """Yield what the model computes for the contexts after the first `n_done`."""
        with closing(self._feed.after(n_done, tile=self.tile)) as feed:
            for fed in feed:
                yield self._computed(fed)

    def gather(self, numbers: np.ndarray) -> Contexts:
        """Return the contexts of some `numbers`, at most a tile of them."""
        return self._feed.gather(numbers, rows=self.tile)

    def model_at(self, station: Station) -> HookedModel:
        """Return the model as it is read for one station."""
        return self.model.at(station.training.hookpoint, station.target)

    def whole_model_at(self, station: Station) -> HookedModel:
        """Return the model with all its layers and its head, in the place of the cut one."""
        if not self._is_whole:
            vars(self).pop("model", None)  # not both at once; gone if loading failed before
            self.model = self._load_model(whole=True)
            self._is_whole = True
        return self.model_at(station)

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

    # --- the pass ---

    @property
    def _places(self) -> tuple[Hookpoint, ...]:
        """All places that are captured, each once."""
        return tuple(
            dict.fromkeys(place for each in self.stations for place in each.places)
        )

    def _captured(self, tokens: Tensor, present: Tensor) -> dict[Hookpoint, Tensor]:
        found = self.model.capture(tokens, self._places, present)
        return dict(zip(self._places, found, strict=True))

    def _computed(self, fed: Fed) -> Tile:
        activations = self._captured(fed.contexts.tokens, fed.present)
        return Tile(**vars(fed), activations=activations)

    # --- loading and checking ---

    def _load_model(self, *, whole: bool = False) -> HookedModel:
        first, *others = self._places
        if self._given.model is not None:
            return self._given.hooked(self._spec, first)
        return load_model(
            self._spec,
            first,
            device=self.device,
            dtype=DTYPES[self.config.dtype],
            others=others,
            device_map=self.settings.device_map,
            whole=whole,
        )

    def _load_saes(self) -> None:
        blocks = Blocks(self.lanes)  # they encode one after another
        for each in self.stations:
            given = self._given.saes.get(each.training.training_id)
            with each.naming():
                each.load(given, device=self.device, blocks=blocks)

    def _first_tile(self) -> int:
        wanted = self.settings.tile_tokens
        if wanted is None:
            wanted = TILE_TOKENS.get(self.device.type, TILE_TOKENS_OF_OTHERS)
        return max(1, wanted // self.corpus.context_size)

    @property
    def _tile_tokens(self) -> int:
        return self.settings.tile_tokens or self.tile * self.corpus.context_size

    def _check_hookpoints(self) -> None:
        tokens = self._feed.beginning(HOOK_TOKENS)
        for each in self.stations:
            with each.naming():
                self.model_at(each).with_target(tokens)  # reached, and of the right shape
        captured = self._captured(tokens, torch.ones_like(tokens, dtype=torch.bool))
        for each in self.stations:
            with each.naming():
                each.check_hookpoint(self.model_at(each), tokens, captured)

    def _preflight(self, *, may_halve: bool) -> None:
        """Measure the first tile; where it does not fit, one half as large if that is allowed.

        Before the first token is counted the tile is free: afterwards it is part of the
        numerics.
        """
        while True:
            try:
                with self.memory_errors():
                    self._look_at_first_tile()
            except BadSettings:
                if not may_halve or self.tile == 1:
                    raise
                self.tile //= 2
                log.info("the tile does not fit into memory: halved to %s", self.tile)
            else:
                return

    def _look_at_first_tile(self) -> None:
        with closing(self.tiles()) as tiles:
            tile, *_held = islice(tiles, 1 + self.lanes.ahead)  # as many as later on
        for each in self.stations:
            with each.naming():
                each.look_at(
                    tile,
                    self.model_at(each),
                    load_whole=lambda: self._load_model(whole=True),
                    refuse=self.settings.preflight == "refuse",
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
        for each in (self.model, *(station.sae for station in self.stations)):
            found |= each.shortcuts
        if reduced := reduced_precision(self.device):
            found["float32_products"] = reduced
        if self.settings.device_map is not None:
            found["device_map"] = self.settings.device_map
        return found


def _check_one_model(trainings: Sequence[Training]) -> None:
    """Refuse SAEs that cannot be fed by one pass.

    Raises
    ------
    BadSae
        There is none, or two have one name.
    BadModel
        Their models or tokenizers differ.
    """
    if not trainings:
        raise BadSae("no SAE: at least one is needed")
    first, *others = trainings
    names = [each.training_id for each in trainings]
    for name in names:
        if names.count(name) > 1:
            raise BadSae(f"{name!r} is there twice: give each SAE a name of its own")
    for each in others:
        for what in ("model", "tokenizer"):
            one, other = getattr(first, what), getattr(each, what)
            if one.digest != other.digest:
                raise BadModel(
                    f"{each.training_id}: its {what} {other.path} is not the one of "
                    f"{first.training_id}, {one.path}: one pass is of one model on one "
                    "stream of tokens. Extract it alone"
                )


def _check_corpus(training: Training, corpus: Corpus) -> None:
    model = training.model
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
