"""How images are shown to people."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from rich.console import Console, RenderableType

from pipelines.cli_images import cleaned_view, image_row, images_view, size
from registry_hooks.model_version import ModelVersion
from serving.stock import Kind, Stored

NOW = datetime.now(UTC)
IMAGE = Stored(f"sha256:{'1' * 64}", Kind.MODEL, NOW, 2_500_000, {ModelVersion("churn", 7): NOW})
PACKAGES = Stored("environments/abc", Kind.PACKAGES, NOW, 650_000_000)


def shown(view: RenderableType) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (2_500_000, "2.5 MB"), (650_000_000, "650 MB")]
)
def test_sizes_are_told_as_people_read_them(count: int, text: str) -> None:
    assert size(count) == text


def test_each_image_is_a_line_with_why_it_stays() -> None:
    kept = {**image_row(IMAGE), "goes": False, "why": "live"}
    going = {**image_row(PACKAGES), "goes": True, "why": ""}
    _, first, second, foot = shown(images_view({"images": [kept, going]})).splitlines()
    assert first.split()[:6] == [f"sha256:{'1' * 20}", "model", "churn", "7", "2.5", "MB"]
    assert first.split()[-1] == "live"
    assert second.split()[-2:] == ["would", "go"]
    assert foot == "2 stored, 652 MB; nothing needs 1 of them, 650 MB"


def test_what_went_and_what_could_not_is_told() -> None:
    answer = {
        "dry_run": False,
        "removed": [image_row(PACKAGES)],
        "bytes": PACKAGES.size,
        "refused": [{**image_row(IMAGE), "why": "container x has it"}],
    }
    text = shown(cleaned_view(answer))
    assert "is gone" in text
    assert "stays: container x has it" in text
    assert "650 MB are free" in text
    assert "nothing is stored that nothing needs" in shown(cleaned_view({**answer, "removed": [], "refused": []}))
