"""What a team tolerates in a canary, and how sure a decision has to be.

Pure. One value for every metric: what is not asked for in a policy file has the default that stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isclose

from monitoring.blocks import Scale

_SHARES = (
    "alpha_rollback",
    "alpha_promote",
    "exposure",
    "prediction_distance",
    "latency_tail_points",
    "stable_error_alarm",
)
_FROM_ZERO = ("margin_ratio", "latency_tolerance", "latency_margin", "latency_slack_ms")
_WEIGHTS = ("weight_errors", "weight_refusals", "weight_latency", "weight_predictions", "weight_loss", "weight_labels")


@dataclass(frozen=True, slots=True)
class AnalysisPolicy:
    """What is tolerated, and how sure a decision has to be."""

    alpha_rollback: float = 0.01
    """Most chance of rolling back a candidate that is not worse."""
    alpha_promote: float = 0.05
    """Most chance of promoting a candidate beyond the margin."""
    margin_ratio: float = 0.5
    """Promotion: the candidate's error rate may be this much higher, relative to the stable revision's."""
    margin_points: float = 0.005
    """Promotion: and by this much more, absolute (0.005 is half a percentage point)."""
    exposure: float = 0.025
    """Most excess errors that a step may risk, as a share of the model's whole traffic."""
    latency_tolerance: float = 0.10
    """Rollback: the candidate may be slower by this, relative to the stable revision."""
    latency_margin: float = 0.25
    """Promotion: the candidate may be slower by this, relative to the stable revision."""
    latency_slack_ms: float = 2.0
    """Rollback and promotion: and by these milliseconds, which nobody notices."""
    latency_slo_ms: float | None = None
    """Rollback: a request should take no longer than this (milliseconds); that more of the candidate's do than of the
    stable revision's counts against it, however many do."""
    latency_tail_points: float = 0.02
    """Promotion: this much more of the requests may take longer than 95 % usually do (0.02 is 2 points)."""
    require_latency: bool = True
    """Promotion: ask for proof that the candidate is fast enough."""
    prediction_distance: float = 0.10
    """Rollback: this much of the predictions may be different ones (total variation distance)."""
    weight_errors: float = 0.30
    """Rollback: part of the evidence that is staked on errors; the weights sum to 1."""
    weight_refusals: float = 0.10
    """Rollback: part that is staked on requests refused with 4xx."""
    weight_latency: float = 0.40
    """Rollback: part that is staked on latency."""
    weight_predictions: float = 0.20
    """Rollback: part that is staked on predictions; with 0 they do not matter."""
    weight_loss: float = 0.0
    """Rollback: part that is staked on the loss that answers tell of themselves, as output `promote_loss`; where it is
    above 0, promotion asks for proof that the mean loss is within the margins of the error rate."""
    weight_labels: float = 0.0
    """Rollback: part that is staked on labels, where `labels.mode` has them waited for."""
    stable_error_alarm: float = 0.20
    """A stable revision that fails on more of its requests than this holds the ramp up, whatever the candidate does."""

    burst_limit: float = 1.5
    """Failures of the stable revision come in bursts where they vary by more than this times what chance explains; 0:
    always taken to."""
    burst_seconds: float = 10.0
    """Where failures come in bursts, windows this long are compared instead of single requests."""

    def __post_init__(self) -> None:
        for name in _SHARES:
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be above 0 and below 1, not {getattr(self, name)}")
        for name in _FROM_ZERO:
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} must be a number from 0 on, not {getattr(self, name)}")
        if not 0 <= self.margin_points < 1:
            raise ValueError(
                f"margin_points must be from 0 to below 1 (half a point is 0.005), not {self.margin_points}"
            )
        if not self.margin_ratio and not self.margin_points:
            raise ValueError("margin_ratio and margin_points must not both be 0: an equal candidate would never pass")
        if not self.latency_margin and self.require_latency:
            raise ValueError(
                "latency_margin must not be 0 while require_latency is on: an equal candidate never passes"
            )
        if self.latency_slo_ms is not None and not 0 < self.latency_slo_ms < inf:
            raise ValueError(f"latency_slo_ms must be a number above 0, not {self.latency_slo_ms}")
        if not (self.burst_limit == 0 or 1 <= self.burst_limit < inf):
            raise ValueError(f"burst_limit must be 0, or a number from 1 on, not {self.burst_limit}")
        if not 0 < self.burst_seconds < inf:
            raise ValueError(f"burst_seconds must be above 0, not {self.burst_seconds}")
        self._check_weights()

    @property
    def scale(self) -> Scale:
        """How latencies are scored."""
        return Scale(self.latency_tolerance, self.latency_margin, self.latency_slack_ms, self.latency_slo_ms)

    def _check_weights(self) -> None:
        for name in _WEIGHTS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        total = sum(getattr(self, name) for name in _WEIGHTS)
        if not isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"weight_errors and the other weights must sum to 1, not {total:g}")
