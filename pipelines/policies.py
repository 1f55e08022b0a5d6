"""The policies of an installation: one folder of YAML files, read again when one of them changed.

The most exact claim on a model decides: its name before any pattern, a longer pattern before a shorter one. A
file that cannot be used keeps its claim, so that its models are left alone until it is mended instead of
getting somebody else's policy; a folder that vanishes keeps what was read from it, for the same reason. Without
a claim a model gets the default, or nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pipelines.abilities import RouterKind
from pipelines.policy import Policy, PolicyError
from pipelines.policy_file import WILDCARDS, claimed, read_policy

SUFFIXES = (".yaml", ".yml")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """One file's say about the models that `name`, a name or a pattern, stands for."""

    name: str
    file: str
    policy: Policy | None = None
    problem: str = ""
    """Why there is no policy."""

    def exactness(self, model: str) -> int:
        """How exactly this claim means `model`; -1 where it does not."""
        if self.name == model:
            return len(model) + 1
        return sum(c not in WILDCARDS for c in self.name) if fnmatchcase(model, self.name) else -1


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of a file, and what the file looked like then."""

    stamp: tuple[int, int]
    claims: tuple[Claim, ...]


class Policies:
    """Every policy in one folder; safe to use from several threads."""

    def __init__(self, directory: Path, default: Policy | None, router: RouterKind = RouterKind.ENVOY) -> None:
        """Reads the folder; one that does not exist is empty. `default` is for models that no file names."""
        self._directory, self._default, self._router = directory, default, router
        self._lock = threading.Lock()
        self._files: dict[Path, _Read] = {}
        self._claims: tuple[Claim, ...] = ()
        self._named: dict[str, list[Claim]] = {}
        """The claims by the name that they mean; patterns under none, so that a name is found without them."""
        self._found: dict[str, Claim] = {}
        self._trouble: Mapping[str, str] = {}
        self.load()

    def load(self) -> None:
        """Read what changed since the last call; costs a look at the folder where nothing did."""
        with self._lock:
            try:
                stamps = _stamps(self._directory)
            except OSError as error:
                self._trouble = {str(self._directory): f"cannot be read: {error.strerror}"}
                return
            self._trouble = {}
            if not stamps and self._files and not self._directory.exists():
                self._trouble = {str(self._directory): "is gone; the policies that were read from it still hold"}
                return
            self._take({path: self._read(path, stamp) for path, stamp in stamps.items()})

    def for_model(self, model: str) -> Policy | None:
        """The model's policy; None where it is to be left alone, by choice or because its policy is broken."""
        return self._claim(model).policy

    def problem(self, model: str) -> str | None:
        """What is wrong with the model's policy; None where nothing is."""
        return self._claim(model).problem or None

    def problems(self) -> Mapping[str, str]:
        """What is wrong, by the model that it concerns, or by the file where that names patterns only."""
        with self._lock:
            claims, trouble = self._claims, self._trouble
        wrong = {
            claim.file if WILDCARDS & set(claim.name) else claim.name: claim.problem
            for claim in claims
            if claim.problem
        }
        return {**wrong, **dict(_disputed(claims)), **trouble}

    def _take(self, files: dict[Path, _Read]) -> None:
        if files != self._files:
            self._files = files
            self._claims = tuple(claim for path in sorted(files) for claim in files[path].claims)
            self._named, self._found = {}, {}
            for claim in self._claims:
                self._named.setdefault("" if WILDCARDS & set(claim.name) else claim.name, []).append(claim)

    def _read(self, path: Path, stamp: tuple[int, int]) -> _Read:
        before = self._files.get(path)
        if before is not None and before.stamp == stamp:
            return before
        known = [claim.name for claim in before.claims] if before else []
        read = _Read(stamp, _claims(path, known, self._router))
        for problem in {claim.problem for claim in read.claims if claim.problem}:
            log.error("policy %s", problem)
        return read

    def _claim(self, model: str) -> Claim:
        with self._lock:
            if model not in self._found:
                self._found[model] = _decide(model, self._named.get(model) or self._named.get("", [])) or Claim(
                    model, "", self._default
                )
            return self._found[model]


def check(paths: Iterable[Path], router: RouterKind = RouterKind.ENVOY) -> list[str]:
    """Every problem in these files and folders, one line each, also claims that contradict each other."""
    files = [file for path in paths for file in (_files(path) if path.is_dir() else [path])]
    claims = [claim for file in files for claim in _claims(file, (), router)]
    wrong = [line for claim in claims for line in claim.problem.splitlines()]
    return list(dict.fromkeys([*wrong, *(problem for _, problem in _disputed(claims))]))


def _files(directory: Path) -> list[Path]:
    if not directory.exists():
        return []
    return sorted(p for p in directory.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))


def _stamps(directory: Path) -> dict[Path, tuple[int, int]]:
    """The files as they look now; one that vanishes meanwhile is not there."""
    found = {}
    for path in _files(directory):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found[path] = stat.st_mtime_ns, stat.st_size
    return found


def _claims(path: Path, known: Sequence[str], router: RouterKind) -> tuple[Claim, ...]:
    """What the file claims; a broken one claims what it claimed before, `known`, and whatever it may mean."""
    try:
        read = read_policy(path, router)
    except PolicyError as error:
        return tuple(Claim(name, path.name, problem=str(error)) for name in dict.fromkeys([*known, *claimed(path)]))
    return tuple(Claim(name, path.name, read.policy) for name in read.names)


def _decide(model: str, claims: Iterable[Claim]) -> Claim | None:
    """The most exact claim; one without a policy where several files are equally exact."""
    ranked = [(claim.exactness(model), claim) for claim in claims]
    most = max((rank for rank, _ in ranked), default=-1)
    best = {claim.file: claim for rank, claim in ranked if rank == most >= 0}
    if len(best) > 1:
        return Claim(model, "", problem=_dispute(model, sorted(best)))
    return next(iter(best.values()), None)


def _disputed(claims: Iterable[Claim]) -> list[tuple[str, str]]:
    """Names that several files claim."""
    files: dict[str, set[str]] = {}
    for claim in claims:
        files.setdefault(claim.name, set()).add(claim.file)
    return [(name, _dispute(name, sorted(found))) for name, found in files.items() if len(found) > 1]


def _dispute(name: str, files: Sequence[str]) -> str:
    return f"{' and '.join(files)}: both are for {name}; one policy per model"
