"""Reordering a block's channels for an N:M pattern before it is pruned, so that its masks keep more.

What is reordered must be made inside the block by something that can be reordered as well: hidden channels of an MLP,
value channels within the heads of attention. The residual stream, which the inputs of most layers come from, belongs to
the whole model and keeps its order. Every reordering is proven on calibration text: the block must put out what it did
before, up to rounding, or the order is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from relaxprune.inputs.layer_grams import GramMaker
from relaxprune.inputs.propagation import Propagation, probe
from relaxprune.inputs.stages import Stage
from relaxprune.models.blocks import BlockList
from relaxprune.models.layers import PrunableLayer, find_layers
from relaxprune.options.prune_options import PERMUTE_BY, PruneOptions
from relaxprune.options.target import Target
from relaxprune.problems.errors import RelaxPruneError

from .channel_paths import NOT_REACHED, ChannelPath, find_paths, rounding_tolerance
from .order_searchers import SEARCHERS, OrderSearcher
from .permutation import UNEQUAL, Permutation
from .reorder import permute

OUTSIDE = "it lies outside of the blocks, whose channels are not reordered"
_LEFT_ALONE = {"Conv2d": "the inputs of a Conv2d are not reordered", "Expert": "fused experts are not reordered"}


def check_permute(options: PruneOptions, target: Target) -> None:
    """Raise RelaxPruneError if channels are to be reordered for masks that no order improves."""
    if options.permute and not target.n_of_m:
        got = ", ".join(f"{name} {value!r}" for name, value in target.to_dict().items())
        raise RelaxPruneError(
            f"permute reorders channels for an N:M pattern, got {got}: give a pattern, or leave it out"
        )


@dataclass(eq=False)
class ChannelPermuter:
    """Reorders the channels of one block after another.

    Attributes:
        model: the model that is being pruned.
        blocks: its blocks.
        search: finds the order of a layer.
    """

    model: nn.Module
    blocks: BlockList
    search: OrderSearcher
    _known: dict[tuple[object, ...], list[ChannelPath | str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, options: PruneOptions, target: Target, model: nn.Module, blocks: BlockList, grams: GramMaker
    ) -> ChannelPermuter | None:
        """Return the permuter of a run, None if the channels keep their order."""
        pattern = target.n_of_m
        if not options.permute or pattern is None:
            return None
        return cls(model, blocks, SEARCHERS[options.permute_by or PERMUTE_BY[0]].of(pattern, options, grams))

    def permute_stage(self, stage: Stage, propagation: Propagation) -> list[Permutation]:
        """Reorder what can be reordered in a block, before its layers are pruned.

        Args:
            stage: the block, with the layers that will be pruned.
            propagation: puts batches through it.

        Returns:
            For each layer that will be pruned its order, or the reason why it keeps the one it had.
        """
        if stage.index >= len(self.blocks.modules):
            return [Permutation(layer.name, stage.index, OUTSIDE) for layer in stage.layers]
        run = probe(propagation, stage)
        if run is None:
            return [Permutation(layer.name, stage.index, NOT_REACHED) for layer in stage.layers]
        layers = [layer for layer in self._layers() if self.blocks.index_of(layer) == stage.index]
        paths = self._paths(stage, layers, run)
        usable = [layer for layer in stage.layers if isinstance(paths.get(layer.name), ChannelPath)]
        statistics = self.search.observe(Stage(stage.index, tuple(usable)), propagation) if usable else {}
        found = []
        for layer in stage.layers:
            path = paths.get(layer.name) or _LEFT_ALONE[layer.kind]
            if isinstance(path, str):
                found.append(Permutation(layer.name, stage.index, path))
            elif layer.name not in statistics:
                found.append(Permutation(layer.name, stage.index, NOT_REACHED))
            else:
                wanted = self.search.find(stage.index, layer, path, statistics[layer.name])
                producers = tuple(layers[index].name for index in path.producers)
                found.append(_proven(replace(wanted, producers=producers), layers, run) if wanted.applied else wanted)
        return found

    def _layers(self) -> list[PrunableLayer]:
        """Return the model's layers whose channels can be reordered, pruned or not."""
        return [layer for layer in find_layers(self.model)[0] if layer.kind not in _LEFT_ALONE]

    def _paths(
        self, stage: Stage, layers: Sequence[PrunableLayer], run: Callable[[], object]
    ) -> dict[str, ChannelPath | str]:
        """Return the path of every layer of a block; blocks of one structure are probed once."""
        prefix = len(self.blocks.names[stage.index])
        module = self.blocks.modules[stage.index]
        look = (type(module), *((layer.name[prefix:], layer.kind, layer.shape) for layer in layers))
        if look not in self._known:
            self._known[look] = find_paths(layers, run, self.search.pattern.group)
        return {layer.name: path for layer, path in zip(layers, self._known[look], strict=True)}


def _proven(wanted: Permutation, layers: Sequence[PrunableLayer], run: Callable[[], list[Tensor]]) -> Permutation:
    """Reorder the channels if that leaves what the block puts out as it is; else leave them, and say so."""
    by_name = {layer.name: layer for layer in layers}
    consumer = by_name[wanted.layer].module
    before = _watched(consumer, run)
    if before is None:
        return Permutation(wanted.layer, wanted.block, NOT_REACHED)
    permute(by_name, wanted)
    after = _watched(consumer, run)
    if after is not None and _same_but_moved(before, after, wanted.columns):
        return wanted
    permute(by_name, wanted, undo=True)
    left = replace(wanted, reason=UNEQUAL, producers=(), columns=(), rows=())
    return replace(left, kept_after=wanted.kept_before, error_after=wanted.error_before)


# What a layer is called with first, (tokens, cols); and what it then puts out, and all that the block puts out.
Seen = tuple[Tensor, list[Tensor]]


def _same_but_moved(before: Seen, after: Seen, columns: tuple[int, ...]) -> bool:
    """Return whether nothing has changed, up to rounding, but the places of a layer's inputs."""
    moved = before[0][:, torch.tensor(columns, device=before[0].device)]
    same = len(before[1]) == len(after[1]) and all(map(_same, after[1], before[1]))
    return same and _same_columns(after[0], moved)


def _watched(module: nn.Module, run: Callable[[], list[Tensor]]) -> Seen | None:
    """Run a block and record what goes through one of its layers; None if the layer is not called."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if not seen:
            seen.append((args[0].detach().reshape(-1, args[0].shape[-1]).clone(), output.detach().clone()))

    handle = module.register_forward_hook(note)
    try:
        outputs = run()
    finally:
        handle.remove()
    return (seen[0][0], [seen[0][1], *outputs]) if seen else None


def _same_columns(new: Tensor, old: Tensor) -> bool:
    """Return whether two inputs, (tokens, cols), are equal up to rounding, column by column."""
    if new.shape != old.shape:
        return False
    size, distance = old.double().norm(dim=0), (new.double() - old.double()).norm(dim=0)
    return bool((distance <= rounding_tolerance(old.dtype) * (size + 1e-3 * size.mean())).all())


def _same(new: Tensor, old: Tensor) -> bool:
    """Return whether two tensors are equal up to rounding; whole numbers must be equal."""
    if new.shape != old.shape or not old.is_floating_point():
        return new.shape == old.shape and bool(torch.equal(new, old))
    finite = torch.isfinite(old)
    if not torch.equal(finite, torch.isfinite(new)):
        return False
    distance = (new[finite].double() - old[finite].double()).norm()
    return bool(distance <= rounding_tolerance(old.dtype) * old[finite].double().norm())
