"""A maker who lies: certificates with anything changed, and a climb towards the most that is accepted."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from relaxprune import Certificate, CertificateError, MaskCertificate, RelaxPruneError
from relaxprune.certificates.verify.claim import PROOF_TENSORS
from relaxprune.certificates.verify.claim_file import FORMAT
from relaxprune.certificates.verify.subject import Subject
from relaxprune.cli import main
from relaxprune.support.container import TensorFormat, write_container
from tests.random_problems import Draw

from .forging_targets import Target

Parts = dict[str, Any]
NUMBERS = ("method", "objective", "lower_bound", "rows_covered", "shift")
SPECIAL = (
    0.0, -0.0, 5e-324, -1e-310, 1e-200, 1e-16, 0.5, 1.0, 1 + 2**-52, 1 - 2**-53, 2.0, -1.0, 2.5, 1e5, -1e5, 1e10, 1e20,
    -1e30, 1e154, -1e200, 1.7e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
WORDS = ("fw", "diagonal", "sdp", "exact", "perspective", "trivial", "", None, 3, True, [], -1, 2**63, 10**400, 0.5)
DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool,
    torch.complex64, torch.uint64, torch.uint16,
)  # fmt: skip
FIRST = TensorFormat(FORMAT.kind, FORMAT.name, version=1, sealed=False)
FIRST_NAMES = {"block_objective": "row_objective", "block_lower_bound": "row_lower_bound", "tightening": "share"}


@dataclass
class Tally:
    """What came of many forgeries."""

    tries: int = 0
    accepted: int = 0
    above: int = 0
    largest: Fraction | None = None

    def count(self, excess: Fraction | None) -> None:
        """Count one: how far above the optimum it was accepted, or None where it was refused."""
        self.tries += 1
        if excess is not None:
            self.accepted += 1
            self.above += excess > 0
            self.largest = excess if self.largest is None else max(self.largest, excess)

    def __str__(self) -> str:
        largest = "none" if self.largest is None else f"{float(self.largest):.3g}"
        return f"{self.tries} tries, {self.accepted} accepted, {self.above} above the optimum, largest excess {largest}"


def parts_of(certificate: Certificate) -> Parts:
    """Every tensor and number that a certificate's claim consists of, by name."""
    found = {item.name: getattr(certificate.claim, item.name) for item in fields(certificate.claim)}
    if isinstance(certificate, MaskCertificate):
        found |= {name: getattr(certificate.proof, name) for name in PROOF_TENSORS}
    return {name: value for name, value in found.items() if name not in ("proof", "subject")}


def assembled(certificate: Certificate, parts: Parts) -> Certificate:
    """The certificate with other parts."""
    given = dict(parts)
    if not isinstance(certificate, MaskCertificate):
        return replace(certificate, **given)
    proof = replace(certificate.proof, **{name: given.pop(name) for name in PROOF_TENSORS})
    return replace(certificate, proof=proof, checks={"shift": given.pop("shift")}, **given)


def judged(target: Target, certificate: Certificate, exact: bool = False) -> Fraction | None:
    """How far above the optimum a certificate is accepted, at most; None where it is refused."""
    try:
        seen = certificate.verify(target.problem, exact=exact)
    except CertificateError:
        return None
    return target.excess(certificate, seen.lower_bound)


def judged_by_command(target: Target, parts: Parts, folder: Path, first_version: bool) -> Fraction | None:
    """The same of a file, by ``relaxprune verify``, which must say in one line what is wrong.

    Raises:
        RelaxPruneError: no file can hold these parts.
    """
    layer, proof = folder / "layer", folder / "proof"
    save_file(target.layer, layer)
    tensors = {name: _stored(value) for name, value in parts.items() if isinstance(value, Tensor)}
    kept, pruned = target.problem.polytope.fixed()
    tensors |= {"fixed_kept": _stored(kept), "fixed_pruned": _stored(pruned)} if kept is not None else {}
    metadata = {"description": json.dumps(_description(target, parts, first_version))}
    if first_version:
        tensors = {FIRST_NAMES.get(name, name): tensor for name, tensor in tensors.items()}
    write_container(proof, FIRST if first_version else FORMAT, tensors, metadata)
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        code = main(["verify", str(layer), str(proof)])
    assert code in (0, 2, 3), code
    assert told.getvalue().count("\n") == (code != 0), told.getvalue()
    if code:
        return None
    return target.excess(assembled(target.certificates[0], parts), parts["lower_bound"])


def _stored(tensor: Tensor) -> Tensor:
    plain = tensor.contiguous() if tensor.layout == torch.strided and not tensor.is_meta else torch.zeros(0)
    return plain.byte() if plain.dtype == torch.bool else plain


def _description(target: Target, parts: Parts, first_version: bool) -> Mapping[str, Any]:
    numbers = {name: parts[name] for name in NUMBERS if name in parts}
    masks = "shift" in numbers
    if masks:
        numbers |= {"checks": {"shift": numbers.pop("shift")}, "relaxed_objective": 0.0, "estimate": None}
    subject = Subject.of(target.problem)
    about = {"polytope": subject.polytope, "damping": subject.damping, "sha256": subject.sha256}
    if first_version:
        return {**numbers, "seconds": 0.0, "polytope": subject.polytope}
    return {**numbers, "seconds": 0.0, "kind": "mask" if masks else "weights", "subject": about}


def claiming(target: Target, parts: Parts, draw: Draw) -> Parts:
    """The parts with a claim: as they are, as low as can be, or just above the optimum of a block, of all, in total."""
    low = torch.full((len(target.optimum),), -1e305, dtype=torch.float64)
    above = torch.tensor([target.above(block) for block in range(len(low))], dtype=torch.float64)
    kind = draw.pick(("kept", "low", "low", "one", "one", "all", "total"))
    if kind == "kept":
        return parts
    bounds = above if kind == "all" else low
    if kind == "one":
        block = draw.whole(0, len(low) - 1)
        bounds = low.clone()
        bounds[block] = above[block]
    best = sum(target.optimum)
    total = float(best) + abs(float(best)) * 10 ** float(draw.uniform(-15, 0)) if kind == "total" else -1e306
    return {**parts, "block_lower_bound": bounds, "lower_bound": total}


def changed(target: Target, parts: Parts, draw: Draw) -> Parts:
    """The parts with one of them changed."""
    name = draw.pick(tuple(parts))
    value = parts[name]
    if not isinstance(value, Tensor):
        options = (*WORDS, *SPECIAL)
        number = value * (1 + float(draw.normal())) if isinstance(value, float) else value
        return {**parts, name: draw_one((number, options[draw.whole(0, len(options) - 1)]), draw)}
    kinds = tuple(CHANGES) if value.numel() else ("dtype", "shape", "none", "rows of its own")
    return {**parts, **CHANGES[draw.pick(kinds)](target, parts, name, draw)}


def draw_one(options: tuple[Any, ...], draw: Draw) -> Any:
    """One of any values."""
    return options[draw.whole(0, len(options) - 1)]


def _wide(value: Tensor) -> Tensor:
    """A tensor in float64, or as it is where an earlier change has made it complex."""
    return value if value.is_complex() else value.double()


def _noise(target: Target, parts: Parts, name: str, draw: Draw) -> Parts:
    value = parts[name]
    wide = _wide(value)
    size = 10 ** draw.uniform(-16, 8)
    moved = (
        wide * (1 + size * draw.normal(*value.shape)) if draw.whole(0, 1) else wide + size * draw.normal(*value.shape)
    )
    moved = torch.where(draw.bits(0.5, *value.shape), moved, wide)
    return {name: moved if value.is_floating_point() else moved.round().nan_to_num().clamp(-100, 100).to(value.dtype)}


def _entry(target: Target, parts: Parts, name: str, draw: Draw) -> Parts:
    value = parts[name].contiguous().clone()
    special = SPECIAL[draw.whole(0, len(SPECIAL) - 1)]
    whole = draw.whole(-3, 2 * target.problem.shape[1])
    entry = torch.tensor(special if value.is_floating_point() else whole, dtype=torch.float64).to(value.dtype)
    value.view(-1)[draw.whole(0, value.numel() - 1)] = entry
    return {name: value}


def _dtype(target: Target, parts: Parts, name: str, draw: Draw) -> Parts:
    value = parts[name]
    return {name: (value.real if value.is_complex() else value).to(draw_one(DTYPES, draw))}


def _shape(target: Target, parts: Parts, name: str, draw: Draw) -> Parts:
    value = parts[name]
    options = (value[:-1], torch.cat([value, value]), value.unsqueeze(0), value.mT if value.ndim > 1 else value[:0],
               value[:1].expand(value.shape), value.flip(0), value.sum(), value.new_zeros(0))  # fmt: skip
    return {name: draw_one(options if len(value) and value.ndim else options[1:2], draw)}


def _none(target: Target, parts: Parts, name: str, draw: Draw) -> Parts:
    sparse = _wide(parts[name]).to_sparse() if parts[name].numel() else None
    return {name: draw_one((None, 0.0, [], parts[name].to("meta"), sparse), draw)}


def _foreign(target: Target, parts: Parts, name: str, draw: Draw) -> Parts:
    other = parts_of(target.certificates[draw.whole(0, len(target.certificates) - 1)])
    return {name: other.get(name)}


def _own(target: Target, parts: Parts, name: str, draw: Draw) -> Parts:
    """Every row an L of its own, with any diagonal, weight and cuts."""
    if "dense_rows" not in parts:
        return {"tightening": 10 ** draw.uniform(-8, 1, target.problem.shape[1])}
    (rows, cols), cuts = target.problem.shape, draw.whole(0, 4)
    size = 10 ** draw.uniform(-6, 30)
    counted = target.problem.polytope.rows_per_block(target.problem.shape) == 1
    return {
        "method": "sdp",
        "row_method": torch.full((rows,), 2, dtype=torch.int8),
        "dense_rows": torch.arange(rows),
        "dense_diagonal": 10 ** draw.uniform(-6, 0) * draw.normal(rows, cols),
        "dense_weight": size * draw.uniform(0, 1, rows) * counted,
        "cut_row": torch.randint(rows, (cuts,), generator=draw.generator).sort().values,
        "cut_index": torch.stack([torch.randperm(cols + 1, generator=draw.generator)[:3] for _ in range(cuts)])
        if cuts
        else torch.zeros(0, 3, dtype=torch.int64),
        "cut_sign": (2 * draw.bits(0.5, cuts, 3) - 1).to(torch.int8),
        "cut_multiplier": 10 ** draw.uniform(-6, 0) * draw.uniform(0, 1, cuts),
    }


CHANGES: dict[str, Callable[[Target, Parts, str, Draw], Parts]] = {
    "noise": _noise,
    "more noise": _noise,
    "entry": _entry,
    "dtype": _dtype,
    "shape": _shape,
    "none": _none,
    "another's": _foreign,
    "rows of its own": _own,
}


def forged(target: Target, draw: Draw) -> tuple[Certificate, Parts]:
    """A random forgery, and the honest certificate that it is made of."""
    honest = target.certificates[draw.whole(0, len(target.certificates) - 1)]
    parts = parts_of(honest)
    for _ in range(draw.whole(1, 3)):
        with contextlib.suppress(RuntimeError, TypeError, IndexError, AttributeError):  # of torch, of what is no tensor
            parts = changed(target, parts, draw)
    return honest, claiming(target, parts, draw)


KNOBS = ("point", "scale", "tightening", "dense_diagonal", "dense_weight", "cut_multiplier", "shift")


def climbed(target: Target, honest: Certificate, steps: int, draw: Draw, tally: Tally) -> None:
    """Climb towards the highest bound that is rebuilt, from an honest proof, by random steps of any size."""
    parts = parts_of(honest)
    low = torch.full((len(target.optimum),), -1e305, dtype=torch.float64)
    parts |= {"block_lower_bound": low, "lower_bound": -1e306}
    knobs = [name for name in KNOBS if _turns(parts.get(name))]
    if not knobs:
        return
    best = judged(target, assembled(honest, parts))
    for _ in range(steps):
        trial = dict(parts)
        for name in {draw.pick(tuple(knobs)) for _ in range(draw.whole(1, 2))}:
            trial[name] = _turned(trial[name], draw)
        found = judged(target, assembled(honest, trial))
        tally.count(found)
        if found is not None and (best is None or found > best):
            parts, best = trial, found
    for block in range(len(low)):  # and claim with it what nobody may
        claim = low.clone()
        claim[block] = target.above(block)
        tally.count(judged(target, assembled(honest, {**parts, "block_lower_bound": claim})))


def _turns(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, Tensor) and value.numel() > 0)


def _turned(value: Any, draw: Draw) -> Any:
    """A float or a tensor of floats with a step in all entries or in one."""
    if isinstance(value, float):
        return abs(value + 10 ** float(draw.uniform(-18, 0)) * float(draw.normal()))
    wide = value.double()
    size = 10 ** draw.uniform(-12, 1)
    step = size * draw.normal(*wide.shape) * (wide.abs() + (10 ** draw.uniform(-6, 0) if draw.whole(0, 1) else 0.0))
    return wide + (step if draw.whole(0, 1) else step * draw.bits(0.3, *wide.shape))


def by_command(target: Target, parts: Parts, folder: Path, draw: Draw) -> Fraction | None:
    """Judge parts by their file, of either version; what no file can hold counts as refused."""
    try:
        return judged_by_command(target, parts, folder, first_version="shift" in parts and draw.whole(0, 2) == 0)
    except RelaxPruneError:
        return None
