"""How others decide about a canary, written down from their documentation, to be tried on the product's streams.

Every rule looks at the same requests at the same weight and says after which of them the candidate is taken back. Each
was given what its documentation shows, and for latency, where a number has to be chosen, one that suits it: a fifth
above the stable revision's 99th percentile, known without error.

- *Flagger* (1.x, "metrics analysis" and its scheduler): every minute the success rate (99 %) and the 99th percentile of
  the latency of the last minute. A failed check is counted, the count never falls, and the scheduler looks at it
  before it checks again: with a threshold of 5 the rollback comes in the sixth minute at the earliest. No requests are
  a failed check.
- *Argo Rollouts* (1.x, the success-rate template of its analysis page): every five minutes the success rate of the last
  five, at least 95 %; the fourth failure takes back (`failureLimit: 3`). It says nothing about latency.
- *Kayenta* (NetflixACAJudge): one judgement after an hour on one point per minute and metric, by Mann-Whitney's test at
  98 % with a tolerance of a quarter of the Hodges-Lehmann shift; a metric that is high fails, and of two metrics both
  have to pass (score 100 with a pass mark of 75).
- *mSPRT* (Johari, Pekelis, Walsh: always valid inference): mixture of normal differences of error rates, read every
  second, with the mixture's standard deviation at two points.
- *Fisher*: his exact test on all requests so far, read every minute, as dashboards are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.stats import fisher_exact, norm

from benchmarks.canary.world import BEFORE, Stream

ALPHA = 0.01
"""What every test is asked for."""
MINUTE = 60.0
HOUR = 60
"""In minutes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The requests of one canary at a weight that is held, from its first one on."""

    minute: npt.NDArray[np.float64]
    """Since the canary's begin."""
    candidate: npt.NDArray[np.bool_]
    failed: npt.NDArray[np.bool_]
    latency_ms: npt.NDArray[np.float64]
    usual_ms: npt.NDArray[np.float64]
    """Latencies of the stable revision before."""

    @classmethod
    def of(cls, stream: Stream, weight: float) -> Seen:
        candidate = stream.draw < weight
        arm = candidate.astype(int)
        which = np.arange(len(arm))
        failed, latency = stream.failed[arm, which], stream.latency_ms[arm, which]
        minute = (stream.t - stream.t[BEFORE]) / MINUTE
        now = slice(BEFORE, None)
        return cls(minute[now], candidate[now], failed[now], latency[now], stream.latency_ms[0, :BEFORE])

    def windows(self, minutes: float) -> Iterator[tuple[float, npt.NDArray[np.bool_]]]:
        """Ends of windows so long, and which requests are in each; only whole windows."""
        for number in range(1, int(self.minute[-1] / minutes) + 1):
            yield number * minutes, (self.minute >= (number - 1) * minutes) & (self.minute < number * minutes)


Rule = Callable[[Seen], float | None]
"""Minutes after which the candidate is taken back; None where it is not."""


def flagger(seen: Seen) -> float | None:
    slowest = 1.2 * float(np.percentile(seen.usual_ms, 99))
    failed_checks = 0
    for at, inside in seen.windows(1.0):
        if failed_checks >= 5:
            return at
        of_candidate = inside & seen.candidate
        if not of_candidate.any():
            failed_checks += 1
            continue
        success = 1 - seen.failed[of_candidate].mean()
        tail = np.percentile(seen.latency_ms[of_candidate], 99)
        failed_checks += bool(success < 0.99 or tail > slowest)
    return None


def argo(seen: Seen) -> float | None:
    failures = 0
    for at, inside in seen.windows(5.0):
        of_candidate = inside & seen.candidate
        failures += bool(of_candidate.any() and 1 - seen.failed[of_candidate].mean() < 0.95)
        if failures > 3:
            return at
    return None


def kayenta(seen: Seen) -> float | None:
    if seen.minute[-1] < HOUR:
        return None
    points: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for at, inside in seen.windows(1.0):
        for arm in (False, True):
            chosen = inside & (seen.candidate == arm)
            if at <= HOUR and chosen.any():
                points[arm].append((float(seen.failed[chosen].mean()), float(seen.latency_ms[chosen].mean())))
    stable, candidate = np.array(points[False]), np.array(points[True])
    high = any(_is_high(candidate[:, metric], stable[:, metric]) for metric in (0, 1))
    return float(HOUR) if high else None


def _is_high(experiment: npt.NDArray[np.float64], control: npt.NDArray[np.float64]) -> bool:
    """Where the whole interval of the shift lies above a quarter of its estimate."""
    shifts = np.sort(np.subtract.outer(experiment, control).ravel())
    n, m = len(experiment), len(control)
    away = norm.ppf(1 - 0.02 / 2) * sqrt(n * m * (n + m + 1) / 12)
    lowest = shifts[max(0, int(n * m / 2 - away))]
    estimate = float(np.median(shifts))
    return bool(lowest > 0.25 * abs(estimate)) and estimate > 0


def msprt(seen: Seen, deviation: float = 0.02) -> float | None:
    every = 20
    n1, n0 = np.cumsum(seen.candidate)[every - 1 :: every], np.cumsum(~seen.candidate)[every - 1 :: every]
    x1 = np.cumsum(seen.candidate & seen.failed)[every - 1 :: every]
    x0 = np.cumsum(~seen.candidate & seen.failed)[every - 1 :: every]
    both = (n1 > 0) & (n0 > 0)
    n1, n0, x1, x0 = n1[both], n0[both], x1[both], x0[both]
    pooled = np.clip((x1 + x0) / (n1 + n0), 1e-9, 1 - 1e-9)
    variance = pooled * (1 - pooled) * (1 / n1 + 1 / n0)
    difference, mixed = x1 / n1 - x0 / n0, deviation**2
    log_ratio = 0.5 * np.log(variance / (variance + mixed)) + mixed * difference**2 / (
        2 * variance * (variance + mixed)
    )
    beyond = (log_ratio >= -np.log(ALPHA)) & (difference > 0)
    return float(seen.minute[::every][: len(both)][both][int(beyond.argmax())]) if beyond.any() else None


def fisher(seen: Seen) -> float | None:
    for at in np.arange(1.0, seen.minute[-1]):
        until = seen.minute < at
        candidate, stable = until & seen.candidate, until & ~seen.candidate
        x1, x0 = int(seen.failed[candidate].sum()), int(seen.failed[stable].sum())
        table = [[x1, int(candidate.sum()) - x1], [x0, int(stable.sum()) - x0]]
        if fisher_exact(table, alternative="greater").pvalue < ALPHA:
            return float(at)
    return None


RULES: dict[str, Rule] = {
    "Flagger": flagger,
    "Argo Rollouts": argo,
    "Kayenta": kayenta,
    "mSPRT": msprt,
    "Fisher at each minute": fisher,
}
