"""Requests that come as arrays already, by the same rules as those in JSON.

Numbers are checked as a whole; where that finds something wrong, or there are no numbers, every value is looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.runtime.exchange import Array, BadRequestError
from serving.runtime.parsing_values import Domain, Infinite, Problems, quoted


def column(domain: Domain, array: Array, problems: Problems) -> Array:
    """Of shape (n,) or (n, 1)."""
    if array.ndim not in (1, 2) or array.size != len(array):
        raise BadRequestError(f"column {quoted(domain.name)}: expected shape [n] or [n, 1], got {list(array.shape)}")
    return tensor(domain, array.reshape(-1), problems)


def tensor(domain: Domain, array: Array, problems: Problems) -> Array:
    """Of any shape."""
    quick = _quick(domain, array)
    if quick is not None:
        return quick
    found = domain.array(map(_plain, array.reshape(-1).tolist()), problems)
    return found.reshape(array.shape) if found.size == array.size else found


def _quick(domain: Domain, array: Array) -> Array | None:
    """The array in the domain's type where all values are certainly of the domain; None where that is not certain."""
    if not domain.free or array.size == 0:
        return None
    given, wanted = array.dtype, domain.dtype
    if given == wanted and wanted.kind in "bui":
        return array
    if given.kind in "ui" and wanted.kind in "ui":
        bounds = np.iinfo(wanted)
        fits = int(array.min()) >= bounds.min and int(array.max()) <= bounds.max
    else:
        fits = given.kind in "uif" and wanted.kind == "f" and _within(array, float(np.finfo(wanted).max))
    return array.astype(wanted) if fits else None


def _within(array: Array, limit: float) -> bool:
    """Whether all values are numbers of at most that size; false where one is NaN."""
    return bool(-limit <= float(array.min()) and float(array.max()) <= limit)


def _plain(value: Any) -> Any:
    """An infinity in an array is meant to be one."""
    return Infinite(value) if isinstance(value, float) and value in (np.inf, -np.inf) else value
