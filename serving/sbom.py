"""What is in an image, as a CycloneDX document: the model, how it is served, the model server and every package.

The same image and time always give the same bytes. The hashes of a package are those of all files of its release that
the lock allows, because which of them fits is for the machine to say. The digests of the model's folder, of the model
server and of an image of this machine are not of one file: the first two are SHA-256 over the lines
``<path>\\0<SHA-256 of the file>``, sorted, the last is over the digests of the image's parts.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version as installed

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from registry_hooks.model_version import ModelVersion
from serving.locked import Package, packages
from serving.made import Made

_OURS = "mlflow-promote"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, _OURS)
_ALGORITHMS = {
    "sha256": HashAlgorithm.SHA_256,
    "sha384": HashAlgorithm.SHA_384,
    "sha512": HashAlgorithm.SHA_512,
    "blake2b": HashAlgorithm.BLAKE2B_512,
    "md5": HashAlgorithm.MD5,
}
"""As uv names them."""


def sbom(version: ModelVersion, made: Made, at: datetime) -> str:
    """The document as JSON; `at` is when the image was made."""
    whole = _whole(version, made)
    parts = [*_parts(version, made), *(_library(package) for package in packages(made.lock.text))]
    writer = Component(name=_OURS, type=ComponentType.APPLICATION, version=installed(_OURS))
    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, repr((version, made, at))),
        metadata=BomMetaData(component=whole, timestamp=at, tools=ToolRepository(components=[writer])),
        components=parts,
    )
    bom.register_dependency(whole, parts)
    return JsonV1Dot6(bom).output_as_string(indent=1)


def _whole(version: ModelVersion, made: Made) -> Component:
    return Component(
        name=version.model,
        version=str(version.version),
        type=ComponentType.CONTAINER if made.base else ComponentType.APPLICATION,
        bom_ref="image",
        hashes=_sha256(made.sha256),
        properties=[Property(name="promote:image", value=made.image)],
    )


def _parts(version: ModelVersion, made: Made) -> Iterator[Component]:
    """Everything but the packages."""
    yield Component(
        name=version.model,
        version=str(version.version),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        hashes=_sha256(made.model),
        properties=[Property(name="promote:flavor", value=made.flavor)] if made.flavor else [],
    )
    if made.proof.compiled:
        yield Component(
            name=f"{version.model}, compiled",
            version=str(version.version),
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref="compiled",
            hashes=_sha256(made.proof.model),
        )
    yield Component(
        name=f"{_OURS} model server",
        type=ComponentType.APPLICATION,
        bom_ref="server",
        hashes=_sha256(made.server),
    )
    yield Component(name="Python", version=made.lock.python, type=ComponentType.PLATFORM, bom_ref="python")
    if made.base:
        yield Component(
            name=made.base.name,
            type=ComponentType.CONTAINER,
            bom_ref="base",
            hashes=_sha256(made.base.sha256),
        )


def _library(package: Package) -> Component:
    """One of a file or an address has no place in an index that a purl could name."""
    elsewhere = [ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(package.url))]
    return Component(
        name=package.name,
        version=package.version or None,
        type=ComponentType.LIBRARY,
        bom_ref=f"package:{package.name}@{package.version}",
        hashes=[_hash(one) for one in package.hashes],
        purl=None if package.url else PackageURL("pypi", None, package.name, package.version or None),
        external_references=elsewhere if package.url else [],
    )


def _sha256(digest: str) -> list[HashType]:
    return [_hash(f"sha256:{digest}")]


def _hash(written: str) -> HashType:
    algorithm, _, digest = written.partition(":")
    return HashType(alg=_ALGORITHMS[algorithm], content=digest)
