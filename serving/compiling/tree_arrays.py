"""Decision trees as arrays over their nodes, whichever library grew them. Needs NumPy only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from serving.runtime.exchange import Array

LEAF = -1
"""In `Tree.left`: the node is a leaf."""


class Branch(IntEnum):
    """When a row goes left, as ONNX numbers it."""

    AT_MOST = 0
    """The value is the threshold or less."""
    LESS = 1
    """The value is less than the threshold."""
    EQUAL = 4
    """The value is the threshold."""
    MEMBER = 6
    """The value is one of several; see `Tree.members`."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree as arrays over its nodes; node 0 is the root."""

    feature: Array
    """Position in the input; anything at leaves."""
    threshold: Array
    left: Array
    """The next node where `branch` holds, or `LEAF`."""
    right: Array
    value: Array
    """(nodes, values): what a leaf adds; anything elsewhere."""
    missing_left: Array | None = None
    """Whether NaN goes left; None where it always goes right."""
    target: int = 0
    """To which output the first value is added."""
    branch: Branch | Array = Branch.AT_MOST
    """The same for all nodes, or one for each."""
    members: tuple[Array, ...] = ()
    """The values that go left at nodes of `Branch.MEMBER`, in the order of those nodes."""


def constant(value: float, target: int = 0) -> Tree:
    """A tree that is one leaf: what the sum of a target starts from."""
    nothing = np.full(1, LEAF)
    return Tree(np.zeros(1, int), np.zeros(1), nothing, nothing, np.array([[value]]), None, target)


def thresholds(trees: Iterable[Tree]) -> dict[int, Array]:
    """By feature, the values that rows are compared with, sorted."""
    features: dict[int, list[Array]] = {}
    for tree in trees:
        inner = tree.left != LEAF
        sets = inner & np.equal(tree.branch, Branch.MEMBER)
        compared = inner & ~sets
        for feature in np.unique(tree.feature[compared]):
            features.setdefault(int(feature), []).append(tree.threshold[compared & (tree.feature == feature)])
        for feature, members in zip(tree.feature[sets], tree.members, strict=True):
            features.setdefault(int(feature), []).append(np.asarray(members, float))
    return {feature: np.unique(np.concatenate(parts)) for feature, parts in sorted(features.items())}
