"""The keys that the settings name, read once and refused where they cannot do what they are for."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.settings import Settings, SettingsError
from serving.signing import KeyFileError, SigningKey, VerifyKey


@dataclass(frozen=True, slots=True)
class Keys:
    """What images are signed with, and what they are held against; None where they are not."""

    signing: SigningKey | None = None
    verify: VerifyKey | None = None


def read_keys(settings: Settings) -> Keys:
    """`SettingsError` with the name of the setting that is wrong."""
    try:
        signing = SigningKey.read(settings.signing_key) if settings.signing_key else None
    except KeyFileError as error:
        raise SettingsError(f"signing_key: {error}") from error
    try:
        verify = VerifyKey.read(settings.verify_key) if settings.verify_key else None
    except KeyFileError as error:
        raise SettingsError(f"verify_key: {error}") from error
    if signing and verify and signing.public.id != verify.id:
        what = f"{settings.verify_key} is not the public half of signing_key"
        raise SettingsError(f"verify_key: {what}, so that nothing that is built could start")
    return Keys(signing, verify)
