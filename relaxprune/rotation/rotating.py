"""Rotating a dense model in place: what it computes stays, and its weights become easier to prune."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.inputs.batches import Batch, check_fit, read_batches, run_model
from relaxprune.inputs.tree import flatten
from relaxprune.models.forward import borrowed, refuse_unsupported
from relaxprune.models.rotated_blocks import insert_changes, refuse_other_classes
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency.store import store_of

from .bases import Bases, change_share, turn_ends
from .block_copy import record_calls
from .draft import Draft
from .learners.base import Learned, Learner, Lesson, Touched
from .lessons import Material, StreamLesson, head_lesson
from .moments import MomentCounter
from .places import Place, matrices_of
from .rotation import RotateOptions, Rotation, TurnedHeads
from .structure import Structure, few_tokens, find_structure
from .value_heads import ValuePath

_NOT_ASKED = "only value heads were to be rotated"


@dataclass(frozen=True)
class RotateStep:
    """How far the learning is.

    Attributes:
        part: what is learned, such as "residual stream".
        step: steps done.
        loss: the loss at the last one.
    """

    part: str
    step: int
    loss: float


Listener = Callable[[RotateStep], None]


def rotate_model(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    options: RotateOptions | None = None,
    on_step: Listener = lambda step: None,
) -> Rotation:
    """Rotate a dense language model in place, so that it computes the same and its masks lose less.

    Value heads turn between the layer that makes values and the one that reads them mixed, each head on its own. The
    residual stream turns as a whole: gains of norms are folded into what reads them, the output head becomes a weight
    of its own, and embeddings, readers and writers turn. New values are worked out in float64 and rounded once to the
    dtype of each parameter. Nothing is changed before it is proven on copies of the blocks that the model stays the
    same; the logits of a few tokens are compared at the end.

    Args:
        model: a causal language model of transformers, whole and on one device.
        batches: token ids or mappings with ``input_ids``, as for ``prune_model``; read once.
        options: see ``RotateOptions``.
        on_step: called after every step of learning.

    Raises:
        RelaxPruneError: a model that cannot be rotated, with the reason, and nothing is changed; or one whose logits
            moved by more than rounding explains, which then has to be loaded again.
    """
    options, started = options or RotateOptions(), time.monotonic()
    refuse_unsupported(model)
    if store_of(model).travels:
        raise RelaxPruneError("model must be whole in memory to be rotated, got blocks that travel: load it without")
    read = read_batches(batches)
    check_fit(model, read)
    with borrowed(model):
        structure = _wanted(model, find_structure(model, read), options)
        before = _outputs(model, structure, read)
        moments = MomentCounter(model, structure).count(read)
        material = Material(model, structure, moments, options.shrinkage, options.target.apart)
        learn = partial(_learned, options, on_step)
        bases = _learn_stream(material, learn, options) if structure.streams else Bases((None,) * len(moments), None)
        heads = tuple(_turn_block(material, index, basis, learn) for index, basis in enumerate(bases.of_blocks))
        untied = 0 if structure.ends is None else turn_ends(model, structure.ends, bases)
        changes = bases.changes(structure.blocks.names)
        changed = insert_changes(model, changes) if changes else 0
        difference = _proven(before, _outputs(model, structure, read), bases, _rounding(model))
    return Rotation(
        options=options,
        stream=bases.ratio is not None,
        reason=structure.stays,
        ratio=bases.ratio,
        heads=heads,
        untied_bytes=untied,
        change_bytes=changed,
        change_share=change_share(structure, changes),
        difference=difference,
        seconds=time.monotonic() - started,
    )


def _wanted(model: nn.Module, found: Structure, options: RotateOptions) -> Structure:
    """Return what of a structure is to turn.

    Raises:
        RelaxPruneError: nothing of it can.
    """
    if options.rotate == "blocks":
        refuse_other_classes(model)
    if options.rotate == "heads":
        found = replace(found, ends=None, streams=(), stays=_NOT_ASKED)
    found = found.fitting(options.target.apart)
    if not found.streams and not found.paths:
        reason = next(value for value in found.values if isinstance(value, str))
        raise RelaxPruneError(
            f"nothing in the model can be rotated: of the residual stream, {found.stays}; of value heads in the first "
            f"block, {reason}"
        )
    return found


Learn = Callable[[str, Sequence[Touched], int], Learned]


def _learned(options: RotateOptions, on_step: Listener, part: str, blocks: Sequence[Touched], width: int) -> Learned:
    """Learn one rotation."""
    learner: Learner = options.made
    found = learner.learn(
        Lesson(
            blocks=blocks,
            width=width,
            target=options.target.apart,
            seed=options.seed,
            on_step=lambda step, loss: on_step(RotateStep(part, step, loss)),
        )
    )
    if fault := found.fault(width):
        raise RelaxPruneError(
            f"learner {learner.name!r} must return an orthogonal ({width}, {width}) matrix of float64 for the {part}, "
            f"got {fault}"
        )
    return found


def _learn_stream(material: Material, learn: Learn, options: RotateOptions) -> Bases:
    """Learn the rotation of the residual stream: one, or one for each few blocks."""
    lesson = StreamLesson(material)
    first = material.structure.streams[0].readers[0].place
    width = first.shape(material.structure.blocks.modules[0])[1]
    if options.rotate != "blocks":
        found = learn("residual stream", lesson, width)
        return Bases((found.rotation,) * len(lesson), found.ratio)
    bases: list[Tensor] = []
    ratios = []
    for start in range(0, len(lesson), options.every):
        group = lesson[start : start + options.every]
        found = learn(f"residual stream from block {start}", group, width)
        bases += [found.rotation] * len(group)
        ratios += [found.ratio] * len(group)
    return Bases(tuple(bases), sum(ratios) / len(ratios))


def _turn_block(material: Material, index: int, rotation: Tensor | None, learn: Learn) -> TurnedHeads:
    """Rotate one block, its value heads in the basis that the stream has by then."""
    block, found = material.structure.blocks.modules[index], material.structure.values[index]
    draft = Draft(block)
    if rotation is not None:
        stream = material.structure.streams[index]
        for place, turn in stream.turns(material.gains(index), rotation):
            draft.turn(place, turn)
        for norm in stream.norms:
            for parameter in block.get_submodule(norm.module).parameters():
                draft.fill(parameter, norm.unit)
    lessons: list[Learned] = []
    for path in () if isinstance(found, str) else found:
        learned = _learn_heads(material, index, path, draft, rotation, learn)
        draft.turn_heads(*_ends_of(block, path), path, [one.rotation for one in learned])
        lessons += learned
    draft.write()
    if not lessons:
        return TurnedHeads(index, 0, str(found))
    return TurnedHeads(index, len(lessons), "", sum(one.ratio for one in lessons) / len(lessons))


def _learn_heads(
    material: Material, index: int, path: ValuePath, draft: Draft, rotation: Tensor | None, learn: Learn
) -> list[Learned]:
    """Learn a rotation for each head between two layers of a block whose stream is drafted already."""
    block, moments = material.structure.blocks.modules[index], material.moments[index]
    producer, consumer = _ends_of(block, path)
    energy = moments.energy(path.producer, producer.shape(block)[1])
    norm = None if rotation is None else material.structure.streams[index].norm_of(producer)
    if rotation is not None and norm in moments.grams:
        gram = moments.grams[norm].gram().double()
        energy = ((rotation.T @ gram) * rotation.T).sum(dim=1)
    touched = head_lesson(material, index, path, (draft.matrix(producer), draft.matrix(consumer)), energy)
    part = f"value heads of block {index}"
    return [learn(part, [one], len(head.rows)) for one, head in zip(touched, path.heads, strict=True)]


def _ends_of(block: nn.Module, path: ValuePath) -> tuple[Place, Place]:
    """Return the places of the layers that make values and that read them."""
    made, read = (matrices_of(name, block.get_submodule(name))[0] for name in (path.producer, path.consumer))
    return made, read


def _outputs(model: nn.Module, structure: Structure, batches: Sequence[Batch]) -> list[Tensor]:
    """Return what every block puts out on a few tokens, and the logits, last."""
    logits: list[Tensor] = []
    batch = few_tokens(batches)

    def run() -> None:
        logits.append(flatten(run_model(model, batch))[0][0])

    calls = record_calls(structure.blocks.modules, run)
    return [call.output.double() for call in calls if call is not None] + [logits[0].double()]


def _proven(before: list[Tensor], after: list[Tensor], bases: Bases, tolerance: float) -> float:
    """Return how far the logits moved.

    Raises:
        RelaxPruneError: they, or what a block puts out, moved by more than rounding explains.
    """
    pairs = zip(before[:-1], bases.of_blocks, strict=True)
    meant = [states if basis is None else states @ basis for states, basis in pairs] + before[-1:]
    moved = [float(_distance(new, old)) for new, old in zip(after, meant, strict=True)]
    if not max(moved) <= tolerance:
        raise RelaxPruneError(
            f"the rotated model must compute what the model did, and moved by {max(moved):.2g} of its size where "
            f"rounding explains {tolerance:.2g}: load the model again, and leave out its rotation"
        )
    return moved[-1]


def _rounding(model: nn.Module) -> float:
    """Return what the rounding of a model's weights and sums may explain: 3e-4 in float32, 0.09 in bfloat16."""
    dtypes = {parameter.dtype for parameter in model.parameters()} | {torch.float32}
    return float(max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5)


def _distance(new: Tensor, old: Tensor) -> Tensor:
    """Return the median over tokens of how far they moved, as a share of their size."""
    tiny = torch.finfo(old.dtype).tiny
    shares: Tensor = (new - old).norm(dim=-1) / old.norm(dim=-1).clamp_min(tiny)
    return shares.median()
