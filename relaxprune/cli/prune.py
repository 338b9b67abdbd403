"""``relaxprune prune``: a model in, a folder out."""

from __future__ import annotations

from typing import Annotated

import typer

from .endings import interruptible
from .option_groups import (
    AllocationGroup,
    CalibrationGroup,
    CertifyGroup,
    LayerGroup,
    ModelGroup,
    PatternGroup,
    RunGroup,
    SolverGroup,
    StatisticsGroup,
    with_groups,
)


@with_groups
def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, or smollm2-135m.")],
    how_much: PatternGroup,
    how: SolverGroup,
    calibration: CalibrationGroup,
    layers: LayerGroup,
    loading: ModelGroup,
    run: RunGroup,
    certify: CertifyGroup,
    statistics: StatisticsGroup,
    sharing: AllocationGroup,
) -> int:
    """Prune a model block by block and write a folder that transformers loads."""
    from .prune_run import PruneRequest, left_behind, run_prune

    with interruptible(lambda: left_behind(run.out)):
        asked = PruneRequest(model, how_much, how, calibration, layers, loading, run, certify, statistics, sharing)
        return run_prune(asked)
