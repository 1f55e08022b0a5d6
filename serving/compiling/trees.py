"""Ensembles of decision trees as exact ONNX nodes: the thresholds and sums keep the type that the library uses.

ONNX's older tree operators round thresholds and scores to float32, which sends a few rows in a thousand down another
branch. The operator used here (`TreeEnsemble` of ``ai.onnx.ml`` 5) computes in the type of its input, and sums a
target's leaves in the order of the trees, as the libraries do; so answers agree to the last bit where theirs are
deterministic.

A leaf of that operator has one value. Trees with several values at a leaf are evaluated once all the same: the operator
then gives the leaf that every tree ends in, and the values are looked up and summed after it. That costs a fifth more
than one value, where a tree for each value would cost twice as much and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from serving.compiling.tree_arrays import LEAF, Branch, Tree, constant, thresholds
from serving.runtime.exchange import Array

ML = "ai.onnx.ml"
"""The domain of ONNX's operators for classical models; these nodes need its version 5."""

_SPARE = 2
"""So many leaves that no branch leads to stand first. ONNX Runtime before 1.24 takes a root for a leaf where the number
of the leaf on its one side is that of the branch on its other, which so is never the case."""

__all__ = ["LEAF", "ML", "Branch", "Part", "Tree", "constant", "summed", "thresholds"]


@dataclass(frozen=True, slots=True)
class Part:
    """Nodes of a graph, with the constants that they need."""

    nodes: tuple[NodeProto, ...]
    constants: tuple[TensorProto, ...] = ()


def summed(
    trees: Sequence[Tree], source: str, result: str, targets: int = 1, dtype: Any = np.float64, name: str = "trees"
) -> Part:
    """The sum of the leaves' values over `trees`: `source` (rows, features) to `result` (rows, targets), both `dtype`.

    `name` begins the names of everything else that is put into the graph.
    """
    trees = [_rooted(tree) for tree in trees]
    if all(tree.value.shape[1] == 1 for tree in trees):
        weights = np.concatenate([tree.value[tree.left == LEAF, 0] for tree in trees])
        return Part((_ensemble(trees, [tree.target for tree in trees], weights, targets, source, result, dtype, name),))
    return _looked_up(trees, source, result, targets, dtype, name)


def _looked_up(trees: Sequence[Tree], source: str, result: str, targets: int, dtype: Any, name: str) -> Part:
    """Every tree is a target of its own and gives the number of its leaf, whose values are then summed."""
    table = np.concatenate([_row_of_targets(tree, targets) for tree in trees]).astype(dtype)
    numbers = np.arange(len(table), dtype=np.float64)
    if len(table) > 2**24 and np.dtype(dtype) == np.float32:
        raise ValueError("float32 cannot number so many leaves")
    leaves, where, values = f"{name}_leaves", f"{name}_where", f"{name}_values"
    ensemble = _ensemble(trees, list(range(len(trees))), numbers, len(trees), source, leaves, dtype, name)
    nodes = (
        ensemble,
        helper.make_node("Cast", [leaves], [where], to=TensorProto.INT32),
        helper.make_node("Gather", [f"{name}_table", where], [values], axis=0),
        helper.make_node("ReduceSum", [values, f"{name}_axis"], [result], keepdims=0),
    )
    axis = numpy_helper.from_array(np.array([1], np.int64), f"{name}_axis")
    return Part(nodes, (numpy_helper.from_array(table, f"{name}_table"), axis))


def _row_of_targets(tree: Tree, targets: int) -> Array:
    """(leaves, targets) of one tree."""
    values = tree.value[tree.left == LEAF]
    rows = np.zeros((len(values), targets), values.dtype)
    rows[:, tree.target : tree.target + values.shape[1]] = values
    return rows


def _ensemble(
    trees: Sequence[Tree],
    leaf_targets: Sequence[int],
    weights: Array,
    targets: int,
    source: str,
    result: str,
    dtype: Any,
    name: str,
) -> NodeProto:
    """`weights` has one value for every leaf, in the order of trees and nodes."""
    forest = _flat(trees, leaf_targets)
    members = [np.append(part, np.nan).astype(dtype) for tree in trees for part in tree.members]
    sets = {"membership_values": numpy_helper.from_array(np.concatenate(members))} if members else {}
    return helper.make_node(
        "TreeEnsemble",
        [source],
        [result],
        name=name,
        domain=ML,
        n_targets=targets,
        aggregate_function=1,
        post_transform=0,
        nodes_splits=numpy_helper.from_array(forest.pop("nodes_splits").astype(dtype)),
        nodes_modes=numpy_helper.from_array(forest.pop("nodes_modes").astype(np.uint8)),
        leaf_weights=numpy_helper.from_array(np.append(np.zeros(_SPARE), weights).astype(dtype)),
        **{key: values.tolist() for key, values in forest.items()},
        **sets,
    )


def _flat(trees: Sequence[Tree], leaf_targets: Sequence[int]) -> dict[str, Array]:
    """All trees behind one another, inner nodes and leaves numbered apart, as the operator wants them."""
    parts = {"leaf_targetids": [np.zeros(_SPARE, int)]}
    inner, leaves = 0, _SPARE
    for tree, target in zip(trees, leaf_targets, strict=True):
        for key, values in _attributes(tree, target, inner, leaves).items():
            parts.setdefault(key, []).append(values)
        inner += len(parts["nodes_splits"][-1])
        leaves += len(parts["leaf_targetids"][-1])
    return {key: np.concatenate(values) for key, values in parts.items()}


def _attributes(tree: Tree, target: int, inner: int, leaves: int) -> dict[str, Array]:
    """One tree, behind so many inner nodes and leaves."""
    leaf = tree.left == LEAF
    number = np.where(leaf, np.cumsum(leaf) - 1 + leaves, np.cumsum(~leaf) - 1 + inner)
    left, right = tree.left[~leaf], tree.right[~leaf]
    missing = np.zeros(len(leaf), bool) if tree.missing_left is None else tree.missing_left
    return {
        "tree_roots": np.array([inner]),
        "nodes_featureids": tree.feature[~leaf],
        "nodes_splits": tree.threshold[~leaf],
        "nodes_modes": np.broadcast_to(np.asarray(tree.branch, np.uint8), leaf.shape)[~leaf],
        "nodes_missing_value_tracks_true": missing[~leaf].astype(np.int64),
        "nodes_truenodeids": number[left],
        "nodes_trueleafs": leaf[left].astype(np.int64),
        "nodes_falsenodeids": number[right],
        "nodes_falseleafs": leaf[right].astype(np.int64),
        "leaf_targetids": np.full(int(leaf.sum()), target),
    }


def _rooted(tree: Tree) -> Tree:
    """The operator's trees begin with a branch: one that is a single leaf gets one, with a leaf like it on each side.

    Were it the same leaf on both sides, ONNX Runtime before 1.24 would take the branch's number for that of the leaf.
    """
    if len(tree.left) > 1:
        return tree
    left, right = np.array([1, LEAF, LEAF]), np.array([2, LEAF, LEAF])
    return Tree(np.zeros(3, int), np.zeros(3), left, right, np.repeat(tree.value, 3, 0), None, tree.target)
