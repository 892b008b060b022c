"""The card's own card.js and card.css in a page, every state and every click."""

import pytest

pytestmark = pytest.mark.browser

THEMES = ("light", "dark")


def all_cards(given):
    return {
        "running": (given.running(checkpoint_tokens=20_480), {"events": given.events}),
        "waiting": (
            given.view("queued", n_tokens_done=0, started_at=None,
                       findings=("no worker is alive: type `ws.up()`, or `extraction-kit up`",)),
            {},
        ),
        "completed": (
            given.completed(),
            {"events": given.events, "highlights": given.highlights},
        ),
        "failed": (
            given.view(
                "failed",
                error="OutOfMemoryError: 2.1 GiB were asked for, 0.4 GiB are free",
                error_traceback="Traceback (most recent call last):\n  ...\nOutOfMemoryError",
                checkpoint_tokens=20_480, l0=32.1, fvu=0.19, attempt=2,
                advice="Lower the tile: `Settings(tile_tokens=512)`, then `run.resume()`",
                ended_at=given.t0.replace(minute=19),
            ),
            {"events": given.events},
        ),
        "interrupted": (
            given.view("interrupted", checkpoint_tokens=20_480,
                       ended_at=given.t0.replace(minute=19),
                       refusal="it was interrupted and rests at a checkpoint of 20 %.",
                       advice="`run.resume()` continues from 20 %"),
            {},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("theme", THEMES)
def test_pictures_of_every_state(stub, given, theme):
    for name, (view, more) in all_cards(given).items():
        made = stub(view, theme=theme, **more)
        made.picture(f"card-{name}-{theme}")
    made = stub(given.completed(), theme=theme, highlights=given.highlights)
    made.click("Launch")
    made.picture(f"card-refused-{theme}")
