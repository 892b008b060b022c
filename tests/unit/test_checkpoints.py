"""Checkpoints: whole or not there, the furthest sound one wins."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from extraction_kit import atomic
from extraction_kit.checkpoints import META, STATE, Saver, best, newest_meta, save
from extraction_kit.errors import CheckpointUnusable, WorkspaceUnusable
from tests.waiting import until


def state(number):
    return {
        "counts": np.full(5, number, dtype=np.int64),
        "sum": np.array(number / 3),
        "none": np.zeros(0, dtype=np.float32),
    }


def save_at(folder, done):
    return save(folder, state(done), {"n_contexts_done": done, "n_tokens_done": 10 * done})


def test_what_was_saved_comes_back_to_the_last_bit(tmp_path):
    save_at(tmp_path / "a1", 7)
    found = best(tmp_path)
    assert found.meta["n_tokens_done"] == 70
    arrays = found.load()
    assert arrays.keys() == state(7).keys()
    for name, array in state(7).items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_the_last_two_are_kept(tmp_path):
    for done in range(1, 6):
        save_at(tmp_path / "a1", done)
    assert sorted(path.name for path in (tmp_path / "a1").iterdir()) == ["000004", "000005"]


def test_the_furthest_of_all_attempts_is_chosen(tmp_path):
    save_at(tmp_path / "a1", 5)
    save_at(tmp_path / "a2", 9)
    save_at(tmp_path / "a10", 8)
    assert best(tmp_path).path.parent.name == "a2"


def test_a_look_at_a_run_whose_checkpoints_are_just_removed_finds_one_or_none(tmp_path):
    run = tmp_path / "run"
    save_at(tmp_path / "saved" / "a1", 7)

    def come_and_go():
        for number in range(300):
            shutil.copytree(tmp_path / "saved", run)
            run.rename(tmp_path / f"gone-{number}")

    with ThreadPoolExecutor(1) as worker:
        work = worker.submit(come_and_go)
        while not work.done():
            meta = newest_meta(run)
            assert meta is None or meta["n_contexts_done"] == 7
        work.result()


def test_without_checkpoints_there_is_none(tmp_path):
    assert best(tmp_path / "absent") is None
    assert best(tmp_path) is None


def flip_a_byte(folder):
    data = bytearray((folder / STATE).read_bytes())
    data[-1] ^= 1
    (folder / STATE).write_bytes(data)


def cut_the_state(folder):
    (folder / STATE).write_bytes((folder / STATE).read_bytes()[:-9])


def lose_the_state(folder):
    (folder / STATE).unlink()


def cut_the_meta(folder):
    (folder / META).write_bytes((folder / META).read_bytes()[:40])


def lose_the_meta(folder):
    (folder / META).unlink()


def write_a_list(folder):
    (folder / META).write_text("[1]")


def of_a_newer_format(folder):
    values = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps(values | {"format": 99}))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        cut_the_state,
        lose_the_state,
        cut_the_meta,
        lose_the_meta,
        write_a_list,
        of_a_newer_format,
    ],
)
def test_a_damaged_one_is_passed_over(tmp_path, damage):
    save_at(tmp_path / "a1", 3)
    damage(save_at(tmp_path / "a1", 4))
    assert best(tmp_path).meta["n_contexts_done"] == 3


def test_a_state_that_vanishes_after_the_look_says_what_to_delete(tmp_path):
    save_at(tmp_path / "a1", 3)
    found = best(tmp_path)
    lose_the_state(found.path)
    with pytest.raises(CheckpointUnusable, match="delete that folder"):
        found.load()


@pytest.mark.parametrize("step", ["fsync_file", "write_json", "move_folder"])
def test_dying_while_saving_leaves_the_one_before(tmp_path, monkeypatch, step):
    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    save_at(tmp_path / "a1", 3)
    with monkeypatch.context() as patched:
        patched.setattr(atomic, step, die)
        with pytest.raises(Killed):
            save_at(tmp_path / "a1", 4)
    assert best(tmp_path).meta["n_contexts_done"] == 3
    assert save_at(tmp_path / "a1", 5).name == "000002"


def test_what_a_killed_process_left_half_written_is_no_checkpoint(tmp_path):
    whole = save_at(tmp_path / "a1", 4)
    whole.rename(atomic.temporary_beside(whole))
    assert best(tmp_path) is None


def test_a_full_disk_is_said_in_plain_words(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "fsync_file", full)
    with pytest.raises(WorkspaceUnusable, match="disk is full"):
        save_at(tmp_path / "a1", 1)
    assert list((tmp_path / "a1").iterdir()) == []


def test_a_folder_that_is_a_file_is_said_in_plain_words(tmp_path):
    (tmp_path / "a1").write_text("")
    with pytest.raises(WorkspaceUnusable, match="cannot write"):
        save_at(tmp_path / "a1", 1)


# --- while the work goes on ---------------------------------------------------------------


def begin(saver, done):
    saver.begin(state(done), {"n_contexts_done": done})


def test_what_is_told_of_is_on_disk(tmp_path, monkeypatch):
    moved, go_on = atomic.move_folder, threading.Event()

    def held(*paths):
        assert go_on.wait(60)
        moved(*paths)

    monkeypatch.setattr(atomic, "move_folder", held)
    with Saver(tmp_path / "a1") as saver:
        begin(saver, 3)
        saver.look()
        assert saver.newest is None
        assert best(tmp_path) is None
        go_on.set()
        begin(saver, 4)  # waits for the one before it
        assert saver.newest["n_contexts_done"] == 3
        saver.finish()
        assert (
            saver.newest["n_contexts_done"] == best(tmp_path).meta["n_contexts_done"] == 4
        )


def test_what_ends_the_work_lets_a_checkpoint_be_finished(tmp_path):
    def work():
        with Saver(tmp_path / "a1") as saver:
            begin(saver, 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert best(tmp_path).meta["n_contexts_done"] == 3


@pytest.mark.parametrize("ask", ["look", "finish", "begin"])
def test_one_that_cannot_be_written_is_told_of_and_the_one_before_it_stays(
    tmp_path, monkeypatch, ask
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with Saver(tmp_path / "a1") as saver:
        begin(saver, 3)
        saver.finish()
        monkeypatch.setattr(atomic, "fsync_file", full)
        begin(saver, 4)
        if ask == "look":
            until(saver._writing.done, "the thread to fail")
        with pytest.raises(WorkspaceUnusable, match="disk is full"):
            getattr(saver, ask)(
                *((state(5), {"n_contexts_done": 5}) if ask == "begin" else ())
            )
        assert saver.newest["n_contexts_done"] == 3
    assert best(tmp_path).meta["n_contexts_done"] == 3
