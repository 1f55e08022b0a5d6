"""Images signed by key: Ed25519 over the image's digest.

What is signed is the text ``mlflow-promote image v1``, a line feed and the image as revisions name it, in UTF-8,
without a line feed at the end. The first line keeps a signature made for this from meaning anything elsewhere. A key is
known by the SHA-256 of its public half in DER: ``openssl pkey -pubin -in key.pub -outform DER | sha256sum`` tells it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from serving.workshop import put

_DOMAIN = "mlflow-promote image v1"


class KeyFileError(Exception):
    """A key cannot be read from its file, or is of another kind."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a key says of an image."""

    image: str
    key: str
    """Id of the key."""
    value: str
    """In base64."""
    algorithm: str = "Ed25519"

    def __str__(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=1)


class VerifyKey:
    """The public half of a key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.id = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()

    @classmethod
    def read(cls, file: Path) -> Self:
        """From a PEM file; `KeyFileError`."""
        try:
            key = load_pem_public_key(_content(file))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyFileError(f"{file} holds no public key in PEM") from error
        if not isinstance(key, Ed25519PublicKey):
            raise KeyFileError(f"{file} holds a key of another kind than Ed25519")
        return cls(key)

    def confirms(self, signature: Signature, image: str) -> bool:
        """Whether this key made `signature`, and for `image`."""
        try:
            self._key.verify(base64.b64decode(signature.value, validate=True), _signed(image))
        except (InvalidSignature, binascii.Error):
            return False
        return True


class SigningKey:
    """A key that signs."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = VerifyKey(key.public_key())

    @classmethod
    def read(cls, file: Path) -> Self:
        """From a PEM file without password; `KeyFileError`."""
        try:
            key = load_pem_private_key(_content(file), password=None)
        except TypeError as error:
            raise KeyFileError(f"{file} is encrypted, and nobody is there to enter its password") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyFileError(f"{file} holds no private key in PEM") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError(f"{file} holds a key of another kind than Ed25519")
        return cls(key)

    def sign(self, image: str) -> Signature:
        value = base64.b64encode(self._key.sign(_signed(image))).decode()
        return Signature(image, self.public.id, value)


class Signatures:
    """The signatures of images, below one folder: one for each image and key."""

    def __init__(self, home: Path) -> None:
        self._place = home.absolute() / "signatures"

    def keep(self, signature: Signature) -> None:
        """Raises `OSError`."""
        put(self._file(signature.image, signature.key), str(signature))

    def find(self, image: str, key: str) -> Signature | None:
        """What the key of that id says of the image; None where nothing readable is kept. Raises `OSError`."""
        try:
            return Signature(**json.loads(self._file(image, key).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _file(self, image: str, key: str) -> Path:
        return self._place / f"{hashlib.sha256(image.encode()).hexdigest()[:32]}-{key[:16]}.json"


def _signed(image: str) -> bytes:
    return f"{_DOMAIN}\n{image}".encode()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{file} cannot be read: {error.strerror}") from error
