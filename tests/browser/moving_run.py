# ruff: noqa: ARG002 - one run only: which one is asked for does not matter
"""A source of runs that really move, in a thread, for notebooks in the browser tests.

The notebook's first cell makes ``run``; nothing else in the tests knows where it comes from.
"""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import extraction_kit as xk
from extraction_kit import widgets
from extraction_kit.errors import (
    AlreadyCompleted,
    NothingToCancel,
    RunFailed,
    StillActive,
)
from extraction_kit.lifecycle import ACTIVE, RunState
from extraction_kit.views import FeatureSoFar, Happening, Preview, RunView

RUN_ID = "9f2c11d07a3be845"
SO_FAR = FeatureSoFar(
    feature=7, density=0.01, max_act=9.5, tokens=(" of", " two", " <b>integers</b>"),
    acts=(0.5, 6.0, 9.5),
)  # fmt: skip


class MovingSource:
    """One run that measures `n_tokens` in `seconds`, from the moment it is launched."""

    def __init__(self, *, seconds, n_tokens=100_000):
        now = datetime.now(UTC)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._seconds = seconds
        self._log = []
        self._view = RunView(
            run_id=RUN_ID, training_id="t-7f3a", generation=1, state=RunState.EXTRACTING,
            attempt=1, job_id="xk-t-7f3a-1a2b3c4d5e-g1-a1", n_tokens=n_tokens,
            n_tokens_done=0, created_at=now, created_by="anna@lab-7", started_at=now,
            phase="extracting", d_sae=2048, worker="lab-7:4121", model="SmolLM2-135M",
        )  # fmt: skip
        self._note("launched", "by anna@lab-7")
        threading.Thread(target=self._work, daemon=True).start()

    def _note(self, kind, text):
        self._log.append(
            Happening(seq=len(self._log), run_id=RUN_ID, attempt=self._view.attempt,
                      at=datetime.now(UTC), kind=kind, actor="worker", text=text)
        )  # fmt: skip

    def _set(self, **changes):
        self._view = replace(self._view, change=self._view.change + 1, **changes)
        self._changed.notify_all()

    def _work(self):
        step = self._view.n_tokens // 50
        while True:
            time.sleep(self._seconds / 50)
            with self._lock:
                if self._view.state is not RunState.EXTRACTING:
                    return
                done = min(self._view.n_tokens, self._view.n_tokens_done + step)
                self._set(n_tokens_done=done, l0=32.0, fvu=0.18, n_dead=41,
                          preview=Preview(n_tokens=done, features=(SO_FAR,)))  # fmt: skip
                if done == self._view.n_tokens:
                    now = datetime.now(UTC)
                    self._set(state=RunState.COMPLETED, ended_at=now, completed_at=now,
                              preview=None,
                              results_dir=f"/results/run_id={RUN_ID}")  # fmt: skip
                    self._note("complete", "100,000 tokens")
                    return

    def view(self, run_id):
        with self._lock:
            return self._view

    def views(self, run_ids):
        return [self.view(run_id) for run_id in run_ids]

    def cursor(self):
        return self.view(RUN_ID).change

    def events(self, run_id):
        with self._lock:
            return list(self._log)

    def highlights(self, run_id, n):
        tokens = [" a", " tuple", " of", " two", " <b>integers</b>"]
        acts = [0.0, 3.0, 0.5, 6.0, 9.5]
        return [
            {"feature": 7, "density": 0.01, "max_act": 9.5, "tokens": tokens, "acts": acts}
        ]

    def relaunch(self, run_id):
        state = self.view(run_id).state
        kind = StillActive if state in ACTIVE else AlreadyCompleted
        raise kind(run_id=run_id, state=state, because=f"the run is {state}")

    def cancel(self, run_id):
        with self._lock:
            if self._view.state not in ACTIVE:
                raise NothingToCancel(run_id=run_id, state="", because="nothing runs")
            self._set(state=RunState.CANCELLED, ended_at=datetime.now(UTC), preview=None,
                      checkpoint_tokens=20_000)  # fmt: skip
            self._note("cancel", "by anna@lab-7")
            return self._view

    def resume(self, run_id):
        with self._lock:
            self._set(state=RunState.EXTRACTING, attempt=self._view.attempt + 1,
                      ended_at=None, n_tokens_done=20_000)  # fmt: skip
            threading.Thread(target=self._work, daemon=True).start()
            return self._view

    def browser(self, run_id, other=None):
        if self.view(run_id).state is not RunState.COMPLETED:
            raise RunFailed(run_id=run_id, state="", because="no results yet")
        return xk.LocalResult("result-of-the-card").browse()


class MovingRun:
    """What ``xk.launch`` returns, as far as a notebook shows it."""

    def __init__(self, **options):
        self.source = MovingSource(**options)

    @property
    def state(self):
        return str(self.source.view(RUN_ID).state)

    def wait(self, timeout=30):
        with self.source._changed:
            return self.source._changed.wait_for(
                lambda: self.source._view.state not in ACTIVE, timeout
            )

    def _ipython_display_(self):
        widgets.show(self.source, RUN_ID)
