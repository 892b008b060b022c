"""A folder that appears when it is complete, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from extraction_kit import atomic


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Give a folder to fill, and rename it to `final` if that succeeds.

    Raises
    ------
    WorkspaceUnusable
        It cannot be written.
    """
    staged = atomic.temporary_beside(final)
    try:
        staged.mkdir(parents=True)
        yield staged
        for path in staged.iterdir():
            atomic.fsync_file(path)
        atomic.move_folder(staged, final)
    except OSError as error:
        raise atomic.unusable(final, error) from error
    finally:
        atomic.remove_folder(staged)
