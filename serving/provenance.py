"""Where an image comes from: an in-toto statement with SLSA's provenance in it.

Pure. What is not known is not said. Digests are what `serving.sbom` says they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from serving.image import ImageRequest
from serving.made import Made

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:mlflow-promote:image:v1"
"""What the parameters mean; docs/images.md says it."""


@dataclass(frozen=True, slots=True)
class Run:
    """Who made an image, and when."""

    builder: str
    """URI of whoever is trusted to have made it as the statement says."""
    version: str
    """Of mlflow-promote."""
    started: datetime
    finished: datetime


def provenance(request: ImageRequest, made: Made, run: Run) -> str:
    """The statement as JSON, keys sorted."""
    name = made.image.partition("@")[0] if "@" in made.image else request.version.model
    content = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": made.sha256}}],
        "predicateType": PREDICATE,
        "predicate": {"buildDefinition": _definition(request, made), "runDetails": _details(request, made, run)},
    }
    return json.dumps(content, sort_keys=True, indent=1)


def _definition(request: ImageRequest, made: Made) -> dict[str, object]:
    given = {"model": request.version.model, "version": request.version.version}
    lock = hashlib.sha256(made.lock.text.encode()).hexdigest()
    used = [
        _resource("model", made.model, uri=_uri(request.source)),
        _resource("lock.txt", lock, mediaType="text/plain"),
        _resource("model server", made.server),
    ]
    if made.base:
        used.append(_resource(made.base.name, made.base.sha256))
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": given,
        "internalParameters": {
            "python": made.lock.python,
            "serving": "compiled" if made.proof.compiled else "native",
            "why": made.proof.why,
        },
        "resolvedDependencies": used,
    }


def _details(request: ImageRequest, made: Made, run: Run) -> dict[str, object]:
    byproducts = {"compiled model": made.proof.model, "record of the comparison": made.proof.proof}
    return {
        "builder": {"id": run.builder, "version": {"mlflow-promote": run.version}},
        "metadata": {
            "invocationId": request.key,
            "startedOn": _time(run.started),
            "finishedOn": _time(run.finished),
        },
        "byproducts": [_resource(name, digest) for name, digest in byproducts.items() if digest],
    }


def _resource(name: str, sha256: str, **more: str) -> dict[str, object]:
    return {"name": name, "digest": {"sha256": sha256}, **{key: value for key, value in more.items() if value}}


def _uri(source: str) -> str:
    """Where the model's files came from; empty where that is no address."""
    if source.startswith("/"):
        return f"file://{source}"
    return source if re.match(r"[a-z][a-z0-9+.-]*:/", source) else ""


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
