"""What is said of a run in a few characters."""

import pytest

from extraction_kit.lifecycle import RunState
from extraction_kit.views import short, tokens_done


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("gpt2", "gpt2"),
        ("EleutherAI/pythia-160m", "EleutherAI/pythia-160m"),
        ("/data/models/gpt2", "models/gpt2"),
        ("/models/gpt2", "models/gpt2"),
        ("/gpt2", "gpt2"),
    ],
)
def test_a_hub_id_stays_and_of_a_path_the_end_is_shown(source, said):
    assert short(source) == said


@pytest.mark.parametrize(
    ("state", "told", "saved", "done"),
    [
        ("queued", None, None, 0),
        ("extracting", 300, 200, 300),
        ("extracting", None, 200, 200),  # a new attempt that has not spoken yet
        ("interrupted", None, 200, 200),
        ("extracting", 1200, None, 1000),  # more than all is none
        ("publishing", 900, 200, 1000),
        ("completed", None, None, 1000),
    ],
)
def test_a_run_is_as_far_as_was_told_or_saved(state, told, saved, done):
    assert tokens_done(RunState(state), 1000, told=told, saved=saved) == done
