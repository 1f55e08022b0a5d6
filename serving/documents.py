"""What is written about an image when it is made, and where that is kept.

A document is named by what it says, so that one which many images have in common, as a lock, is kept once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path

from serving.image import Document, ImageError, ImageRequest
from serving.made import Made
from serving.provenance import Run, provenance
from serving.sbom import sbom
from serving.signing import Signature
from serving.workshop import put


def documents_of(
    request: ImageRequest, made: Made, signature: Signature | None, builder: str, started: datetime, finished: datetime
) -> dict[str, str]:
    """Name and text of each: `builder` made the image between the two times."""
    run = Run(builder, installed("mlflow-promote"), started, finished)
    texts = {
        "lock.txt": made.lock.text,
        "provenance.json": provenance(request, made, run),
        "sbom.json": sbom(request.version, made, finished),
    }
    return texts if signature is None else {**texts, "signature.json": str(signature)}


class Documents:
    """Documents below one folder."""

    def __init__(self, home: Path) -> None:
        self._place = home.absolute() / "documents"

    def keep(self, texts: Mapping[str, str]) -> tuple[Document, ...]:
        """Raises `OSError`."""
        return tuple(self._kept(name, text) for name, text in texts.items())

    def read(self, digest: str) -> bytes:
        """`ImageError` where it is lost or is not what it was."""
        try:
            content = (self._place / digest).read_bytes()
        except FileNotFoundError as error:
            raise ImageError(f"the document {digest} is lost", retryable=False) from error
        except OSError as error:
            raise ImageError(f"the document {digest} cannot be read: {error}", retryable=True) from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise ImageError(f"the document {digest} is not what it was", retryable=False)
        return content

    def _kept(self, name: str, text: str) -> Document:
        document = Document(name, hashlib.sha256(text.encode()).hexdigest())
        put(self._place / document.digest, text)
        return document
