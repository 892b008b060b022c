"""The command line: what it prints, and its exit codes (0 ok, 1 failed or refused, 2 usage)."""

import json
import subprocess
import sys

import pytest

from tests.acceptance.staging import CONFIG, SETTINGS
from tests.waiting import until


@pytest.fixture
def cli(undisturbed):
    stage, _ = undisturbed
    return command_of(stage.ws.home)


def command_of(home):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "extraction_kit", "--workspace", str(home), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**__import__("os").environ, **SETTINGS.to_environment()},
        )

    return call


def test_status_as_json_is_a_list_of_objects_with_the_documented_fields(cli, undisturbed):
    _, run = undisturbed
    result = cli("status", "--json")
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert {
        "run_id", "training_id", "state", "attempt", "job_id", "progress", "n_tokens_done",
        "n_tokens", "created_at", "completed_at", "results_dir", "error",
    } <= set(row)  # fmt: skip
    assert (row["run_id"], row["state"], row["progress"]) == (run.run_id, "completed", 1.0)
    assert row["n_tokens_done"] == row["n_tokens"] == 60_000
    assert row["error"] is None


def test_status_in_words_and_of_one_run_with_its_story(cli, undisturbed):
    _, run = undisturbed
    assert "completed" in cli("status").stdout
    story = cli("status", run.run_id)
    assert story.returncode == 0
    assert "complete: published" in story.stdout


def test_a_completed_run_is_not_launched_again(cli, undisturbed, tmp_path):
    stage, run = undisturbed
    config = tmp_path / "config.toml"
    config.write_text("context_size = 32\nn_tokens = 60_000\ntop_k = 5\n")
    arguments = [
        "launch",
        "tiny",
        "--corpus",
        str(stage.tiny.corpus),
        "--config",
        str(config),
    ]
    result = cli(*arguments, "--wait")
    assert result.returncode == 0, result.stderr
    assert run.run_id in result.stdout
    assert "completed since" in result.stdout
    assert stage.executions(run) == 1
    config.write_text("context_size = 32\nbatch_size = 8\n")
    result = cli(*arguments)
    assert result.returncode == 1
    assert "unknown option batch_size" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["resume", "RUN"], 1, "AlreadyCompleted"),
        (["cancel", "RUN"], 1, "AlreadyCompleted"),
        (["resume", "nope"], 1, "no run 'nope'"),
        (["launch", "nope", "--corpus", "x.txt"], 1, "no training 'nope'"),
        (["launch", "tiny"], 2, "--corpus"),
        (["lunch"], 2, "invalid choice"),
        ([], 2, "COMMAND"),
        (["launch", "tiny", "--corpus", "x.txt", "--n-tokens", "many"], 2, "invalid int"),
    ],
)
def test_what_cannot_be_done_has_its_exit_code_and_a_reason(
    cli, undisturbed, arguments, code, words
):
    _, run = undisturbed
    named = [run.run_id if word == "RUN" else word for word in arguments]
    result = cli(*named)
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_doctor_names_each_part_and_finds_nothing_wrong(cli):
    result = cli("doctor")
    assert result.returncode == 0, result.stdout
    for part in ("python", "torch", "workspace", "ledger", "server", "worker", "disk"):
        assert f" {part} " in result.stdout


def test_doctor_says_what_to_do_about_a_workspace_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    result = command_of(tmp_path / "file" / "ws")("doctor")
    assert result.returncode == 1
    assert "PROBLEM" in result.stdout


def test_up_and_down_are_idempotent_and_monitor_looks_once(tmp_path):
    call = command_of(tmp_path / "ws")
    try:
        for _ in range(2):
            result = call("up")
            assert result.returncode == 0, result.stderr
            assert "alive" in result.stdout
        assert call("monitor", "--once").returncode == 0
        assert (tmp_path / "ws" / "catalog.duckdb").exists()
    finally:
        for _ in range(2):
            assert call("down").returncode == 0
    assert "not running" in call("doctor").stdout


def test_a_worker_in_a_terminal_serves_and_a_second_one_is_refused(stage):
    stage.ws.up()
    call = command_of(stage.ws.home)
    second = call("worker")
    assert second.returncode == 1
    assert f"pid {stage.worker_pid()}" in second.stderr
    run = stage.launch(config=CONFIG.replace(n_tokens=500))
    until(run.done, "the end of a short run")
    assert run.state == "completed"
