"""A progress bar for a notebook or terminal, for what takes longer than a moment."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_DELAY_S = 2  # what is done sooner needs no bar


@contextmanager
def progress_bar(
    label: str, *, unit: str = "tok"
) -> Iterator[Callable[[int, int | None, str], None]]:
    """Give a function that takes done, total and what is being done; draws a bar after 2 s."""
    from tqdm import tqdm  # noqa: PLC0415 - only who looks pays for it

    # In a notebook stderr is red, and stays as a red stripe when the bar is gone.
    in_kernel = type(sys.stdout).__module__.startswith("ipykernel")
    with tqdm(
        desc=label,
        unit=unit,
        unit_scale=True,
        delay=_DELAY_S,
        leave=False,
        file=sys.stdout if in_kernel else sys.stderr,
    ) as bar:

        def report(n_done: int, n_total: int | None, what: str) -> None:
            bar.total = n_total
            bar.set_description_str(f"{label}: {what}", refresh=False)
            bar.update(n_done - bar.n)

        yield report
