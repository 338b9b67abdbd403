"""Where a run keeps things is the fastest way that fits, and what ranks send is what the layers say."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from relaxprune import RelaxPruneError
from relaxprune.costs import PlannedLayer, RunBytes, choose_residency
from relaxprune.costs.network import network_bytes
from relaxprune.costs.residency import need, needs
from relaxprune.residency import Residency

SIZES = RunBytes(
    model=1000,
    travelling=250,
    records=40,
    block_records=4,
    packed_records=5,
    states=300,
    batch_states=10,
    working=70,
)
BIG = 10**6


def places(device, host, sizes=SIZES):
    found = choose_residency(sizes, device, host)
    return found.weights, found.states


def test_nothing_travels_that_need_not():
    assert choose_residency(SIZES, BIG, BIG) == Residency("device", "device")
    assert places(1000 + 70 + 300, 40) == ("device", "device")
    assert places(None, None) == ("device", "device")


def test_weights_give_way_before_states_and_the_host_before_the_disk():
    enough = 250 + 70 + 300
    assert places(1000 + 70 + 300 - 1, BIG) == ("cpu", "device")
    assert places(enough, BIG) == ("cpu", "device")
    assert places(enough, 999) == ("disk", "device")
    assert places(enough - 1, BIG) == ("cpu", "cpu")
    assert places(enough - 1, 999) == ("disk", "cpu")
    assert places(enough - 1, 299) == ("disk", "disk")


def test_in_one_memory_nothing_is_kept_beside_the_device():
    assert all("cpu" not in (need.residency.weights, need.residency.states) for need in needs(SIZES, one_memory=True))
    assert places(1000 + 70 + 300 + 40, None) == ("device", "device")
    assert places(1000 + 70 + 300 + 39, None) == ("disk", "device")
    assert places(250 + 70 + 10 + 4, None) == ("disk", "disk")


def test_what_never_fits_is_refused_with_the_least():
    with pytest.raises(
        RelaxPruneError,
        match="memory must hold a block and the next one and what the run takes beside, 334 bytes, got 333: give more",
    ):
        choose_residency(SIZES, 250 + 70 + 10 + 3, None)


def test_weights_that_cannot_travel_stay_on_the_device():
    for sizes, whole in ((SIZES, True), (replace(SIZES, refining=500), False)):
        assert {need.residency.weights for need in needs(sizes, whole=whole)} == {"device"}
    with pytest.raises(RelaxPruneError, match=r"memory must hold the whole model and what the run takes beside, 1,"):
        choose_residency(replace(SIZES, refining=500), 1000, BIG)


@pytest.mark.parametrize("refining", [0, 500])
def test_more_memory_is_never_slower(refining):
    sizes = replace(SIZES, refining=refining)
    order = [(need.residency.weights, need.residency.states) for need in needs(sizes)]
    least = min(need.device_bytes for need in needs(sizes))
    for one, other in itertools.pairwise(range(least, 2200, 50)):
        assert order.index(places(other, BIG, sizes)) <= order.index(places(one, BIG, sizes))


def test_the_whole_model_on_the_device_is_what_a_plan_estimates():
    for sizes in (SIZES, replace(SIZES, refining=500, predictions=150), replace(SIZES, refining=50, predictions=9)):
        assert needs(sizes, one_memory=True)[0].device_bytes == sizes.model + sizes.added


@pytest.mark.parametrize(("world", "states"), [(1, 300), (2, 150), (7, 50), (30, 10), (64, 10)])
def test_a_rank_holds_its_batches_and_the_records_of_all_blocks(world, states):
    rank = SIZES.of_rank(world)
    assert rank == replace(SIZES, states=states, block_records=4 if world == 1 else 5 + 4)
    assert SIZES.of_rank(world, every_batch=True).states == 300
    assert replace(SIZES, batch_states=0).of_rank(world).states == 300
    assert need(rank, Residency("disk", "disk")).host_bytes == rank.block_records


def test_bytes_between_ranks():
    layers = [PlannedLayer("one", "Linear", 10, 16, 80, 0), PlannedLayer("two", "Linear", 3, 3, 4, 1)]
    assert network_bytes(layers, [16, 3], 1) == {"statistics": 0, "solve": 0}
    sent = network_bytes(layers, [16, 3], 4)
    assert sent == {"statistics": 2 * 3 * 8 * (16**2 + 3**2), "solve": 3 * (20 + 2)}
    moved = network_bytes(layers, [16, 3], 4, sums=3, moved_item=2)
    assert moved == {"statistics": 3 * sent["statistics"], "solve": sent["solve"] + 3 * 2 * (160 + 9)}
