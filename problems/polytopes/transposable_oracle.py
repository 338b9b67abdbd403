"""Linear minimisation over tiles that keep a number of entries in every row and column: two exact oracles.

Keeping ``keep`` in every row and column of a group x group tile at least cost is a minimum-cost flow from rows to
columns with unit capacities. ``flow_mask`` hands one tile to networkx; ``cheapest`` solves thousands of tiles at once
by successive shortest paths (Ahuja, Magnanti and Orlin, Network Flows, section 9.7), and ``prices`` returns optimal
dual values. TSENOR (arXiv 2505.23949) solves the same tiles by entropy, rounding and local search, approximately.

Tiles are tensors (group, group, tiles): row, column, tile. The last dimension is the long one, so that every minimum
over a row or column of all tiles is a few passes over memory.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from .nm import NM

_MANTISSA = 52  # sums below 2^52 are exact in float64
_SWEEPS = 3  # of prices before the exact part: fewer entries are then left to move
_CHUNK = 2**18  # entries of tiles solved at once: what they need fits a processor's cache


def to_tiles(matrix: Tensor, group: int) -> Tensor:
    """Return the tiles of a (rows, cols) matrix as (group, group, tiles), top to bottom, then left to right."""
    rows, cols = matrix.shape
    return matrix.reshape(rows // group, group, cols // group, group).permute(1, 3, 0, 2).reshape(group, group, -1)


def from_tiles(tiles: Tensor, rows: int, cols: int) -> Tensor:
    """Undo ``to_tiles``: (rows, cols)."""
    group = tiles.shape[0]
    return tiles.view(group, group, rows // group, -1).permute(2, 0, 3, 1).reshape(rows, cols)


def flow_mask(costs: Tensor, keep: int) -> Tensor:
    """Return a cheapest mask of ONE tile by networkx's network simplex: exact, slow, the reference.

    Costs are scaled by a power of two to integers, so nothing is rounded; infinite costs become larger than any sum of
    the finite ones.

    Args:
        costs: (group, group), any float dtype, finite or ±inf.
        keep: entries kept in every row and column.

    Returns:
        (group, group) bool.
    """
    import networkx as nx

    group = costs.shape[0]
    values = costs.to(torch.float64).tolist()
    finite = [[Fraction(value) if math.isfinite(value) else Fraction(0) for value in line] for line in values]
    scale = max(value.denominator for line in finite for value in line)
    huge = 1 + 2 * int(sum(abs(value) for line in finite for value in line) * scale)
    graph = nx.DiGraph()
    for i in range(group):
        graph.add_node(("row", i), demand=-keep)
        graph.add_node(("column", i), demand=keep)
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            cost = int(finite[i][j] * scale) if math.isfinite(value) else (huge if value > 0 else -huge)
            graph.add_edge(("row", i), ("column", j), capacity=1, weight=cost)
    _, flow = nx.network_simplex(graph)
    kept = [[flow["row", i]["column", j] > 0 for j in range(group)] for i in range(group)]
    return torch.tensor(kept, device=costs.device)


def cheapest(costs: Tensor, keep: int) -> Tensor:
    """Return a cheapest mask of every tile, exact for costs rounded to whole multiples of 2^-37 of the tile's largest.

    Args:
        costs: (group, group, tiles), any float dtype, finite or ±inf. Infinite costs are obeyed if possible.
        keep: entries kept in every row and column.

    Returns:
        (group, group, tiles) bool; ``keep`` in every row and column whatever the costs.
    """
    group, _, tiles = costs.shape
    if keep in (0, group):
        return torch.full(costs.shape, keep > 0, dtype=torch.bool, device=costs.device)
    mask = torch.empty(costs.shape, dtype=torch.bool, device=costs.device)
    size = max(1, _CHUNK // (group * group))
    for start in range(0, tiles, size):
        whole = _whole(costs[..., start : start + size].to(torch.float64))
        mask[..., start : start + size] = _balance(whole, _row_optimal(whole, keep), keep)
    return mask


def prices(costs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column prices (u, v) that prove ``mask`` cheapest.

    Kept entries cost at most u + v, pruned ones at least that. They are shortest distances in the residual graph, by
    Bellman-Ford. For a mask that is only nearly cheapest the search stops early and the prices are nearly right: any
    prices give a valid dual bound.

    Args:
        costs: (group, group, tiles) float64; −∞ where an entry is fixed to kept, +∞ where it is fixed to pruned.
        mask: (group, group, tiles) bool, feasible.

    Returns:
        Two (group, tiles) tensors.
    """
    remove, add = _arcs(costs, mask, hop=0.0)
    _, columns = _distances(remove, add, costs.new_zeros(costs.shape[1:]))
    # Any row price between the reduced costs of kept and of pruned entries will do; a row may lack either.
    upper, lower = (add - columns).amin(dim=1), -(remove + columns).amin(dim=1)
    rows = torch.where(lower.isfinite(), lower, upper)
    return rows.masked_fill(~rows.isfinite(), 0.0), columns


def _whole(costs: Tensor) -> Tensor:
    """Scale each tile by a power of two and round, so that all sums of path lengths are exact.

    Infinities become finite: a cost of ±2·group times the largest finite one outweighs any alternating cycle, so it is
    paid only if it must be.
    """
    group = costs.shape[0]
    finite = costs.isfinite()
    top = costs.abs().masked_fill_(~finite, 0.0).amax(dim=(0, 1))  # (tiles,)
    forced = ~finite.flatten(0, 1).all(dim=0)
    factor = math.ceil(math.log2(2 * group))  # bits for the arcs of a path, for counting them, and for infinities
    bits = _MANTISSA - 2 * factor - factor * forced.int()
    whole = torch.ldexp(costs, (bits - torch.frexp(top).exponent).clamp(-1000, 1000)).round_()
    if bool(forced.any()):
        limit = 2.0 ** (_MANTISSA - 3 * factor) * 2 * group
        # A NaN cost means that the caller broke down: any mask will do, but there has to be one.
        whole = torch.where(finite, whole, whole.nan_to_num(nan=0.0).clamp(-limit, limit))
    return whole.mul_(2 * group)


def _row_optimal(costs: Tensor, keep: int) -> Tensor:
    """Return a mask with ``keep`` in every row that is cheapest for its own column counts, which are nearly ``keep``.

    Row and column prices take turns at the middle between the last entry kept and the first one pruned; then every row
    keeps its cheapest entries at the column prices. Whole prices leave every sum exact.
    """
    group = costs.shape[0]
    rough = costs.to(torch.float32)
    column = rough.mean(dim=0)
    for _ in range(_SWEEPS):
        row = _middle([rough[:, j] - column[j] for j in range(group)], keep)
        column = _middle([rough[i] - row[i] for i in range(group)], keep)
    lines = (costs - column.round().to(costs.dtype)).permute(2, 0, 1).reshape(-1, group)
    return NM(keep, group).round(-lines).view(-1, group, group).permute(1, 2, 0).contiguous()


def _middle(lanes: list[Tensor], keep: int) -> Tensor:
    """Return the middle between the ``keep``-th smallest of ``lanes`` and the next, elementwise.

    The lanes pass through a sorting network, odd-even merge sort (Batcher, AFIPS 1968).
    """
    count, span = len(lanes), 1
    while span < count:
        step = span
        while step:
            for start in range(step % span, count - step, 2 * step):
                for low in range(start, min(start + step, count - step)):
                    if low // (2 * span) == (low + step) // (2 * span):
                        one, other = lanes[low], lanes[low + step]
                        lanes[low], lanes[low + step] = torch.minimum(one, other), torch.maximum(one, other)
            step //= 2
        span *= 2
    return (lanes[keep - 1] + lanes[keep]) / 2


def _balance(costs: Tensor, mask: Tensor, keep: int) -> Tensor:
    """Move kept entries from columns with too many to columns with too few along cheapest paths.

    ``mask`` is cheapest for its own column counts, and every move keeps that true; so the end is cheapest.
    """
    done = mask.clone()
    tiles = torch.arange(mask.shape[2], device=mask.device)
    surplus = mask.sum(dim=0, dtype=torch.int32) - keep  # (group, tiles)
    while True:
        live = (surplus > 0).any(dim=0)
        if not bool(live.all()):
            done[..., tiles[~live]] = mask[..., ~live]
            if not bool(live.any()):
                return done
            tiles, costs, mask, surplus = tiles[live], costs[..., live], mask[..., live], surplus[:, live]
        _augment(costs, mask, surplus)


def _augment(costs: Tensor, mask: Tensor, surplus: Tensor) -> None:
    """Move along one shortest path from each column with a surplus that reaches a column with a lack, in place.

    Shortest paths form one tree per source; paths of different trees share no arc, and all arcs of the trees are tight
    for the distances as prices, so moving along all of them at once keeps the mask cheapest.
    """
    remove, add = _arcs(costs, mask, hop=1.0)
    source = surplus > 0
    rows, columns = _distances(remove, add, torch.where(source, 0.0, torch.inf).to(costs.dtype))
    before_row = _first(remove + columns == rows.unsqueeze(1), dim=1)  # (group, tiles): a column
    before_column = _first(add + rows.unsqueeze(1) == columns, dim=0)  # (group, tiles): a row
    own = torch.arange(len(surplus), device=mask.device).unsqueeze(1).expand_as(before_row)
    is_root = source & (columns == 0)
    root = torch.where(is_root, own, before_row.gather(0, before_column))
    for _ in range(max(1, math.ceil(math.log2(len(surplus))))):
        root = root.gather(0, root)
    # The nearest column with a lack in each tree: (group, tiles), at the tree's root.
    length = torch.where(surplus < 0, columns, torch.inf)
    nearest = torch.full_like(length, torch.inf).scatter_reduce_(0, root, length, "amin")
    chosen = (length == nearest.gather(0, root)) & length.isfinite()
    end = torch.full_like(root, len(surplus)).scatter_reduce_(0, root, torch.where(chosen, own, len(surplus)), "amin")
    begin, tile = (is_root & (end < len(surplus))).nonzero(as_tuple=True)
    column = end[begin, tile]
    surplus[begin, tile] -= 1
    surplus[column, tile] += 1
    while len(tile):
        row = before_column[column, tile]
        mask[row, column, tile] = True
        column = before_row[row, tile]
        mask[row, column, tile] = False
        onward = ~is_root[column, tile]
        column, tile = column[onward], tile[onward]


def _arcs(costs: Tensor, mask: Tensor, hop: float) -> tuple[Tensor, Tensor]:
    """Return the lengths of the arcs column → row (a kept entry leaves) and row → column (one comes): (g, g, tiles).

    Each arc counts ``hop`` more, so that of two paths of equal cost the one with fewer arcs is shorter, and shortest
    paths contain no cycle of cost 0.
    """
    return torch.where(mask, hop - costs, torch.inf), torch.where(mask, torch.inf, costs + hop)


def _first(hit: Tensor, dim: int) -> Tensor:
    """Return the first index along ``dim`` (0 or 1) where ``hit`` (g, g, tiles) is set, or the last one: int64."""
    group = hit.shape[0]
    index = torch.arange(group, dtype=torch.int16, device=hit.device)
    index = index.view(-1, 1, 1) if dim == 0 else index.view(1, -1, 1)
    return torch.where(hit, index, group - 1).amin(dim=dim).long()


def _distances(remove: Tensor, add: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shortest distances of rows and columns (group, tiles) from columns at ``columns``: Bellman-Ford."""
    for _ in range(len(columns)):
        rows = (remove + columns).amin(dim=1)
        nearer = torch.minimum(columns, (add + rows.unsqueeze(1)).amin(dim=0))
        if torch.equal(nearer, columns):
            break
        columns = nearer
    return rows, columns
