"""One SAE at its hookpoint: what it reads of each tile, and what is measured of it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from extraction_kit.config import ExtractionConfig
from extraction_kit.errors import BadModel, naming
from extraction_kit.extraction.feed import Tile
from extraction_kit.sources.blocks import Blocks
from extraction_kit.sources.custom_sae import CustomAutoencoder, EncodesAndDecodes
from extraction_kit.sources.devices import DTYPES, statistics_device
from extraction_kit.sources.models import HookedModel
from extraction_kit.sources.normalized import Normalized
from extraction_kit.sources.preflight import Batch, Parts, Preflight, preflight
from extraction_kit.sources.saes import Autoencoder, load_sae
from extraction_kit.stats import Activations, Collection, Sizes
from extraction_kit.trainings import Hookpoint, Training, resolve_target


@dataclass(frozen=True)
class Encoded:
    """What an SAE finds in a tile."""

    tile: Tile
    normal: Normalized
    baseline: Tensor
    active: list[Activations]


class Station:
    """What belongs to one training; several stand along one pass of the model.

    Parameters
    ----------
    training : Training
        The SAE and its hookpoint.
    config : ExtractionConfig
        What is computed.
    is_alone : bool
        Whether there are no others, from which messages would have to tell it.

    Raises
    ------
    BadModel, BadSae
        Its parts do not belong together.
    """

    sae: Autoencoder
    statistics: Collection
    preflight: Preflight
    equals_hidden_state: bool | None

    def __init__(
        self, training: Training, config: ExtractionConfig, *, is_alone: bool
    ) -> None:
        self.training, self.config, self._is_alone = training, config, is_alone
        with self.naming():
            _check_width(training)
            self.target, self.not_compared_because = resolve_target(training)
        self.compared_at = self.target or training.hookpoint

    @property
    def compares(self) -> bool:
        """Whether there is anything to compare the SAE's output with."""
        return self.not_compared_because is None

    @property
    def places(self) -> tuple[Hookpoint, ...]:
        """Where activations are captured for it."""
        here = self.training.hookpoint
        return (here,) if self.target is None else (here, self.target)

    def naming(self) -> AbstractContextManager[None]:
        """Say in front of an error's words which of several SAEs it is about."""
        return naming(None if self._is_alone else self.training.training_id)

    # --- before the first tile ---

    def load(
        self, given: EncodesAndDecodes | None, *, device: torch.device, blocks: Blocks
    ) -> None:
        """Load the SAE, or take the object that is `given`; make empty statistics."""
        spec, config = self.training.sae, self.config
        dtype = DTYPES[config.sae_dtype or config.dtype]
        if given is not None:
            self.sae = CustomAutoencoder(spec, given, device=device, dtype=dtype)
        else:
            self.sae = load_sae(spec, device=device, dtype=dtype, blocks=blocks)
        self.statistics = Collection(
            d_in=self.compared_at.width if self.target else spec.d_in,
            d_sae=spec.d_sae,
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
            device=statistics_device(device),
        )

    def check_hookpoint(
        self, model: HookedModel, tokens: Tensor, captured: Mapping[Hookpoint, Tensor]
    ) -> None:
        """Check on a few `tokens` that its activations are those that the hook names.

        Parameters
        ----------
        model : HookedModel
            At its places.
        captured : mapping
            What the pass for all stations finds there.

        Raises
        ------
        BadModel
            The model's own record differs, or what comes behind the hookpoint changes it.
        """
        self.equals_hidden_state = model.check_hookpoint(tokens)
        hookpoint = self.training.hookpoint
        if len(captured) > 1 and not torch.allclose(
            captured[hookpoint], model(tokens), rtol=1e-3, atol=1e-4, equal_nan=True
        ):
            raise BadModel(
                f"what is at {hookpoint.hook_name!r} is changed in place by modules behind "
                "it: this model can be read at one place only. Extract each SAE alone"
            )

    def look_at(
        self,
        tile: Tile,
        model: HookedModel,
        *,
        load_whole: Callable[[], HookedModel],
        refuse: bool,
    ) -> None:
        """Run the preflight on the first tile; see `preflight`."""
        for place in self.places:
            values = tile.activations[place]
            self.refuse_non_finite(values, values, tile)
        parts = Parts(
            training=self.training,
            model=model,
            sae=self.sae,
            load_whole=load_whole,
            compared=self.compares,
        )
        batch = Batch(
            tokens=tile.contexts.tokens, present=tile.present, valid=tile.contexts.valid
        )
        self.preflight = preflight(parts, batch, refuse=refuse)

    # --- in the loop ---

    def encode(self, tile: Tile) -> Encoded:
        """Find the active features of a tile; used on the second of the `Lanes`."""
        x = tile.activations[self.training.hookpoint]
        normal = self.sae.normalize(x)
        return Encoded(
            tile=tile,
            normal=normal,
            baseline=self.sae.baseline(x),
            active=list(self.sae.encode(normal.x, tile.contexts, aside=True)),
        )

    def count(self, found: Encoded) -> None:
        """Take what was found in a tile into the statistics."""
        tile, x_hat = found.tile, found.baseline
        wanted = tile.activations[self.compared_at]
        for active in found.active:
            x_hat = x_hat + self.sae.decode(active, n_rows=wanted.shape[0])
            self.statistics.update(active.to(self.statistics.device))
        x_hat = found.normal.undo(x_hat)
        made, compared = x_hat, wanted
        if tile.contexts.masked_rows.size:
            valid = torch.nonzero(tile.contexts.valid.reshape(-1)).squeeze(1)
            made, compared = x_hat[valid], wanted[valid]
        self.statistics.update_quality(
            compared,
            made if self.compares else None,
            n_active=sum(active.n_active for active in found.active),
        )
        # What is not compared is in no sum that would show it.
        finite = self.compares or bool(torch.isfinite(made).all())
        if not (finite and self.statistics.quality.finite):
            self.refuse_non_finite(wanted, x_hat, tile)

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


def _check_width(training: Training) -> None:
    if training.hookpoint.width != training.sae.d_in:
        raise BadModel(
            f"{training.hookpoint.hook_name!r} is {training.hookpoint.width} "
            f"wide, the SAE has d_in={training.sae.d_in}: choose another hook_name or SAE"
        )
