"""Parts of the dashboard's page, as its tests name them."""

import re

from playwright.sync_api import expect


def grid(made):
    return made.page.locator(".xk-grid")


def chip(made, name):
    return made.page.get_by_role("button", name=re.compile(rf"^{name}"))


def shown(made, text):
    made.until(
        lambda: expect(made.page.locator(".xk-shown")).to_have_text(text, timeout=300)
    )


def active_row(made):
    return made.page.evaluate(
        "document.getElementById(document.querySelector('.xk-grid')"
        ".getAttribute('aria-activedescendant'))?.dataset.run"
    )


def sort(made, name):
    made.page.get_by_role("columnheader", name=name).get_by_role("button").click()


def await_health(made):
    made.until(lambda: made.page.get_by_text("server not running").count() == 1)
