"""The same requests to ``mlflow models serve`` and to the model server: the same answers, but for what is listed.

A difference that is not in the list fails, and so does one in the list that no request shows any more.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import lightgbm
import mlflow
import pandas as pd
import pytest
import xgboost
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mlflow.models import infer_signature

from serving.runtime.plan import Plan
from serving.runtime.plan import read as read_plan
from tests.contract.scoring_requests import FORMS, Asked, asked, oddities, records
from tests.fixtures.models import CITIES, COUNTS, NUMBERS, PLANS, Shelf, customers, spending
from tests.fixtures.revisions import REQUIREMENTS
from tests.fixtures.scoring import ScoringServer, mlflow_server, our_server, planned

EXAMPLES = 2
"""Sets of rows for every model; each is sent in every form with everything that can be odd about it."""
ANSWERED = "answered"
REFUSED, OTHER = "refused", "other values"

DIFFERENCES: dict[str, tuple[str, ...]] = {
    "boolean in a number": (REFUSED,),
    "boolean in an integer": (REFUSED,),
    "duplicate column": (REFUSED,),
    "fraction in an integer": (REFUSED,),
    "number in a string": (REFUSED,),
    "no rows": (REFUSED,),
    "overflow": (REFUSED,),
    "short row": (REFUSED,),
}
"""What is odd about a request, and what this server does where MLflow answers as if it were not."""

ECHOED: dict[str, tuple[str, ...]] = {
    "NaN": (REFUSED,),
    "infinity": (REFUSED,),
    "null in a number": (REFUSED,),
    "list in a string": (REFUSED,),
    "null in a string": (OTHER,),
    "empty string": (OTHER,),
    "short row": (REFUSED, OTHER),
}
"""The same for a model that answers with what it was asked, also with NaN, which is a failure here. MLflow gives a
missing text to the model as the word None or as NaN, which no JSON has."""

WORDS = {"city": tuple(CITIES), "plan": tuple(PLANS), "word": ("a", "b", "ü")}
SEEN: dict[str, set[str]] = {}
COMPILED = ("light_model", "forest_regressor_model", "strict_model", "boosted_model", "light_boosted_model")
MODELS = (*COMPILED, "light_model --native", "echo_model")
AT_NIGHT = ("light_model", "forest_regressor_model", "light_boosted_model")
"""What differs from the others in nothing that requests are parsed by."""


@dataclass(slots=True)
class Pair:
    """Both servers on one model, and the differences that they showed."""

    name: str
    plan: Plan
    words: Mapping[str, tuple[str, ...]]
    ours: ScoringServer
    theirs: ScoringServer
    seen: set[str] = field(default_factory=set)

    def compare(self, asked: Asked) -> None:
        ours = self.ours.score(asked.body, asked.content_type)
        theirs = self.theirs.score(asked.body, asked.content_type)
        assert ours.status_code < 500, (asked, ours.text)
        difference = _difference(ours, theirs)
        if difference:
            about = (asked, difference, ours.text[:300], theirs.text[:300])
            assert difference in DIFFERENCES.get(asked.oddity, ()) + _own(self.name).get(asked.oddity, ()), about
            self.seen.add(asked.oddity)


def _own(name: str) -> dict[str, tuple[str, ...]]:
    return ECHOED if name == "echo_model" else {}


def _difference(ours: httpx.Response, theirs: httpx.Response) -> str:
    if ours.status_code == theirs.status_code == 200:
        return "" if same(ours.json()["predictions"], theirs.json()["predictions"]) else OTHER
    if ours.status_code == 200:
        return ANSWERED
    return REFUSED if theirs.status_code == 200 else ""


def same(one: Any, other: Any) -> bool:
    """Equal, numbers to a relative 1e-5 (of the larger of 1 and their size)."""
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-5)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return bool(one == other)


@pytest.fixture(scope="module")
def boosted_model(shelf: Shelf) -> Path:
    """XGBoost, which takes missing values and answers with float32."""
    frame = customers(500)[[*NUMBERS, *COUNTS]]
    model = xgboost.XGBRegressor(n_estimators=20, max_depth=3).fit(frame, spending(customers(500)))
    return _saved(mlflow.xgboost, model, shelf.place("boosted"), frame)


@pytest.fixture(scope="module")
def light_boosted_model(shelf: Shelf) -> Path:
    """LightGBM, in double precision."""
    frame = customers(500)[[*NUMBERS, *COUNTS]]
    model = lightgbm.LGBMRegressor(n_estimators=20, verbose=-1).fit(frame, spending(customers(500)))
    return _saved(mlflow.lightgbm, model, shelf.place("light-boosted"), frame)


def _saved(flavor: Any, model: Any, folder: Path, frame: pd.DataFrame) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signature = infer_signature(frame, model.predict(frame))
        how = {"signature": signature, "input_example": frame[:2], "pip_requirements": REQUIREMENTS}
        flavor.save_model(model, str(folder), **how)
    return folder


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.nightly] if name in AT_NIGHT else []) for name in MODELS],
)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    name, *options = request.param.split()
    folder: Path = request.getfixturevalue(name)
    plan = read_plan(planned(folder))
    assert (plan.compiled is not None) == (name in COMPILED), plan.why
    with our_server(folder, *options) as ours, mlflow_server(folder) as theirs:
        yield Pair(request.param, plan, WORDS, ours, theirs)


def test_the_same_requests_get_the_same_answers(pair: Pair) -> None:
    columns = pair.plan.columns

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(records(columns, pair.words), st.integers(0, 1_000))
    def ask(rows: list[dict[str, Any]], at: int) -> None:
        for form, oddity in itertools.product(FORMS, oddities(columns)):
            pair.compare(asked(rows, columns, form, oddity, at))

    ask()
    SEEN[pair.name] = pair.seen


@pytest.mark.nightly
def test_every_listed_difference_was_seen() -> None:
    if len(SEEN) < len(MODELS):
        pytest.skip("not all models were asked in this run")
    assert set(DIFFERENCES) | set(ECHOED) == set().union(*SEEN.values())
