"""Waiting for what a test is about: an event, never a length of time."""

import time

PATIENCE_S = 180.0  # two cores may be shared by six tests


def until(condition, what, patience_s=PATIENCE_S):
    """Return the first truthy value of `condition`."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {patience_s:g} s in vain for: {what}"
        time.sleep(0.01)
