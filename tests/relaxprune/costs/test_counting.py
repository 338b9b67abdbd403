"""Work is counted as it is done: on tensors with values and without, by dtype, and nothing for a view."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from relaxprune import RelaxPruneError
from relaxprune.costs import Rates, Work
from relaxprune.costs.counting import counted
from relaxprune.costs.gram_work import adding_work


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_count_by_dtype(device):
    one, other = torch.ones(3, 5, device=device), torch.ones(5, 7, device=device)
    with counted() as counter:
        one @ other
        one.double() @ other.double()
        one.bfloat16() @ other.bfloat16()
    product = 2 * 3 * 5 * 7
    casts = (3 * 5 + 5 * 7) * ((4 + 8) + (4 + 2))
    assert counter.work == Work(flops=product + 2 * product, half_flops=product, bytes=casts, launches=7)


def test_passes_count_what_they_read_and_write_and_views_nothing():
    table, entries = torch.ones(100, 8), torch.ones(6, 8)
    with counted() as counter:
        entries.T.reshape(8, 6)[:4].unsqueeze(0)
        assert counter.work == Work()
        entries.add_(entries)
        assert counter.work == Work(bytes=3 * 4 * 48, launches=1)
        torch.nn.functional.embedding(torch.tensor([3, 4]), table)
    assert counter.work.bytes < 3 * 4 * 48 + 4 * 800  # the table is not read as a whole
    with counted() as counter:
        entries[:1].expand(1000, 8) + 1.0
    assert counter.work.bytes == 4 * 8 + 4 * 8000


def test_work_on_a_gram_is_told_apart():
    gram, rows = torch.eye(8), torch.ones(3, 8)
    with counted(width=8) as counter:
        torch.linalg.cholesky(gram)
        gram + gram
        rows @ gram
        rows * rows
    assert counter.square.flops == pytest.approx(8**3 / 3)
    assert counter.square.bytes == 3 * 4 * 64
    assert counter.work.flops - counter.square.flops == 2 * 3 * 8 * 8


def test_tensors_without_values_are_told_yes():
    values = torch.empty(4, device="meta")
    with counted():
        assert bool(torch.isfinite(values).all()) and float(values.max()) == 1.0 and int(values.sum()) == 1


def test_sums_of_a_gram_are_those_of_the_accumulator():
    with FlopCounterMode(display=False):
        found = adding_work(32, 2500, torch.float32)  # two chunks and a rest
    assert found.flops == 2 * 2500 * 32**2 and found.half_flops == 0
    passes = 3 * (4 + 8 + 8) * 32**2  # a product, added to a float64 sum, for every chunk
    assert passes < found.bytes < passes + 10 * 4 * 2500 * 32
    assert adding_work(32, 2500, torch.bfloat16).flops == found.flops


def test_seconds_add_up_and_rates_are_checked():
    rates = Rates(flops=1e9, half_flops=4e9, bandwidth=1e6, launch_seconds=1e-3)
    assert rates.seconds(Work(flops=2e9, half_flops=4e9, bytes=3e6, launches=500)) == pytest.approx(2 + 1 + 3 + 0.5)
    assert (2.0 * Work(flops=1) + Work(bytes=3)).to_dict() == {"flops": 2, "half_flops": 0, "bytes": 3, "launches": 0}
    with pytest.raises(RelaxPruneError, match="bandwidth must be a positive number, got 0"):
        Rates(flops=1.0, half_flops=1.0, bandwidth=0)
