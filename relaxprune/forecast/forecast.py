"""What a run is predicted to take, as numbers, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relaxprune.costs.machine import Machine
from relaxprune.costs.memory import RunBytes
from relaxprune.costs.residency import Need
from relaxprune.costs.work import Rates, Work
from relaxprune.pruning.plan import Plan
from relaxprune.support.tables import table

SCHEMA_VERSION = 1
_GIB = 2**30


@dataclass(frozen=True, eq=False, kw_only=True)
class Forecast:
    """The predicted cost of a run.

    Attributes:
        plan: what is pruned.
        machine: what it runs on.
        rates: of each device.
        measured: whether these are of this machine.
        work: stage -> what all devices do together.
        products: stage -> its operations, in products of all weights with their Grams.
        seconds: stage -> seconds.
        sent: stage -> bytes that all devices together receive from each other.
        memory: bytes of the run's parts on the device that holds most, with what this solver holds.
        residencies: what each needs, from the fastest to the slowest.
        chosen: the one that is taken, None if none fits.
        process_bytes: of a process before it holds any of this: the interpreter and its libraries.
        notes: what is not in these numbers, and why weights stay on the device if they cannot travel.
    """

    plan: Plan
    machine: Machine
    rates: Rates
    measured: bool
    work: Mapping[str, Work]
    products: Mapping[str, float]
    seconds: Mapping[str, float]
    sent: Mapping[str, int]
    memory: RunBytes
    residencies: list[Need]
    chosen: Need | None
    process_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def disk_bytes(self) -> dict[str, int]:
        """What is read and written: the model both times, and a bit for every entry of a mask."""
        masks = sum(-(-layer.rows * layer.cols // 8) for layer in self.plan.layers)
        return {"read": self.plan.memory.model, "written": self.plan.memory.model + masks}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        plan = self.plan
        return {
            "schema_version": SCHEMA_VERSION,
            "request": {
                **plan.polytope,
                "solver": plan.request.solver.name,
                "weights": plan.request.options.weights,
            },
            "counts": {
                "layers": len(plan.layers),
                "blocks": len(plan.blocks.modules),
                "entries": sum(layer.rows * layer.cols for layer in plan.layers),
                "kept": sum(layer.keep for layer in plan.layers),
                "parameters": plan.matrices.parameters,
            },
            "machine": self.machine.to_dict(),
            "rates": {**self.rates.to_dict(), "measured": self.measured},
            "stages": {
                stage: {
                    **done.to_dict(),
                    "products": self.products[stage],
                    "seconds": self.seconds[stage],
                    "network_bytes": self.sent.get(stage, 0),
                }
                for stage, done in self.work.items()
            },
            "seconds": self.total_seconds,
            "memory": self.memory.to_dict(),
            "residencies": [
                {**need.to_dict(), "fits": need.fits(self.machine.device_memory, self.machine.host_memory)}
                for need in self.residencies
            ],
            "residency": None if self.chosen is None else self.chosen.to_dict(),
            "process_bytes": self.process_bytes,
            "disk_bytes": self.disk_bytes,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """Return what is pruned, a table of stages, a table of residencies, and the notes."""
        return "\n".join(
            [*self._counts(), "", *self._stages(), "", *self._memory(), *map("note: {}".format, self.notes)]
        )

    def _counts(self) -> list[str]:
        """Return lines on what is pruned, and on what."""
        plan, rates = self.plan, self.rates
        shapes: dict[tuple[int, int], int] = {}
        for layer in plan.layers:
            shapes[layer.rows, layer.cols] = shapes.get((layer.rows, layer.cols), 0) + 1
        entries = sum(layer.rows * layer.cols for layer in plan.layers)
        listed = ", ".join(f"{count} of {rows} x {cols}" for (rows, cols), count in shapes.items())
        devices = "1 device" if self.machine.devices == 1 else f"{self.machine.devices} devices"
        each = "measured here" if self.measured else "each as given"
        return [
            f"{len(plan.layers)} layers in {len(plan.blocks.modules)} blocks, {entries:,} of "
            f"{plan.matrices.parameters:,} weights; rows x cols: {listed}",
            f"{devices}, {each}: {_short(rates.flops / 1e12)} TFLOP/s in float32, {_short(rates.half_flops / 1e12)} in "
            f"16 bits, {_short(rates.bandwidth / 1e9)} GB/s",
        ]

    def _stages(self) -> list[str]:
        """Return the table of stages."""
        lines: list[tuple[object, ...]] = [("stage", "TFLOP", "products", "GB moved", "GB sent", "seconds")]
        for stage, done in self.work.items():
            flops, sent = (done.flops + done.half_flops) / 1e12, self.sent.get(stage, 0) / 1e9
            cells = (flops, self.products[stage], done.bytes / 1e9, sent, self.seconds[stage])
            lines.append((stage, *map(_short, cells)))
        lines.append(("all", "", "", "", _short(sum(self.sent.values()) / 1e9), _short(self.total_seconds)))
        return table(lines)

    def _memory(self) -> list[str]:
        """Return the table of residencies, and the disk's share."""
        lines: list[tuple[object, ...]] = [("weights", "hidden states", "GiB of device", "GiB of host", "fits")]
        for need in self.residencies:
            fits = "chosen" if need is self.chosen else "yes" if self._fits(need) else "no"
            kept = need.residency
            sizes = (need.device_bytes / _GIB, need.host_bytes / _GIB)
            lines.append((kept.weights, kept.states, *map(_short, sizes), fits))
        read, written = (_short(size / 1e9) for size in self.disk_bytes.values())
        itself = _short(self.process_bytes / _GIB)
        return [*table(lines), f"on disk: {read} GB read, {written} written; the process itself: {itself} GiB"]

    def _fits(self, need: Need) -> bool:
        """Return whether a residency fits."""
        return need.fits(self.machine.device_memory, self.machine.host_memory)


def _short(value: float) -> str:
    """Return a number with three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
