"""Configs are strict: every field is checked, unknown ones are refused, and named."""

from dataclasses import FrozenInstanceError, fields

import pytest

from extraction_kit.config import (
    ENVIRONMENT,
    ExtractionConfig,
    Settings,
    config_or_defaults,
    masked,
)
from extraction_kit.errors import BadConfig, BadSettings

BAD = [
    ("n_tokens", 0), ("n_tokens", -5), ("n_tokens", 1e6), ("n_tokens", "1000"),
    ("n_tokens", True), ("context_size", 1), ("context_size", 128.0), ("top_k", 0),
    ("top_k", 1001), ("per_band", -1), ("n_random", 2.0), ("n_silent", 1001),
    ("n_ce_contexts", -1),
    ("n_logits", -1), ("n_neighbours", 1001),
    ("dedupe", 1), ("n_top_tokens", -1), ("n_top_tokens", 2.0), ("n_coactive", 1001),
    ("held_out_share", 1.5), ("held_out_share", "0.2"), ("held_out_share", True),
    ("window", 32), ("window", (1, 2, 3)), ("window", (-1, 4)), ("packing", "packed"),
    ("prepend_bos", "yes"), ("exclude_special_tokens", 1), ("ignore_tokens", "abc"),
    ("ignore_tokens", 5), ("ignore_positions", (-1,)), ("dtype", "fp32"), ("seed", -1),
    ("sae_dtype", "fp32"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_with_its_name_and_value(name, value):
    with pytest.raises(BadConfig) as caught:
        ExtractionConfig(**{name: value})
    assert name.split("_", maxsplit=1)[0] in str(caught.value)
    assert "allowed" in str(caught.value)


def test_an_unknown_option_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(BadConfig, match="unknown option batch_size; allowed are n_tokens"):
        ExtractionConfig.from_dict({"batch_size": 8})
    with pytest.raises(BadConfig, match="did you mean n_tokens"):
        ExtractionConfig(n_token=8)
    with pytest.raises(BadConfig, match="unknown option top_n"):
        ExtractionConfig().replace(top_n=8)
    with pytest.raises(BadSettings, match="did you mean device"):
        Settings(devic="cpu")


def test_only_a_config_is_a_config():
    assert config_or_defaults(None) == ExtractionConfig()
    with pytest.raises(BadConfig, match=r"n_tokens.*xk.ExtractionConfig\(\*\*config\)"):
        config_or_defaults({"n_tokens": 5})
    with pytest.raises(BadConfig, match="an ExtractionConfig is needed"):
        config_or_defaults(0)


def test_a_config_survives_json_and_toml():
    config = ExtractionConfig(
        n_tokens=5, window=[1, 2], ignore_tokens=[3, 1, 3], ignore_positions={0}
    )
    assert ExtractionConfig.from_dict(config.to_dict()) == config
    assert config.ignore_tokens == (1, 3)


def test_a_config_cannot_be_changed_but_replaced():
    config = ExtractionConfig()
    with pytest.raises(FrozenInstanceError):
        config.top_k = 3
    assert config.replace(top_k=3).top_k == 3
    with pytest.raises(BadConfig):
        config.replace(top_k=0)


def test_every_field_of_the_config_is_tested_for_bad_values():
    assert {name for name, _ in BAD} == {field.name for field in fields(ExtractionConfig)}


@pytest.mark.parametrize(
    "values",
    [
        {"beat_s": 0}, {"lease_s": -1}, {"lease_s": True}, {"beat_s": 60.0, "lease_s": 90.0},
        {"self_check_share": 1.0}, {"threads": 0}, {"tile_tokens": 0}, {"min_free_bytes": -1},
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(values):
    with pytest.raises(BadSettings):
        Settings(**values)


def test_the_environment_is_read_and_arguments_win():
    environment = {
        "EXTRACTION_KIT_BEAT_S": "2", "EXTRACTION_KIT_THREADS": "3",
        "EXTRACTION_KIT_SHARED": "/data", "EXTRACTION_KIT_DEVICE": " ",
    }  # fmt: skip
    settings = Settings.from_environment(environment, threads=1)
    assert (settings.beat_s, settings.threads, settings.device) == (2.0, 1, "auto")
    assert str(settings.shared) == "/data"


def test_an_environment_variable_that_is_no_number_is_named():
    with pytest.raises(BadSettings, match="EXTRACTION_KIT_LEASE_S='soon'"):
        Settings.from_environment({"EXTRACTION_KIT_LEASE_S": "soon"})


def test_every_variable_names_a_field():
    assert set(ENVIRONMENT.values()) <= {field.name for field in fields(Settings)}


def test_passwords_never_appear_in_what_is_recorded():
    settings = Settings(
        redis_url="rediss://me:secret@host:1/0", ledger_url="postgresql://h/x"
    )
    assert "secret" not in str(settings.to_dict())
    assert masked("redis://:pw@h") == "redis://:***@h"
    assert masked("unix:///a/b.sock") == "unix:///a/b.sock"
