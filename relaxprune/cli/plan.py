"""``relaxprune plan``: what pruning a model would take, from its configuration alone."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import typer

from .option_groups import Seed, with_groups
from .prune.words import CostWords, PruneWords, RunGroup

if TYPE_CHECKING:
    from relaxprune.costs import Machine, Rates
    from relaxprune.forecast import TextShape

    from .prune.job import PruneJob


@dataclass(frozen=True)
class MachineGroup:
    """What the run would be carried out on."""

    devices: Annotated[int, typer.Option(min=1, help="Devices, each with a process of its own.")] = 1
    device_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of each device, such as 24GiB; else what is free here.")
    ] = None
    host_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="With --device-memory: the host's, for each device; else devices use it."),
    ] = None
    flops: Annotated[
        float | None,
        typer.Option(help="Operations a second of a device's float32 products, such as 5e13; else measured here."),
    ] = None
    half_flops: Annotated[
        float | None, typer.Option(help="With --flops: of its 16-bit products; the same if not given.")
    ] = None
    bandwidth: Annotated[
        float | None, typer.Option(help="With --flops: bytes a second of a device's memory, such as 4e12.")
    ] = None
    network: Annotated[
        float | None, typer.Option(help="Bytes a second that a device receives from others; else not counted.")
    ] = None

    @property
    def machine(self) -> Machine:
        """The machine, checked.

        Raises:
            RelaxPruneError: naming the option.
        """
        from relaxprune.costs import Machine
        from relaxprune.problems.errors import RelaxPruneError
        from relaxprune.support.memory import free_bytes
        from relaxprune.support.sizes import parse_bytes

        if self.host_memory is not None and self.device_memory is None:
            raise RelaxPruneError("--host-memory is given, but there is no --device-memory")
        memory = {
            name: None if text is None else parse_bytes(f"--{name.replace('_', '-')}", text)
            for name, text in (("device_memory", self.device_memory), ("host_memory", self.host_memory))
        }
        if memory["device_memory"] is None:
            memory["device_memory"] = free_bytes()
        return Machine(devices=self.devices, rates=self._rates, network=self.network, **memory)

    @property
    def _rates(self) -> Rates | None:
        """The rates that are given, None to measure them."""
        from relaxprune.costs import Rates
        from relaxprune.problems.errors import RelaxPruneError

        if (self.flops is None) != (self.bandwidth is None) or (self.flops is None and self.half_flops is not None):
            raise RelaxPruneError("--flops and --bandwidth must be given together, --half-flops only with them")
        if self.flops is None or self.bandwidth is None:
            return None
        return Rates(flops=self.flops, half_flops=self.half_flops or self.flops, bandwidth=self.bandwidth)


@dataclass(frozen=True)
class PlanWords(CostWords):
    """All options of the command: those of ``relaxprune prune`` that matter for cost, and the machine."""

    machine: MachineGroup = field(default_factory=MachineGroup)
    seed: Seed = 0
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that torch uses.")] = None
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False

    @property
    def run(self) -> PruneWords:
        """The words of the run that is planned."""
        shared = {name: getattr(self, name) for name in CostWords.__dataclass_fields__}
        return PruneWords(**shared, run=RunGroup(seed=self.seed, threads=self.threads))


@with_groups
def plan_run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, folder or its config.json, .gguf file, or smollm2-135m.")
    ],
    words: PlanWords,
) -> None:
    """Say what pruning a model would take, from its config.json alone: counts, memory, seconds."""
    import torch

    from relaxprune.forecast import forecast_run
    from relaxprune.models.config_only import model_from_config
    from relaxprune.pruning import make_plan

    from .endings import door
    from .prune.job import resolve
    from .prune.rotated import ROTATION_NOTE

    machine = words.machine.machine
    job = resolve(model, words.run)
    if words.threads is not None:
        torch.set_num_threads(words.threads)
    with door():
        made = model_from_config(model, job.load)
    text = _text(job)
    plan = make_plan(made.model, job.request, text.tokens, values=False)
    found = forecast_run(plan, text, machine, whole=made.whole)
    if job.rotation is not None:
        found = replace(found, notes=(*found.notes, ROTATION_NOTE))
    if words.json:
        print(json_format.dumps({"model": model, **found.to_dict()}))
    else:
        print(found)


def _text(job: PruneJob) -> TextShape:
    """Return the shape of a job's calibration text."""
    from relaxprune.forecast import TextShape
    from relaxprune.text.mixture import SELF

    sampled = sum(part.windows or 0 for part in job.sources if part.source == SELF)
    shape = {"windows": job.count, "length": job.calibration.length, "at_once": job.windows_at_once}
    return TextShape(**shape, sampled=sampled, kinds=len(job.sources), refining=job.refine_samples)
