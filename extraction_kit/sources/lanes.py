"""Two queues of work on a GPU, so that finding out sizes keeps it from nothing.

How many activations there are decides the size of all that is made of them, and the CPU learns
such a number only by waiting for the GPU. So what is heavy and of known size, the model and the
encoder, is queued on the main stream; what is light and of unknown size, everything behind
them, on a second one that the GPU serves first. While the CPU waits for a number there, the
GPU has the next piece of heavy work. Other devices have one queue, and nothing is reordered.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Mark = torch.cuda.Event | None
"""A place in a queue; None where there is one queue only."""


class Lanes:
    """The queues of one device.

    Memory that one queue gave back may be handed out again while the other still reads it:
    keep what crosses over until the next `join`.

    Parameters
    ----------
    device : torch.device
        What computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    @property
    def ahead(self) -> int:
        """How many pieces of heavy work are queued before the one in front is looked at."""
        return 0 if self._side is None else 1

    def ahead_of(self, work: Iterable[Piece]) -> Iterator[Piece]:
        """Yield the pieces of `work`, so many of the following ones queued already."""
        queued: deque[Piece] = deque()
        for piece in work:
            queued.append(piece)
            if len(queued) > self.ahead:
                yield queued.popleft()
        yield from queued

    def here(self) -> Mark:
        """Return a mark behind what is queued so far."""
        if self._side is None:
            return None
        mark: torch.cuda.Event = torch.cuda.current_stream(self._device).record_event()
        return mark

    def wait_for(self, mark: Mark) -> None:
        """Let what is queued from now on come after a mark."""
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)

    @contextmanager
    def aside(self, after: Mark = None) -> Iterator[None]:
        """Queue what is inside on the second lane, behind a mark of the main one.

        Without a mark behind all that is on the main lane.
        """
        if self._side is None:
            yield
            return
        mark = after or self.here()
        with torch.cuda.stream(self._side):
            self.wait_for(mark)
            yield

    def join(self) -> None:
        """Let the main lane wait for the second one."""
        if self._side is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._side)
