"""The simulator does what its documentation says: seeds, truth, and the size of the change."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from examples.customers import COLUMNS, NEW_TARIFF, REGIONS, USUAL, churn_probability, draw, label

MANY = 40_000


@pytest.fixture(scope="module")
def usual() -> pd.DataFrame:
    return draw(MANY, 1)


@pytest.fixture(scope="module")
def changed() -> pd.DataFrame:
    return draw(MANY, 1, world=NEW_TARIFF)


def share(customers: pd.DataFrame, column: str, value: str) -> float:
    return float((customers[column] == value).mean())


def test_the_same_seed_gives_the_same_customers_and_labels() -> None:
    first, again, other = draw(50, 7), draw(50, 7), draw(50, 8)
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    np.testing.assert_array_equal(label(first, 7), label(again, 7))
    assert (label(first, 7) != label(first, 8)).any()


def test_columns_have_the_types_that_a_signature_can_hold(usual: pd.DataFrame) -> None:
    assert tuple(usual.columns) == COLUMNS
    kinds = {name: usual[name].dtype.kind for name in COLUMNS}
    assert {name for name, kind in kinds.items() if kind == "O"} == {
        "contract",
        "internet_service",
        "payment_method",
        "region",
    }
    assert kinds["paperless_billing"] == "b"
    assert kinds["tenure_months"] == "i"
    assert usual.columns[usual.isna().any()].tolist() == ["age"]
    assert usual["age"].isna().mean() == pytest.approx(0.10, abs=0.01)


def test_every_region_has_its_share(usual: pd.DataFrame) -> None:
    assert {region: share(usual, "region", region) for region in REGIONS} == pytest.approx(REGIONS, abs=0.01)


def test_the_truth_is_calibrated(usual: pd.DataFrame) -> None:
    truth, leaves = churn_probability(usual), label(usual, 3)
    tenths = np.digitize(truth, np.quantile(truth, np.arange(0.1, 1.0, 0.1)))
    expected = [truth[tenths == tenth].mean() for tenth in range(10)]
    observed = [leaves[tenths == tenth].mean() for tenth in range(10)]
    assert observed == pytest.approx(expected, abs=0.03)
    assert 0.2 < leaves.mean() < 0.3


def test_the_price_matters_only_where_the_customer_is_free_to_go(usual: pd.DataFrame) -> None:
    dearer = usual.assign(monthly_charges=usual["monthly_charges"] + 20.0)
    rises = churn_probability(dearer) > churn_probability(usual)
    free = (usual["contract"] == "month-to-month").to_numpy()
    assert rises[free].all()
    assert not rises[~free].any()


def test_the_new_tariff_changes_what_it_says(usual: pd.DataFrame, changed: pd.DataFrame) -> None:
    assert share(usual, "contract", "month-to-month") == pytest.approx(0.50, abs=0.01)
    assert share(changed, "contract", "month-to-month") == pytest.approx(0.75, abs=0.01)
    assert share(usual, "payment_method", "electronic check") == pytest.approx(0.30, abs=0.01)
    assert share(changed, "payment_method", "electronic check") == pytest.approx(0.60, abs=0.01)
    added = changed["monthly_charges"] - usual["monthly_charges"]
    assert added.to_numpy() == pytest.approx(np.full(MANY, 15.0))
    assert 15.0 / usual["monthly_charges"].std() == pytest.approx(0.65, abs=0.02)
    assert churn_probability(changed).mean() > churn_probability(usual).mean() + 0.1


def test_the_new_tariff_changes_nothing_else(usual: pd.DataFrame, changed: pd.DataFrame) -> None:
    same = [name for name in COLUMNS if name not in {"contract", "monthly_charges", "payment_method"}]
    pd.testing.assert_frame_equal(usual[same], changed[same])


@pytest.mark.parametrize(("size", "month_to_month"), [(0.0, 0.50), (0.5, 0.625), (1.0, 0.75)])
def test_a_world_can_change_by_degrees(size: float, month_to_month: float) -> None:
    assert USUAL.changed(size).month_to_month == pytest.approx(month_to_month)
