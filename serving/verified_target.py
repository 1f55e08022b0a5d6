"""Nothing starts that was not signed: a target behind the check of its images' signatures.

Only `start` is held up. What runs already goes on, because ending it would be worse than what the check is against.
"""

from __future__ import annotations

from collections.abc import Mapping

from serving.revision import Revision, RevisionStatus
from serving.signing import Signatures, VerifyKey
from serving.target import ServingTarget, TargetError


class VerifiedTarget:
    """`ServingTarget` over another one."""

    def __init__(self, target: ServingTarget, key: VerifyKey, signatures: Signatures) -> None:
        self._target = target
        self._key = key
        self._signatures = signatures

    def start(self, revision: Revision) -> None:
        try:
            trouble = self._unsigned(revision.image)
        except OSError as error:
            raise TargetError(f"cannot verify the image of {revision.id}: {error}", retryable=True) from error
        if trouble:
            raise TargetError(f"{revision.id} is not started: its image {revision.image} {trouble}", retryable=False)
        self._target.start(revision)

    def status(self) -> Mapping[str, RevisionStatus]:
        return self._target.status()

    def stop(self, revision_id: str) -> None:
        self._target.stop(revision_id)

    def logs(self, revision_id: str, lines: int = 100) -> tuple[str, ...]:
        return self._target.logs(revision_id, lines)

    def _unsigned(self, image: str) -> str:
        signature = self._signatures.find(image, self._key.id)
        if signature is not None and self._key.confirms(signature, image):
            return ""
        what = "has no signature by" if signature is None else "has a signature that was not made by"
        advice = f"'mlflow-promote sign {image}' signs it, with the setting signing_key; so does building it again"
        return f"{what} the key {self._key.id[:16]} of the setting verify_key: {advice}"
