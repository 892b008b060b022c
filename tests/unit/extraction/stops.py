"""Ways in which an extraction is stopped, and continued."""

from extraction_kit.extraction import extract
from tests.unit.extraction.oracle import CONFIG, SETTINGS


class Killed(BaseException):
    """Stands for what ends a process without a word."""


def stopper(after, error):
    """Return an ``on_progress`` that raises `error` after so many batches."""
    seen = []

    def on_progress(progress):
        if progress.phase == "extracting" and progress.n_contexts_done:
            seen.append(progress)
            if len(seen) == after:
                raise error

    return on_progress


def resumed(parts, folder, *, content_key="key", settings=SETTINGS, config=CONFIG):
    training, corpus = parts(config=config)
    return extract(
        training,
        corpus,
        config=config,
        settings=settings,
        content_key=content_key,
        resume_from=folder,
    )
