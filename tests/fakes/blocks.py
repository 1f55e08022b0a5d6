"""A source of blocks in memory, filled by the test that owns it."""

from __future__ import annotations

from collections.abc import Sequence

from monitoring.blocks import ArmCount, Block, BlockError, Latencies, Scale, Seen, Shares
from monitoring.label_policy import LabelPolicy
from monitoring.labels import Kept, Label, LabelBlock, Labelled
from monitoring.shadow_blocks import Paired, ShadowBlock


class FakeBlocks:
    """Holds what was added; `broken` makes every call fail as an unreadable log would."""

    def __init__(self) -> None:
        self.broken = False
        self.rates: dict[str, float] = {}
        self.requests: dict[str, tuple[Seen, ...]] = {}
        """What the stable revision of a model did lately."""
        self.prepared: dict[str, tuple[str, Scale]] = {}
        """Model and scale per rollout, as first asked for."""
        self._blocks: dict[str, list[Block]] = {}
        self._pairs: dict[str, list[ShadowBlock]] = {}
        self._labelled: dict[str, list[LabelBlock]] = {}
        self.labels: dict[tuple[str, int], Label] = {}
        """By request and row."""
        self._forgotten: set[str] = set()

    def add(
        self,
        rollout: str,
        step: int,
        stable: ArmCount,
        candidate: ArmCount,
        at: float = 0.0,
        *,
        latency: tuple[Latencies, Latencies] | None = None,
        predictions: tuple[Shares, Shares] | None = None,
    ) -> None:
        """Settle one more block of `rollout`, opened and closed at `at`."""
        if rollout in self._forgotten:
            return
        known = self._blocks.setdefault(rollout, [])
        known.append(Block(len(known) + 1, rollout, step, at, at, stable, candidate, latency, predictions))

    def blocks(self, rollout: str, after: int = 0) -> tuple[Block, ...]:
        self._check()
        return tuple(self._blocks.get(rollout, ())[after:])

    def add_pairs(self, rollout: str, pairs: Sequence[Paired], missing: int = 0) -> None:
        """Settle `pairs` of `rollout`, in a block of their own."""
        if rollout not in self._forgotten:
            known = self._pairs.setdefault(rollout, [])
            known.append(ShadowBlock(len(known) + 1, rollout, tuple(pairs), missing))

    def pairs(self, rollout: str, after: int = 0) -> tuple[ShadowBlock, ...]:
        self._check()
        return tuple(self._pairs.get(rollout, ())[after:])

    def prepare(self, rollout: str, model: str, scale: Scale, labels: LabelPolicy = LabelPolicy()) -> None:
        self._check()
        self.prepared.setdefault(rollout, (model, scale))

    def add_labelled(self, rollout: str, stable: Labelled, candidate: Labelled) -> None:
        """Answers of `rollout` that wait for no more labels, in a block of their own."""
        if rollout not in self._forgotten:
            known = self._labelled.setdefault(rollout, [])
            known.append(LabelBlock(len(known) + 1, rollout, stable, candidate))

    def labelled(self, rollout: str, after: int = 0) -> tuple[LabelBlock, ...]:
        self._check()
        return tuple(self._labelled.get(rollout, ())[after:])

    def keep_labels(self, labels: Sequence[Label]) -> Kept:
        self._check()
        before = len(self.labels)
        for label in labels:
            self.labels.setdefault((label.request_id, label.row), label)
        new = len(self.labels) - before
        return Kept(new, len(labels) - new, 0)

    def rate(self, model: str) -> float | None:
        self._check()
        return self.rates.get(model)

    def seen(self, model: str) -> tuple[Seen, ...]:
        self._check()
        return self.requests.get(model, ())

    def forget(self, rollout: str) -> None:
        self._check()
        self._blocks.pop(rollout, None)
        self._pairs.pop(rollout, None)
        self._labelled.pop(rollout, None)
        self._forgotten.add(rollout)

    def _check(self) -> None:
        if self.broken:
            raise BlockError("the access log cannot be read", retryable=True)
