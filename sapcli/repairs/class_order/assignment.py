"""The best one-to-one assignment of rows to columns (linear sum assignment), exact."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def best_assignment(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The column of each row, no column twice, with the largest sum of values.

    Shortest augmenting paths with potentials (Jonker and Volgenant, Computing 38, 1987), begun with each row at its
    best column: what is clear already, as nearly every row of a confusion matrix, costs one step.
    `O(rows^2 columns)` at worst.

    Args:
        values: `[rows, columns]`, finite, with no more rows than columns.
    """
    costs = -values
    rows, columns = costs.shape
    row_potential = costs.min(axis=1)
    column_potential = np.zeros(columns)
    row_of = np.full(columns, -1)
    waiting = []
    for row, column in enumerate(costs.argmin(axis=1)):
        if row_of[column] < 0:
            row_of[column] = row
        else:
            waiting.append(row)
    for start in waiting:
        # Dijkstra's algorithm over reduced costs, from the row to the nearest column that is free.
        distance = np.full(columns, np.inf)
        previous = np.full(columns, -1)
        visited = np.zeros(columns, dtype=bool)
        row, reached, column_before = start, 0.0, -1
        while True:
            through = reached + costs[row] - row_potential[row] - column_potential
            shorter = ~visited & (through < distance)
            distance[shorter] = through[shorter]
            previous[shorter] = column_before
            column = int(np.where(visited, np.inf, distance).argmin())
            reached = float(distance[column])
            visited[column] = True
            if row_of[column] < 0:
                break
            row, column_before = int(row_of[column]), column
        settled = visited & (np.arange(columns) != column)
        row_potential[start] += reached
        row_potential[row_of[settled]] += reached - distance[settled]
        column_potential[settled] -= reached - distance[settled]
        while previous[column] >= 0:
            row_of[column] = row_of[previous[column]]
            column = int(previous[column])
        row_of[column] = start
    assigned = np.full(rows, -1, dtype=np.int64)
    assigned[row_of[row_of >= 0]] = np.flatnonzero(row_of >= 0)
    return assigned
