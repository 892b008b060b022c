"""Signs of life: processes that are gone, beats, observations on a monotonic clock."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from extraction_kit import liveness
from extraction_kit.liveness import (
    Beat,
    BeatFiles,
    Observations,
    ProcessIdentity,
    lasting,
    start_of,
)
from extraction_kit.views import FeatureSoFar, Preview


def test_this_process_is_not_gone():
    assert ProcessIdentity.of_this_process().gone() is False


def test_a_process_that_ended_is_gone_even_as_a_zombie():
    code = (
        "from extraction_kit.liveness import ProcessIdentity as P; import json;"
        "print(json.dumps(P.of_this_process().to_dict()))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        identity = ProcessIdentity.from_dict(__import__("json").loads(child.stdout.read()))
        child.stdout.read()
        while identity.gone() is False:  # it ends by itself; nobody has waited for it yet
            pass
        assert child.returncode is None
    assert identity.gone() is True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells by /proc")
def test_a_process_that_vanishes_while_it_is_looked_at_is_gone(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie by now
        look = liveness._state_and_start

        def look_and_let_it_vanish(stat):
            child.wait()
            return look(stat)

        monkeypatch.setattr(liveness, "_state_and_start", look_and_let_it_vanish)
        assert start_of(child.pid) is None


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"host": "elsewhere"}, None),
        ({"pid_namespace": "pid:[1]"}, None),
        ({"boot_id": "an earlier boot"}, True),
        ({"started": "1"}, True),  # the pid was given to another process
    ],
)
def test_only_what_can_be_proven_is_called_gone(change, verdict):
    assert replace(ProcessIdentity.of_this_process(), **change).gone() is verdict


def test_a_beat_comes_back_and_a_torn_or_strange_one_is_none(tmp_path):
    files, path = BeatFiles(tmp_path / "beats"), tmp_path / "beats" / "r-a1.json"
    beat = Beat(number=3, phase="extracting", n_tokens_done=7, l0=1.5)
    files.write("r", 1, beat)
    assert files.read("r", 1) == beat
    for content in ("", "{", "[]", "{}", '{"number": 1, "new_field": 2}'):
        path.write_text(content, encoding="utf-8")
        assert files.read("r", 1) in {None, Beat(number=1)}
    files.forget("r", 1)
    assert files.read("r", 1) is None
    files.forget("r", 1)


def test_a_beat_carries_a_preview_and_passes_over_one_that_it_does_not_know(tmp_path):
    files, path = BeatFiles(tmp_path / "beats"), tmp_path / "beats" / "r-a1.json"
    shown = FeatureSoFar(
        feature=7, density=0.01, max_act=2.5, tokens=("␀\u202e</b>", "東"), acts=(0.0, 2.5)
    )
    files.write("r", 1, Beat(number=3, preview=Preview(n_tokens=9, features=(shown,))))
    assert files.read("r", 1) == Beat(
        number=3, preview=Preview(n_tokens=9, features=(shown,))
    )
    known = asdict(shown)
    for preview in (
        None, 3, [], {}, {"n_tokens": 9}, {"n_tokens": 9, "features": [{"feature": 7}]},
        {"n_tokens": 9, "features": [known | {"acts": [1.0]}]},
    ):  # fmt: skip
        path.write_text(json.dumps({"number": 3, "preview": preview}), encoding="utf-8")
        assert files.read("r", 1) == Beat(number=3)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_value_is_unchanged_since_it_was_first_seen(tmp_path):
    clock = Clock()
    seen = Observations(tmp_path, longest_gap_s=60, clock=clock).load()
    assert seen.unchanged_s("beat r", 1) == 0
    clock.now += 40
    assert seen.unchanged_s("beat r", 1) == 40
    assert seen.unchanged_s("beat r", 2) == 0


def test_an_observer_that_was_away_does_not_take_that_for_silence(tmp_path):
    clock = Clock()
    seen = Observations(tmp_path, longest_gap_s=45, clock=clock).load()
    seen.unchanged_s("beat r", 1)
    clock.now += 7200  # frozen together with what it observes
    assert seen.unchanged_s("beat r", 1) == 45
    clock.now += 40
    assert seen.unchanged_s("beat r", 1) == 85
    assert seen.known_s("beat r", 1) == 85
    assert seen.known_s("beat r", 2) == 0


def test_a_signal_reaches_exactly_the_process_that_is_meant():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = start_of(child.pid)
    meant = replace(ProcessIdentity.of_this_process(), pid=child.pid, started=started)
    for other in ({"started": "1"}, {"host": "elsewhere"}, {"pid_namespace": "pid:[1]"}):
        assert not replace(meant, **other).signal(signal.SIGKILL)
    assert child.poll() is None
    assert meant.signal(signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    assert meant.gone()
    assert not meant.signal(signal.SIGKILL)


def test_observations_survive_their_observer_but_not_those_that_nobody_needs(tmp_path):
    clock = Clock()
    first = Observations(tmp_path, longest_gap_s=60, clock=clock).load()
    first.unchanged_s("a", 1)
    first.unchanged_s("b", 1)
    first.save(keep={"a"})
    clock.now += 60
    second = Observations(tmp_path, longest_gap_s=60, clock=clock).load()
    assert second.unchanged_s("a", 1) == 60
    assert second.unchanged_s("b", 1) == 0


def test_an_observation_from_the_future_counts_from_now(tmp_path):
    clock = Clock()
    first = Observations(tmp_path, longest_gap_s=60, clock=clock).load()
    first.unchanged_s("a", 1)
    first.save(keep={"a"})
    clock.now -= 50  # another boot with the same file, a clock that went back
    second = Observations(tmp_path, longest_gap_s=60, clock=clock).load()
    assert second.unchanged_s("a", 1) == 0


def test_a_damaged_file_of_observations_is_as_none(tmp_path):
    seen = Observations(tmp_path, longest_gap_s=60, clock=Clock()).load()
    seen.unchanged_s("a", 1)
    seen.save(keep={"a"})
    next(tmp_path.glob("observed-*.json")).write_text("[1", encoding="utf-8")
    assert (
        Observations(tmp_path, longest_gap_s=60, clock=Clock()).load().unchanged_s("a", 1)
        == 0
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (10.4, "10 s"),
        (119, "119 s"),
        (120, "2 min"),
        (3 * 3600, "3 h"),
        (5400 * 2.5, "3.8 h"),
    ],
)
def test_a_length_of_time_is_told_in_the_unit_that_fits(seconds, words):
    assert lasting(seconds) == words
