"""The best one-to-one matching of candidate pairs."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def best_pairs(
    rows: Int[np.ndarray, " n"], columns: Int[np.ndarray, " n"], gain: Float[np.ndarray, " n"], *, most: bool = False
) -> Int[np.ndarray, " m"]:
    """Choose pairs that share no row and no column, with the largest sum of gains (Hungarian, not greedy).

    Args:
        rows: number of the first partner of each candidate, 0 or more.
        columns: number of the second one, counted by itself.
        gain: of each candidate; 0 or more, or with `most` from -1 to 0.
        most: first as many pairs as can be, and of those matchings the one with the largest sum.

    Returns:
        Positions of the chosen candidates.
    """
    if len(gain) == 0:
        return np.zeros(0, np.int64)
    # Candidates fall into small groups that share no partner: an assignment for each, not one matrix of all.
    first = int(rows.max()) + 1
    nodes = first + int(columns.max()) + 1
    graph = coo_array((np.ones(len(gain)), (rows, first + columns)), shape=(nodes, nodes))
    groups = connected_components(graph, directed=False)[1][rows]
    order = np.argsort(groups, kind="stable")
    chosen = [
        _assigned(pairs, rows[pairs], columns[pairs], gain[pairs], most=most)
        for pairs in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    ]
    return np.concatenate(chosen)


def _assigned(
    pairs: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " n"],
    columns: Int[np.ndarray, " n"],
    gain: Float[np.ndarray, " n"],
    *,
    most: bool,
) -> Int[np.ndarray, " m"]:
    """Those of the pairs that the best assignment within one group keeps."""
    if len(pairs) == 1:
        return pairs
    _, row = np.unique(rows, return_inverse=True)
    _, column = np.unique(columns, return_inverse=True)
    table = np.zeros((row.max() + 1, column.max() + 1))
    which = np.full(table.shape, -1, np.int64)
    # With `most`, one pair more gains more than all the others together can cost.
    table[row, column] = min(table.shape) + 1.0 + gain if most else gain
    which[row, column] = pairs
    # Cells without a pair gain nothing; an assignment that had to use them has matched nothing there.
    kept = which[linear_sum_assignment(table, maximize=True)]
    return kept[kept >= 0]
