"""A hub whose second is a hundredth of one, for tests of what it keeps up to date."""

import threading
import time
from contextlib import contextmanager

from extraction_kit.widgets.hub import Hub, Pace

FAST = Pace(viewed_s=0.01, resting_s=0.01, unviewed_s=0.02, beat_s=30.0, linger_s=0.0)


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


@contextmanager
def fast_hub():
    """A hub that has nothing to do any more, and no thread, afterwards."""
    made = Hub(FAST)
    yield made
    for watch in list(made._watches):
        made.drop(watch)
    until(lambda: not made.running)
