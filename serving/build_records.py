"""What came of builds: one file for each request, which a later controller reads."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from registry_hooks.model_version import ModelVersion
from serving.image import BuildState, Document, ImageRequest, ImageStatus, Proof
from serving.workshop import put


class BuildRecords:
    """Records below one folder. Every method raises `OSError`, and `ValueError` for a record that is none."""

    def __init__(self, home: Path) -> None:
        self._place = home.absolute() / "builds"

    def keep(self, request: ImageRequest, status: ImageStatus) -> None:
        saved = {**asdict(status), "version": asdict(request.version), "built": datetime.now(UTC).isoformat()}
        put(self._file(request), json.dumps(saved))

    def find(self, request: ImageRequest) -> ImageStatus | None:
        """None where nothing is recorded."""
        try:
            return _status(json.loads(self._file(request).read_text()))
        except FileNotFoundError:
            return None

    def built(self) -> dict[str, dict[ModelVersion, datetime]]:
        """Of every image the versions that it was built for, and when."""
        found: dict[str, dict[ModelVersion, datetime]] = {}
        for _, record in self._records():
            version, at = ModelVersion(**record["version"]), datetime.fromisoformat(record["built"])
            of_image = found.setdefault(record["image"], {})
            of_image[version] = max(at, of_image.get(version, at))
        return found

    def forget(self, images: Collection[str]) -> None:
        """Of images that are gone."""
        for file, record in self._records():
            if record["image"] in images:
                file.unlink(missing_ok=True)

    def _records(self) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        """Those of builds that made an image. What cannot be read says nothing of any."""
        for file in self._place.glob("*.json"):
            try:
                record = json.loads(file.read_text())
            except (FileNotFoundError, ValueError):
                continue
            if record.get("image") and "version" in record:
                yield file, record

    def _file(self, request: ImageRequest) -> Path:
        return self._place / f"{request.key}.json"


def _status(saved: Mapping[str, Any]) -> ImageStatus:
    proof = saved["proof"]
    return ImageStatus(
        BuildState(saved["state"]),
        saved["image"],
        saved["detail"],
        saved["lock"],
        proof and Proof(**proof),
        tuple(Document(**document) for document in saved["documents"]),
    )
