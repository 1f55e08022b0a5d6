"""A person at MLflow's UI in Chromium: opens a version's page and moves it to a stage.

Stages show only with the switch 'New model registry UI' off, which the browser remembers; every call starts
with a fresh one, so that the switch is part of each story.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from playwright.sync_api import Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
"""The browser on this machine; None where there is none."""
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 60_000
"""Milliseconds that the page may take for one thing: MLflow's UI is one large script."""


def promote_in_ui(
    mlflow_uri: str, model: str, version: int, stage: str = "Production", archive_existing: bool = False
) -> str | None:
    """Move the version to `stage` by hand; what the UI says where MLflow refuses, else None.

    `archive_existing` ticks the box that archives whoever is in the stage now.
    """
    with _page() as page:
        page.goto(f"{mlflow_uri}/#/models/{quote(model, safe='')}/versions/{version}")
        _show_stages(page)
        page.locator(".mlflow-stage-transition-dropdown").click()
        page.get_by_role("menuitem").filter(has_text=re.compile(f"{stage}$")).click()
        dialog = page.get_by_role("dialog").filter(has_text="Stage transition")
        if archive_existing:
            dialog.get_by_text("Transition existing").first.click()  # the box itself lies hidden under its label
            expect(dialog.get_by_role("checkbox")).to_be_checked()
        return _confirm(page, dialog)


@contextmanager
def _page() -> Iterator[Page]:
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*root, *QUIET])
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(PATIENCE)
            yield page
        finally:
            browser.close()


def _show_stages(page: Page) -> None:
    """Switch 'New model registry UI' off and confirm."""
    page.get_by_role("switch", name="New model registry UI").click()
    page.get_by_role("dialog").get_by_role("button", name="Disable").click()


def _confirm(page: Page, dialog: Locator) -> str | None:
    with page.expect_response(lambda answer: "/model-versions/transition-stage" in answer.url) as answered:
        dialog.get_by_role("button", name="OK").click()
    if answered.value.ok:
        dialog.wait_for(state="hidden")
        return None
    alert = page.get_by_role("alert").filter(has_text=re.compile("[a-z]"))
    return alert.first.inner_text().strip()
