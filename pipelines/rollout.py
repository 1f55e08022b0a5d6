"""Carrying out one intent: what is saved of it, and what is seen of the world around it.

Pure. `pipelines.advance` decides from these two what the next state is, `pipelines.reconcile` what still has
to be done so that the world fits the saved state. Actions never depend on having made a step, only on
(saved, seen): a crash between any two lines is repaired by the next tick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from monitoring.analysis import Evidence
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import Block
from monitoring.label_policy import LabelPolicy
from monitoring.labels import LabelBlock
from monitoring.replay_gate_policy import ReplayGatePolicy
from monitoring.shadow_blocks import ShadowBlock
from monitoring.shadow_evidence import ShadowEvidence
from monitoring.shadow_policy import ShadowPolicy
from registry_hooks.model_version import Channel, ModelVersion
from serving.image import Document, ImageStatus, Proof
from serving.revision import Revision, RevisionSettings, RevisionStatus
from serving.router import Route


class Goal(StrEnum):
    """What an intent asks for."""

    LIVE = "live"
    """Make the version live, through the canary."""
    RESTORE = "restore"
    """Make a version live again that served before: verified, without a canary."""
    READY = "ready"
    """Check, build and prove the version, without traffic."""
    RETIRE = "retire"
    """Take the model off the gateway: its live channel is empty and the policy says so."""
    ABORT = "abort"
    """End the rollout in progress and go back."""
    PAUSE = "pause"
    """Keep the weights where they are until a person resumes."""
    RESUME = "resume"
    """Go on with a paused rollout."""


class Origin(StrEnum):
    """What made an intent."""

    TRANSITION = "transition"
    """A version entered or left a channel."""
    COMMAND = "command"
    """A person or a program asked for it by command line or HTTP."""
    DRIFT = "drift"
    """A drift check decided it."""


@dataclass(frozen=True, slots=True)
class Intent:
    """One wish, made by one transition, a command or a drift decision."""

    id: str
    goal: Goal
    channel: Channel
    model: str
    version: int | None
    """None for goals that concern whatever rollout the model has."""
    origin: Origin
    at: datetime
    actor: str | None = None
    reason: str = ""
    came_from: str | None = None
    """Stage that the version was in before it entered the channel."""


class Phase(StrEnum):
    """Where a rollout is."""

    CHECKING = "checking"
    """Gates that need no image."""
    BUILDING = "building"
    """The image is made, or found."""
    STARTING = "starting"
    """The candidate starts beside the stable revision, without traffic."""
    PROVING = "proving"
    """Gates that need the running candidate."""
    SHADOWING = "shadowing"
    """The candidate gets copies of requests."""
    PROGRESSING = "progressing"
    """The candidate gets a growing share of the traffic, as the evidence allows."""
    BAKING = "baking"
    """The candidate has all traffic but a small share, which the old stable revision keeps for the comparison."""
    PROMOTING = "promoting"
    """All traffic moves to the candidate, then the channel is confirmed."""
    ROLLING_BACK = "rolling_back"
    """All traffic moves back, then the channel, then the candidate stops."""
    PAUSED = "paused"
    """Held by a person or for want of evidence; weights stay."""
    SUCCEEDED = "succeeded"
    """The candidate is live (or proved, where that was the goal)."""
    FAILED = "failed"
    """The stable revision holds the traffic, the candidate is gone."""
    HALTED = "halted"
    """The candidate is the only revision left, or the world cannot be put right: a person is called."""


FINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.HALTED})
"""Phases in which traffic has found its place; what is left is to tell the registry."""


class Inconclusive(StrEnum):
    """What follows where a step's time is over and the evidence decides nothing.

    Where there is no evidence at all, or an alarm held the rollout up, it is held whatever is wanted.
    """

    HOLD = "hold"
    """Pause with the weights as they are, and call a person."""
    ROLLBACK = "rollback"
    """Take the candidate back."""
    PROMOTE = "promote"
    """Make it live where nothing speaks against it and its excess of errors is proved to be below `wide_margin`."""


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """How a rollout is carried out; frozen into the rollout when it begins."""

    steps: tuple[int, ...] = (5, 20, 50, 100)
    """Weights of the candidate in percent, rising, the last one 100."""
    step_min_seconds: float = 60.0
    """A step lasts at least this long, however clear the evidence."""
    step_max_seconds: float = 3600.0
    """After this long without enough evidence `on_inconclusive` says what follows."""
    on_inconclusive: Inconclusive = Inconclusive.HOLD
    """What follows then: `hold` it and call a person, `rollback`, or `promote` where `wide_margin` allows."""
    wide_margin: float = 0.02
    """Excess error rate that has to be excluded at 95 % for that promotion (0.02 is two percentage points)."""
    build_seconds: float = 1800.0
    """Deadline for checks and image."""
    ready_seconds: float = 600.0
    """Deadline for the candidate to answer its warm-up prediction and the gates on it."""
    promote_seconds: float = 1800.0
    """Deadline for the traffic to follow a decision to promote."""
    bake_seconds: float = 600.0
    """After the last step the old stable revision keeps a small share this long, and the comparison goes on; 0: not."""
    bake_weight: int = 5
    """That share in percent."""
    shield_bytes: int = 2**20
    """Requests up to this size that fail on the candidate are answered by the stable revision; 0 shields none."""
    pause_seconds: float = 86400.0
    """A paused rollout is taken back after this long."""
    keep_warm_seconds: float = 1800.0
    """The former stable revision keeps running this long after it was replaced."""
    restarts: int = 2
    """A candidate that was started again more often than this is crash-looping and fails."""
    require_signature: bool = False
    """Refuse versions without a model signature."""
    refuse_pickle: bool = False
    """Refuse versions that are loaded by unpickling, which can run any code."""
    settings: RevisionSettings = RevisionSettings()
    analysis: AnalysisPolicy = AnalysisPolicy()
    replay: ReplayGatePolicy = ReplayGatePolicy()
    shadow: ShadowPolicy = ShadowPolicy()
    labels: LabelPolicy = LabelPolicy()


FILES = "files"
"""Name of the gate on the version's files."""
IMAGE = "image"
"""Name of the gate on making its image, such as on requirements that contradict each other."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """What one check said."""

    name: str
    passed: bool
    detail: str = ""
    data: Mapping[str, object] = field(default_factory=dict, hash=False)
    """What it rests on, in JSON's own types."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One intent being carried out. `serial` counts the saves and guards them."""

    id: str
    intent: Intent
    policy: RolloutPolicy
    phase: Phase
    begun: datetime
    entered: datetime
    """When `phase`, or within it the present step, began; or when more of a model that is fetched was there."""
    stable: Revision | None
    candidate: Revision | None = None
    """Known once the image is there."""
    step: int = 0
    """Index into `policy.steps`; after the last of them while the candidate bakes."""
    resume: Phase | None = None
    """Where a paused rollout goes on."""
    held: bool = False
    """Paused by a person, so that evidence alone does not resume it."""
    claimed: bool = False
    """The candidate was seen in its channel; leaving it from now on is an abort."""
    steered: bool = False
    """The rollout has asked for weights of its own; going back has to be seen in the data plane."""
    superseded: bool = False
    """A newer intent has the channel now."""
    reason: str = ""
    """Why the rollout is where it is, for people."""
    trouble: str = ""
    """What a port refused for good; ends the rollout."""
    gates: tuple[GateResult, ...] = ()
    evidence: Evidence | None = None
    shadow: ShadowEvidence | None = None
    """From the shadow stage, where there was one."""
    unshadowing: bool = False
    """The shadow stage is over and its copies are being ended."""
    lock: str | None = None
    """Digest of the candidate's dependency lock."""
    proof: Proof | None = None
    """How the candidate is served, and what that rests on."""
    documents: tuple[Document, ...] = ()
    """What was written about the candidate's image."""
    fetched: int = 0
    """The most that the candidate was seen to have of a model that it fetches, in percent."""
    unready: datetime | None = None
    """Since when the candidate, which had been ready, is not; None while it is."""
    annotated: str = ""
    """Digest of the tags that the registry is known to show."""
    settled: bool = False
    """The registry shows the outcome and nothing is left to do."""
    serial: int = 0

    @property
    def version(self) -> ModelVersion:
        if self.intent.version is None:
            raise ValueError(f"intent {self.intent.id} names no version")
        return ModelVersion(self.intent.model, self.intent.version)

    @property
    def key(self) -> tuple[str, Channel]:
        """At most one rollout that is not settled exists for each key."""
        return self.intent.model, self.intent.channel

    @property
    def files(self) -> str:
        """SHA-256 of the candidate's files as they were approved; empty where no gate has looked."""
        return next((str(gate.data.get("sha256", "")) for gate in self.gates if gate.name == FILES), "")

    @property
    def shadowing(self) -> bool:
        """Whether it is in the shadow stage, be it paused."""
        return Phase.SHADOWING in (self.phase, self.resume if self.phase is Phase.PAUSED else None)

    @property
    def weight(self) -> int:
        """The candidate's share that the saved state asks for, in percent."""
        phase = self.resume if self.phase is Phase.PAUSED else self.phase
        if phase is Phase.PROGRESSING:
            return self.policy.steps[self.step]
        if phase is Phase.BAKING:
            return 100 - self.policy.bake_weight
        return 100 if phase in (Phase.PROMOTING, Phase.SUCCEEDED) and self.intent.goal is not Goal.READY else 0

    @property
    def decided(self) -> bool:
        """The comparison has let it through to all traffic: it bakes, or what follows."""
        return self.step >= len(self.policy.steps)

    @property
    def next_weight(self) -> int:
        """The weight after the present step."""
        return self.policy.steps[min(self.step + 1, len(self.policy.steps) - 1)]

    @property
    def tag(self) -> str:
        """Marks the route of the present step, and every request under it.

        Going back has a mark of its own: seeing it in force is the proof that no older route is still to come. So has
        the end of the shadow stage: once it is seen nothing is copied any more.
        """
        if self.phase is Phase.ROLLING_BACK:
            return f"{self.id}/back"
        if self.shadowing:
            return f"{self.id}/shadowed" if self.unshadowing else f"{self.id}/shadow"
        return f"{self.id}/{self.step}"


@dataclass(frozen=True, slots=True)
class Seen:
    """The world around one rollout in one tick. None is 'could not be observed', never a guess."""

    image: ImageStatus | None = None
    revisions: Mapping[str, RevisionStatus] | None = field(default=None, hash=False)
    """Every revision that the target reports, by id."""
    routes: Mapping[str, Route] | None = field(default=None, hash=False)
    """The routes in force, by model."""
    holders: frozenset[int] | None = None
    """Versions that hold the rollout's channel."""
    withheld: bool = False
    """The model's transitions wait until its policy is mended; the rollout's own writes are among them."""
    gone: bool = False
    """The registry says that the candidate's version does not exist any more."""
    stable_gone: bool = False
    """The same of the stable version, where it would have to be put back."""
    gates: tuple[GateResult, ...] | None = None
    """Results of the gates that belong to the phase, where they were run."""
    gates_progress: str = ""
    """How far a gate is that takes long."""
    blocks: tuple[Block, ...] | None = None
    """Settled blocks after the last one in the evidence."""
    pairs: tuple[ShadowBlock, ...] | None = None
    """The same of the shadow stage."""
    labelled: tuple[LabelBlock, ...] | None = None
    """The same of answers whose labels are not waited for any more."""
    canary_seconds: float | None = None
    """How long the canary will take at the present traffic; None where that is not known, or not asked for."""
    asked: tuple[Intent, ...] = ()
    """Intents for this model and channel that wait, oldest first."""

    def status(self, revision: Revision | None) -> RevisionStatus | None:
        """The revision's status; None where it is absent or could not be observed."""
        if revision is None or self.revisions is None:
            return None
        return self.revisions.get(revision.id)

    def ready(self, revision: Revision | None) -> bool:
        status = self.status(revision)
        return status is not None and status.ready

    def share(self, revision: Revision | None) -> int | None:
        """The revision's share in force in percent; None where it could not be observed."""
        if revision is None or self.routes is None:
            return None
        route = self.routes.get(revision.version.model)
        return route.weights.of(revision) if route else 0


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the history: what happened to a model, who or what did it, and the numbers behind it."""

    model: str
    at: datetime
    kind: str
    """``intent``, ``phase``, ``alert``, ``drift``."""
    text: str
    version: int | None = None
    rollout: str | None = None
    actor: str | None = None
    data: Mapping[str, object] = field(default_factory=dict, hash=False)
