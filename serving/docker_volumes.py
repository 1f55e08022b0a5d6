"""Volumes of an engine to which servers fetch models that are not in their images: one for each model.

All containers that serve the model share its volume. An engine knows which volumes its containers have and refuses to
remove those, so what nobody serves any more can be removed without keeping a record: at the latest with the next
revision that is stopped.
"""

from __future__ import annotations

from docker.errors import APIError, NotFound

from serving.docker_engine import LABEL, Engine
from serving.engine_errors import translated
from serving.image_context import MANIFEST

_IN_USE = 409


def volume_for(engine: Engine, image: str) -> str | None:
    """The volume for the model of `image`, made where there is none; None where the model is in the image."""
    with translated(f"see to the volume for {image}"):
        labels = engine.api.inspect_image(image)["Config"]["Labels"] or {}
        if MANIFEST not in labels:
            return None
        name = f"{engine.installation}-model-{labels[MANIFEST][:20]}"
        engine.api.create_volume(name, labels={LABEL: engine.installation})
        return name


def volumes(engine: Engine) -> list[str]:
    """Names of those of the installation."""
    with translated("list the volumes"):
        found = engine.api.volumes(filters={"label": [f"{LABEL}={engine.installation}"]})
    return [str(one["Name"]) for one in found["Volumes"] or ()]


def remove_unused(engine: Engine) -> None:
    """Remove the volumes that no container has, be it one that has ended."""
    for name in volumes(engine):
        with translated(f"remove the volume {name}"):
            try:
                engine.api.remove_volume(name)
            except NotFound:
                pass
            except APIError as error:
                if error.status_code != _IN_USE:
                    raise
