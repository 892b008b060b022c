"""What is computed (`ExtractionConfig`, hashed) and where and how (`Settings`, recorded)."""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

from extraction_kit.errors import BadConfig, BadSettings, near

STATISTICS_FORMAT = 3
"""Version of the statistics and of the published layout; part of every content key."""

Packing = Literal["pack", "document", "truncate"]
Dtype = Literal["float32", "bfloat16", "float16"]
TILE_TOKENS = {"cpu": 1024}
"""Tokens of a tile by type of device, where ``Settings.tile_tokens`` is None."""
TILE_TOKENS_OF_OTHERS = 16_384
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def _check_int(
    name: str, value: object, *, low: int, high: int, error: type[ValueError] = BadConfig
) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        msg = f"{name}={value!r}: an integer from {low} to {high} is allowed"
        raise error(msg)


def _check_share(name: str, value: object) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 <= value <= 1
    ):
        msg = f"{name}={value!r}: a number from 0 to 1 is allowed"
        raise BadConfig(msg)


def _check_bool(name: str, value: object, *, error: type[ValueError] = BadConfig) -> None:
    if not isinstance(value, bool):
        msg = f"{name}={value!r}: True or False is allowed"
        raise error(msg)


def _check_choice(
    name: str,
    value: object,
    allowed: tuple[str, ...],
    *,
    error: type[ValueError] = BadConfig,
) -> None:
    if value not in allowed:
        msg = f"{name}={value!r}: one of {', '.join(map(repr, allowed))} is allowed"
        raise error(msg)


def _check_ints(name: str, value: object, low: int) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(
        value, (list, tuple, set, frozenset, range)
    ):
        msg = f"{name}={value!r}: a tuple of integers is allowed, for example {name}=(0, 1)"
        raise BadConfig(msg)
    for item in value:
        _check_int(f"{name} item", item, low=low, high=2**31 - 1)
    return tuple(sorted(set(value)))


def _check_names(
    names: Iterable[str], known: list[str], *, error: type[ValueError] = BadConfig
) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        meant = near(unknown[0], known)
        hint = f" (did you mean {' or '.join(meant)}?)" if meant else ""
        raise error(
            f"unknown option {', '.join(unknown)}{hint}; allowed are {', '.join(known)}"
        )


def _name_what_is_unknown(cls: type[Any], error: type[ValueError]) -> None:
    """Let a dataclass say which field was meant, where Python says only which is not one."""
    make = cls.__init__
    known = list(cls.__dataclass_fields__)

    @wraps(make)
    def checked(self: object, *args: object, **values: object) -> None:
        _check_names(values, known, error=error)
        make(self, *args, **values)

    cls.__init__ = checked


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """Everything that decides the numbers; part of the run's identity.

    Two launches with equal configs (and the same SAE, model, hookpoint and corpus) are the
    same run. Fields are checked when the object is made: `BadConfig` says what is allowed.
    """

    n_tokens: int | None = None
    """Valid tokens to measure (after masks); None takes the whole corpus. A corpus with
    fewer is refused, never repeated."""
    context_size: int = 128
    """Tokens the model sees at once, BOS included."""
    top_k: int = 20
    """Top activating examples kept per feature, at most one per context."""
    per_band: int = 3
    """Examples from each of the four octaves below a feature's largest activation, drawn
    uniformly among the contexts that peak there; 0 leaves them out."""
    n_random: int = 10
    """Examples drawn uniformly among the contexts in which a feature is active; 0 leaves
    them out."""
    n_silent: int = 5
    """Examples of contexts in which a feature is active on no token; 0 leaves them out."""
    n_logits: int = 10
    """Tokens kept per feature at each end of its logits, the ones it makes most and least
    likely (logit lens, :mod:`extraction_kit.sources.lens`); 0 leaves them out. Costs as much
    as encoding once more as many tokens as the vocabulary has."""
    n_neighbours: int = 10
    """Other features kept per feature, those with the largest cosine of decoder rows; 0
    leaves them out. Costs as much as encoding d_sae more tokens: 2 d_sae^2 d_in operations,
    minutes on a CPU for 131,072 features."""
    held_out_share: float = 0.2
    """Share of the contexts whose examples are marked ``held_out``, whatever their group:
    explain a feature with the others and score the explanation with these."""
    n_ce_contexts: int = 0
    """Contexts, drawn uniformly, on which the model's next-token loss is measured with the
    SAE's output in the place of what it describes (CE loss recovered), after the pass and
    with the whole model; 0 leaves it out."""
    window: tuple[int, int] = (32, 16)
    """Tokens kept (before, after) the peak of an example; cut at the context's edges."""
    dedupe: bool = False
    """Whether the top examples of a feature are of different windows: of those that hold
    the same tokens around the peak only the best is kept, so that copies of one text do not
    fill the `top_k`."""
    n_top_tokens: int = 0
    """Token ids kept per feature, those on which it is active most often; 0 leaves them
    out. Counted in at most 2^25 activations, beyond which contexts are drawn uniformly."""
    n_coactive: int = 0
    """Other features kept per feature, those that are active on the same tokens; 0 leaves
    them out. Counted in the same contexts as the top tokens."""
    packing: Packing = "pack"
    """"pack" joins documents (EOS between them) and cuts full contexts; "document" starts a
    context at each document and pads its last one; "truncate" takes only the first context
    of each document."""
    prepend_bos: bool | None = None
    """Begin each context with BOS. None does so iff the tokenizer has a BOS token."""
    exclude_special_tokens: bool = True
    """The model sees BOS, EOS and other special tokens, the statistics do not count them.
    Padding is never counted."""
    ignore_tokens: tuple[int, ...] = ()
    """Further token ids that the statistics do not count."""
    ignore_positions: tuple[int, ...] = ()
    """Positions in the context (0 is the first token, BOS if there is one) not counted."""
    dtype: Dtype = "float32"
    """Arithmetic of model and SAE. Statistics are int64 and float64 always."""
    sae_dtype: Dtype | None = None
    """Arithmetic of the SAE, where it is not that of the model: "float32" beside a model in
    bfloat16 sums and compares pre-activations in float32."""
    seed: int = 0
    """Seed of everything sampled (random examples, the contexts that are held out)."""

    def __post_init__(self) -> None:
        """Check every field; raise `BadConfig` that names the field and its range."""
        if self.n_tokens is not None:
            _check_int("n_tokens", self.n_tokens, low=1, high=2**53)
        _check_int("context_size", self.context_size, low=2, high=1_048_576)
        _check_int("top_k", self.top_k, low=1, high=1000)
        for name in (
            "per_band", "n_random", "n_silent", "n_logits", "n_neighbours", "n_top_tokens",
            "n_coactive",
        ):  # fmt: skip
            _check_int(name, getattr(self, name), low=0, high=1000)
        _check_int("n_ce_contexts", self.n_ce_contexts, low=0, high=2**31 - 1)
        _check_share("held_out_share", self.held_out_share)
        _check_bool("dedupe", self.dedupe)
        _check_int("seed", self.seed, low=0, high=2**63 - 1)
        _check_choice("packing", self.packing, get_args(Packing))
        _check_choice("dtype", self.dtype, get_args(Dtype))
        if self.sae_dtype is not None:
            _check_choice("sae_dtype", self.sae_dtype, get_args(Dtype))
        _check_bool("exclude_special_tokens", self.exclude_special_tokens)
        if self.prepend_bos is not None:
            _check_bool("prepend_bos", self.prepend_bos)
        window: object = self.window
        if not isinstance(window, (list, tuple)) or len(window) != 2:  # noqa: PLR2004 - (before, after)
            msg = f"window={self.window!r}: a pair (tokens before, tokens after) is allowed"
            raise BadConfig(msg)
        for side, value in zip(("before", "after"), self.window, strict=True):
            _check_int(f"window {side}", value, low=0, high=4096)
        object.__setattr__(self, "window", tuple(self.window))
        for name in ("ignore_tokens", "ignore_positions"):
            object.__setattr__(self, name, _check_ints(name, getattr(self, name), 0))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from plain values, e.g. parsed TOML or JSON.

        Raises
        ------
        BadConfig
            A key is unknown (the allowed ones are listed) or a value is out of range.
        """
        return cls(**values)

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Build a config from lines such as ``n_tokens = 1_000_000``; none are the defaults.

        Raises
        ------
        BadConfig
            A line is no TOML, a field is unknown or its value is not allowed; the message
            holds a line that can be typed instead.
        """
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise BadConfig(
                f"{_broken_line(text)}{error}: lines of TOML are wanted, such as "
                f"{_line('n_tokens')}, {_line('packing')} or {_line('dedupe')} (true and "
                "false in small letters, texts in quotes). The fields are "
                f"{', '.join(cls.__dataclass_fields__)}"
            ) from None
        for name, value in values.items():  # one by one: the message is about one
            try:
                cls.from_dict({name: value})
            except BadConfig as error:
                meant = near(name, cls.__dataclass_fields__)
                line = f". Type for example {_line(meant[0])}" if meant else ""
                raise BadConfig(f"{error}{line}") from None
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; ``from_dict`` is the inverse."""
        plain = asdict(self)
        for name in ("window", "ignore_tokens", "ignore_positions"):
            plain[name] = list(plain[name])
        return plain

    def replace(self, **changes: Any) -> Self:  # noqa: ANN401 - any field
        """Return a copy with some fields changed, checked again."""
        return replace(self, **changes)


_name_what_is_unknown(ExtractionConfig, BadConfig)


def config_or_defaults(config: object) -> ExtractionConfig:
    """Return the config that was passed, or the defaults.

    Raises
    ------
    BadConfig
        It is anything else, a dict for example.
    """
    if config is not None and not isinstance(config, ExtractionConfig):
        fields_ = "**config" if isinstance(config, Mapping) else "n_tokens=1_000_000"
        raise BadConfig(
            f"config={config!r}: an ExtractionConfig is needed, for example "
            f"config=xk.ExtractionConfig({fields_})"
        )
    return ExtractionConfig() if config is None else config


_EXAMPLES = {"n_tokens": 1_000_000, "prepend_bos": True, "sae_dtype": "float32"}


def _line(name: str) -> str:
    """Return a line of TOML that sets a field."""
    default = ExtractionConfig.__dataclass_fields__[name].default
    return f"`{name} = {json.dumps(_EXAMPLES.get(name, default))}`"


def _broken_line(text: str) -> str:
    """Return the first line that is no TOML by itself, for the words of an error."""
    for line in text.splitlines():
        try:
            tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            return f"`{line.strip()}`: "
    return ""  # each is, together they are not: a field twice


# environment variable -> field; nothing else in the environment is read.
ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "EXTRACTION_KIT_REDIS_URL": "redis_url",
        "EXTRACTION_KIT_LEDGER_URL": "ledger_url",
        "EXTRACTION_KIT_SHARED": "shared",
        "EXTRACTION_KIT_DEVICE": "device",
        "EXTRACTION_KIT_DEVICE_MAP": "device_map",
        "EXTRACTION_KIT_THREADS": "threads",
        "EXTRACTION_KIT_CHECKPOINT_EVERY_S": "checkpoint_every_s",
        "EXTRACTION_KIT_BEAT_S": "beat_s",
        "EXTRACTION_KIT_LEASE_S": "lease_s",
        "EXTRACTION_KIT_RECONCILE_S": "reconcile_s",
        "EXTRACTION_KIT_QUEUED_GRACE_S": "queued_grace_s",
        "EXTRACTION_KIT_INTERMEDIATE_GRACE_S": "intermediate_grace_s",
        "EXTRACTION_KIT_STUCK_AFTER_S": "stuck_after_s",
        "EXTRACTION_KIT_PREFLIGHT": "preflight",
        "EXTRACTION_KIT_TILE_TOKENS": "tile_tokens",
        "EXTRACTION_KIT_MIN_FREE_BYTES": "min_free_bytes",
        "EXTRACTION_KIT_INDEX_ABOVE": "index_above",
        "EXTRACTION_KIT_SELF_CHECK_SHARE": "self_check_share",
        "EXTRACTION_KIT_KILL_AFTER_S": "kill_after_s",
        "EXTRACTION_KIT_ALERT_WEBHOOK": "alert_webhook",
        "EXTRACTION_KIT_AUTO_FAIL": "auto_fail",
    }
)


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """Where things live and how the work is done; never part of a run's identity.

    Recorded with every result. Read from the environment by :meth:`from_environment`; the
    variables are the keys of ``config.ENVIRONMENT``.
    """

    redis_url: str | None = None
    """An own Redis or Valkey server; None starts the embedded one in the workspace."""
    ledger_url: str | None = None
    """SQLAlchemy URL of the ledger; None is ``<workspace>/ledger.sqlite``."""
    shared: Path | None = None
    """Directory for what several machines share; None is the workspace itself."""
    device: str = "auto"
    """"auto" takes CUDA, then MPS, then the CPU; or any torch device string."""
    device_map: str | None = None
    """Spreads the model's layers over several GPUs: "auto", "balanced", "balanced_low_0" or
    "sequential" of `accelerate`; None puts the model where the SAE is."""
    threads: int | None = None
    """CPU threads of torch; None leaves torch's own choice."""
    preflight: Literal["refuse", "report"] = "refuse"
    """What is done if the first batch shows that the SAE does not explain what it reads:
    "refuse" stops before the work, "report" records it with the result and goes on."""
    tile_tokens: int | None = None
    """Tokens per micro-batch; rounded down to whole contexts, at least one. Part of the
    numerics fingerprint: a checkpoint continues only under the same tile. None takes 1024 on
    a CPU and 16384 on a GPU, halved before the first token until they fit into memory, and
    the checkpoint's when a run is resumed."""
    beat_s: float = 15.0
    """Seconds between two beats of a working process."""
    lease_s: float = 90.0
    """Seconds without a new beat after which an observer calls a process silent."""
    self_check_share: float = 0.6
    """Share of the lease after which a process without a good beat asks before going on."""
    reconcile_s: float = 30.0
    """Seconds between two reconciliations in a worker's parent."""
    queued_grace_s: float = 30.0
    """Seconds a requested or queued run is left alone."""
    intermediate_grace_s: float = 120.0
    """Seconds a job may stay in RQ's intermediate queue."""
    checkpoint_every_s: float = 120.0
    """Seconds of computing between two checkpoints."""
    stuck_after_s: float = 3 * 3600.0
    """Seconds without progress after which a run is called stuck."""
    kill_after_s: float = 30.0
    """Seconds between a person's order to stop and the kill."""
    alert_webhook: str | None = None
    """URL to which the monitor posts each new alert as JSON; None posts nothing."""
    auto_fail: bool = False
    """Whether the monitor kills a stuck run and records it as failed; else it only alerts."""
    min_free_bytes: int = 256 * 2**20
    """Free disk space below which a launch is refused."""
    index_above: int = 1000
    """Completed runs above which the monitor builds indexes over all of them, anew when a
    hundredth of this number is not in them. They take a sixth of what the results take."""

    def __post_init__(self) -> None:
        """Check every field; raise `BadSettings` that names the field and its range."""
        for name in (
            "beat_s", "lease_s", "reconcile_s", "queued_grace_s", "intermediate_grace_s",
            "checkpoint_every_s", "stuck_after_s", "kill_after_s",
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                msg = f"{name}={value!r}: a number of seconds above 0 is allowed"
                raise BadSettings(msg)
        self._check_alerts()
        self._check_work()
        if not 0 < self.self_check_share < 1:
            msg = f"self_check_share={self.self_check_share!r}: between 0 and 1 is allowed"
            raise BadSettings(msg)
        if self.beat_s >= self.lease_s * self.self_check_share:
            msg = (
                f"beat_s={self.beat_s} must be well below lease_s={self.lease_s}: "
                f"at most {self.self_check_share} of it, or a healthy run looks silent"
            )
            raise BadSettings(msg)
        if self.shared is not None:
            object.__setattr__(self, "shared", Path(self.shared).expanduser().absolute())

    def _check_work(self) -> None:
        if self.device_map is not None:
            _check_choice("device_map", self.device_map, DEVICE_MAPS, error=BadSettings)
        _check_choice("preflight", self.preflight, ("refuse", "report"), error=BadSettings)
        _check_int(
            "min_free_bytes", self.min_free_bytes, low=0, high=2**53, error=BadSettings
        )
        _check_int("index_above", self.index_above, low=0, high=2**53, error=BadSettings)
        for name, high in (("tile_tokens", 2**24), ("threads", 4096)):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), low=1, high=high, error=BadSettings)

    def _check_alerts(self) -> None:
        _check_bool("auto_fail", self.auto_fail, error=BadSettings)
        if self.alert_webhook is not None and not re.match(
            r"https?://[^/\s]", self.alert_webhook
        ):
            raise BadSettings("alert_webhook: a URL that begins with https:// is allowed")

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str] | None = None,
        **overrides: Any,  # noqa: ANN401
    ) -> Self:
        """Read the variables of `ENVIRONMENT`; keyword arguments win over them.

        Raises
        ------
        BadSettings
            A variable cannot be read as its field's type, or is out of range.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for variable, name in ENVIRONMENT.items():
            text = environment.get(variable, "").strip()
            if text:
                values[name] = _parse(variable, name, text)
        return cls(**(values | overrides))

    def to_environment(self) -> dict[str, str]:
        """Return the variables with which a started worker reads the same settings."""
        values = {variable: getattr(self, name) for variable, name in ENVIRONMENT.items()}
        return {name: "" if value is None else str(value) for name, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values with the password of each URL masked."""
        plain = asdict(self)
        plain["shared"] = None if self.shared is None else str(self.shared)
        for name in ("redis_url", "ledger_url"):
            plain[name] = masked(plain[name])
        if self.alert_webhook is not None:  # its path is a secret, as a rule
            plain["alert_webhook"] = "/".join(self.alert_webhook.split("/")[:3]) + "/***"
        return plain

    def __repr__(self) -> str:
        """Return what differs from the defaults, the password of each URL masked."""
        plain = self.to_dict()
        changed = [
            f"{field.name}={plain[field.name]!r}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"Settings({', '.join(changed)})"


_name_what_is_unknown(Settings, BadSettings)


def masked(url: str | None) -> str | None:
    """Return `url` with its password replaced by ``***``."""
    if url is None:
        return None
    url = re.sub(r"(?i)([?&]password=)[^&]*", r"\1***", url)
    return re.sub(r"(://[^:/?#@]*):.*@", r"\1:***@", url)


_INTEGERS = frozenset({"threads", "tile_tokens", "min_free_bytes", "index_above"})
_TEXTS = frozenset(
    {"redis_url", "ledger_url", "device", "device_map", "preflight", "alert_webhook"}
)
_SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _parse(variable: str, name: str, text: str) -> object:
    if name in _TEXTS:
        return text
    if name == "shared":
        return Path(text)
    if name == "auto_fail":
        if text.lower() not in _SWITCH:
            raise BadSettings(f"{variable}={text!r}: 1 or 0 is allowed")
        return _SWITCH[text.lower()]
    kind = int if name in _INTEGERS else float
    try:
        return kind(text)
    except ValueError:
        noun = "an integer" if kind is int else "a number"
        msg = f"{variable}={text!r}: {noun} is allowed"
        raise BadSettings(msg) from None
