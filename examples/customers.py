"""Telephone-contract customers whose chance of leaving is known, because we made them.

A public data set says who left, never how likely it was; with a simulator the best possible model is known,
so that 'better' and 'worse' can be checked and not only believed. The price is that the world is as simple
as it is written down here:

* `draw` makes customers. Every column has a stream of random numbers of its own, so that with the same seed
  a changed world changes only the columns that it is said to change.
* `churn_probability` is the truth, a logistic formula over the columns. Two of its terms are interactions
  that a linear model of the columns cannot express: the price hurts only where the contract lets the
  customer go, and dropped calls hurt only the customers who call rather than use data.
* `World` is what can change: `USUAL`, and `NEW_TARIFF`, in which the customers' side of the formula stays
  as it is while the customers themselves differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CONTRACTS = ("month-to-month", "one year", "two years")
INTERNET = ("none", "dsl", "fiber")
PAYMENTS = ("electronic check", "mailed check", "bank transfer", "credit card")
REGIONS = {"north": 0.22, "south": 0.25, "east": 0.19, "west": 0.29, "islands": 0.05}
"""Share of the customers in each region; `islands` is the small one that a careless extract leaves out."""
RARE_REGION = "islands"

COLUMNS = (
    "tenure_months",
    "contract",
    "monthly_charges",
    "internet_service",
    "data_gb",
    "call_minutes",
    "dropped_calls",
    "support_calls",
    "payment_method",
    "paperless_billing",
    "dependents",
    "age",
    "late_payments",
    "region",
)
"""The 14 columns of a customer, in order. `age` is null for the tenth who do not tell it."""


@dataclass(frozen=True, slots=True)
class World:
    """What the customers are like, apart from how they decide."""

    month_to_month: float = 0.50
    """Share of contracts that can be ended every month; the rest is split evenly over one and two years."""
    charges_added: float = 0.0
    """Added to everybody's monthly charges; their standard deviation is about 23."""
    electronic_check: float = 0.30
    """Share of payments by electronic check; the rest is split evenly over the other methods."""

    def changed(self, size: float) -> World:
        """This world after `size` times the new tariff: 1 is all of it, 0 none."""
        return World(
            month_to_month=self.month_to_month + size * 0.25,
            charges_added=self.charges_added + size * 15.0,
            electronic_check=self.electronic_check + size * 0.30,
        )


USUAL = World()
NEW_TARIFF = USUAL.changed(1.0)
"""A dearer tariff without a fixed term, sold with electronic payment: month-to-month contracts go from 50 % to
75 %, monthly charges rise by 15 (0.65 standard deviations), electronic checks go from 30 % to 60 %."""


def draw(n: int, seed: int, *, world: World = USUAL) -> pd.DataFrame:
    """`n` customers of `world`, one row each, with the columns `COLUMNS`; the same arguments give the same rows."""
    streams = dict(zip(COLUMNS, np.random.default_rng(seed).spawn(len(COLUMNS)), strict=True))
    internet = _choose(streams["internet_service"], INTERNET, (0.20, 0.35, 0.45), n)
    columns: dict[str, Any] = {
        "tenure_months": np.minimum(streams["tenure_months"].gamma(1.3, 22.0, n).astype(np.int64), 72),
        "contract": _choose(streams["contract"], CONTRACTS, _rest(world.month_to_month, 3), n),
        "monthly_charges": _charges(streams["monthly_charges"], internet) + world.charges_added,
        "internet_service": internet,
        "data_gb": np.where(internet == "none", 0.0, streams["data_gb"].lognormal(2.6, 0.7, n)).round(1),
        "call_minutes": streams["call_minutes"].gamma(2.0, 110.0, n).round(0),
        "dropped_calls": streams["dropped_calls"].poisson(3.0, n),
        "support_calls": streams["support_calls"].poisson(0.8, n),
        "payment_method": _choose(streams["payment_method"], PAYMENTS, _rest(world.electronic_check, 4), n),
        "paperless_billing": streams["paperless_billing"].random(n) < 0.6,
        "dependents": np.minimum(streams["dependents"].poisson(0.9, n), 6),
        "age": _ages(streams["age"], n),
        "late_payments": streams["late_payments"].poisson(0.4, n),
        "region": _choose(streams["region"], tuple(REGIONS), tuple(REGIONS.values()), n),
    }
    return pd.DataFrame(columns, columns=list(COLUMNS))


def churn_probability(customers: pd.DataFrame) -> NDArray[np.float64]:
    """The true chance that each customer leaves within the next three months."""
    charges = (customers["monthly_charges"].to_numpy(float) - 65.0) / 23.0
    tenure = customers["tenure_months"].to_numpy(float) / 24.0
    free_to_go = (customers["contract"] == "month-to-month").to_numpy()
    caller = (customers["call_minutes"] > 180.0).to_numpy()
    dropped = customers["dropped_calls"].to_numpy(float) - 3.0
    logit = (
        -1.55
        - 0.75 * tenure
        + np.where(free_to_go, 0.7 + 1.1 * charges, -0.6 - 0.3 * charges)
        + np.where(caller, 0.55 * dropped, -0.25 * dropped)
        + 0.45 * customers["support_calls"].to_numpy(float)
        + 0.35 * customers["late_payments"].to_numpy(float)
        + 0.55 * (customers["payment_method"] == "electronic check").to_numpy(float)
        + 0.40 * (customers["internet_service"] == "fiber").to_numpy(float)
        - 0.15 * customers["dependents"].to_numpy(float)
    )
    probability: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-logit))
    return probability


def label(customers: pd.DataFrame, seed: int) -> NDArray[np.int64]:
    """Who leaves: 1 with the true probability, else 0."""
    chance = np.random.default_rng((seed, 1)).random(len(customers))
    leaves: NDArray[np.int64] = (chance < churn_probability(customers)).astype(np.int64)
    return leaves


def _choose(
    stream: np.random.Generator, values: tuple[str, ...], shares: tuple[float, ...], n: int
) -> NDArray[np.object_]:
    """By inversion, so that a changed share changes as few rows as it must."""
    places = np.searchsorted(np.cumsum(shares)[:-1], stream.random(n), side="right")
    chosen: NDArray[np.object_] = np.array(values, dtype=object)[places]
    return chosen


def _rest(first: float, count: int) -> tuple[float, ...]:
    """`first`, and what is left of 1 split evenly over the other `count` - 1."""
    return (first, *[(1.0 - first) / (count - 1)] * (count - 1))


def _charges(stream: np.random.Generator, internet: NDArray[np.object_]) -> NDArray[np.float64]:
    base = np.select([internet == "none", internet == "dsl"], [35.0, 60.0], 82.0)
    charges: NDArray[np.float64] = np.maximum(stream.normal(base, 14.0), 15.0).round(2)
    return charges


def _ages(stream: np.random.Generator, n: int) -> NDArray[np.float64]:
    ages = np.clip(stream.normal(47.0, 16.0, n).round(), 18.0, 95.0)
    told: NDArray[np.float64] = np.where(stream.random(n) < 0.1, np.nan, ages)
    return told
