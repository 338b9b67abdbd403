"""What an answer with exit code 0 or 3 must agree with, found by other means than the code under test.

A file with a checksum that was not made right again after the change gives the answer of the unchanged file, or none.
A problem, or a model of somebody's, is another one once it is changed: the answer must be right for that one.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import load

from .watching import Seen, watch

KEPT = 3  # of each row of the problem
# Of the place, what was seen, what is seen without a change, and how the file was changed; returns what is wrong.
Judge = Callable[[Path, Seen, Seen, str], str | None]


def raw_masks(path: Path) -> dict[str, np.ndarray]:
    """Read a mask file as its format is described."""
    data = path.read_bytes()
    shapes = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["shapes"])
    found = {}
    for name, packed in load(data).items():
        bits = np.unpackbits(packed.numpy(), axis=-1, count=shapes[name][-1], bitorder="little")
        found[name] = bits.astype(bool).reshape(shapes[name])
    return found


def energies(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and symmetric Gram of a problem file in float64."""
    tensors = load(path.read_bytes())
    gram = tensors["gram"].double().numpy()
    return tensors["weight"].double().numpy(), (gram + gram.T) / 2


def optimum(path: Path) -> float:
    """Return the smallest objective of all masks that keep ``KEPT`` of every row."""
    weight, gram = energies(path)
    total = 0.0
    for row in weight:
        kept = itertools.combinations(range(len(row)), KEPT)
        lost = (np.where(np.isin(np.arange(len(row)), keep), 0.0, row) for keep in kept)
        total += min(float(left @ gram @ left) for left in lost)
    return total


def number(seen: Seen, key: str) -> float:
    """Return a number that a command has printed."""
    found = re.search(rf"^{key} +(\S+)", seen.out, re.M)
    assert found is not None, seen.out
    return float(found[1])


def same(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """The answer of the unchanged file."""
    return None if seen.out == good.out and seen.code == good.code else f"{seen.out!r} is not {good.out!r}"


def solved(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """A mask of the set, its objective, and a bound below the optimum of the problem as it is now."""
    problem, out = place / "problem.safetensors", place / "out.safetensors"
    weight, gram = energies(problem)
    mask = raw_masks(out)["weight"]
    if mask.shape != weight.shape or (mask.sum(1) != KEPT).any():
        return f"mask {mask}"
    lost = np.where(mask, 0.0, weight)
    objective = float(np.einsum("ri,ij,rj->", lost, gram, lost))
    size = float(np.einsum("ri,ij,rj->", abs(weight), abs(gram), abs(weight)))
    told, bound = number(seen, "objective"), number(seen, "lower_bound")
    if not abs(told - objective) <= 1e-5 * size + 1e-300:
        return f"objective {told}, really {objective}"
    return None if bound <= optimum(problem) + 1e-5 * size else f"bound {bound}, optimum {optimum(problem)}"


def verified(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """A bound below the optimum; exit 3 says that the certificate does not hold."""
    if seen.code == 3:
        return None
    best = optimum(place / "problem.safetensors")
    bound = number(seen, "lower_bound")
    return None if bound <= best + 1e-6 * abs(best) else f"bound {bound}, optimum {best}"


def counted(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """The shares of a mask file's masks."""
    if change != "sealed":
        return same(place, seen, good, change)
    for name, mask in raw_masks(place / "masks.safetensors").items():
        if f"{1 - mask.mean():.4f}"[:5] not in seen.out:
            return f"{name}: {1 - mask.mean()} is not in {seen.out!r}"
    return None


def compared(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """The same masks, or as many entries in common as there are."""
    if change != "sealed":
        return same(place, seen, good, change)
    first, second = raw_masks(place / "first.safetensors"), raw_masks(place / "masks.safetensors")
    both = sum(int((mask & second[name]).sum()) for name, mask in first.items() if name in second)
    line = next(line.split() for line in seen.out.splitlines() if line.startswith("all"))
    return None if int(line[1]) == both else f"{line} has not {both}"


def exported(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """Bool tensors of the same bits."""
    written = {name: item.numpy() for name, item in load((place / "out.safetensors").read_bytes()).items()}
    meant = raw_masks(place / ("masks.safetensors" if change == "sealed" else "first.safetensors"))
    equal = written.keys() == meant.keys() and all(np.array_equal(written[name], meant[name]) for name in meant)
    return None if equal else "other masks"


def applied(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """The very weights of the run; also its masks, unless their checksum was made right (they may hold notes)."""
    made, meant = files(place / "out"), files(place / "plain")
    names = ["model.safetensors", *([] if change == "listed" else ["masks.safetensors"])]
    differ = [name for name in names if made.get(name) != meant[name]]
    return f"other bytes of {differ}" if differ else None


def files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a folder's files; links are followed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def compacted(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """Every byte, once it is restored."""
    back = watch(["masks", "restore", "out", "back"], [place / "back"])
    if back.code != 0:
        return f"cannot be restored: {back.err}"
    return None if files(place / "back") == files(place / "run") else "other bytes"


def restored(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """The bytes of what was compacted; of a file whose checksum was made right, a whole weight file."""
    made = files(place / "out")
    if change == "sealed":
        return None if load(made["model.safetensors"]) is not None else ""
    kept = {name: data for name, data in files(place / "small").items() if "compact" not in name}
    kept["model.safetensors"] = (place / "model.safetensors").read_bytes()
    return None if made == kept else f"other bytes of {[name for name in kept if made.get(name) != kept[name]]}"


def judged(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """A line for every matrix of which a tenth is 0."""
    weights = load((place / "run/model.safetensors").read_bytes())
    pruned = [name for name, item in weights.items() if item.dim() >= 2 and float((item == 0).double().mean()) >= 0.1]
    lines = [line for line in seen.out.splitlines()[1:-2] if line.strip()]
    named = all(any(line.startswith(name) for line in lines) for name in pruned)
    return None if named and len(lines) == len(pruned) else f"{lines} instead of {pruned}"


def reported(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """The numbers of the record and of the evaluations as they are now."""
    content = json.loads((place / "out.json").read_text())
    record = json.loads((place / "run/relaxprune.json").read_text())
    evaluated = place / "run/evaluation.json"
    kept = json.loads(evaluated.read_text())["results"] if evaluated.is_file() else []
    layers = record["report"]["layers"]
    if content["repeat"]["fingerprint"] != record["fingerprint"] or len(content["layers"]) != len(layers):
        return "another run"
    if [item["perplexity"] for item in content["perplexity"]] != [item["perplexity"] for item in kept]:
        return "other perplexities"
    for shown, layer in zip(content["layers"], layers, strict=True):
        error = layer["objective"] / layer["dense_energy"] if layer["dense_energy"] > 0 else 0.0
        if shown["relative_error"] != error or shown["sparsity"] != layer["sparsity"]:
            return f"other numbers of {layer['name']}"
    return None


def unchanged(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """Exit 0 is for the very files of the run; what is written later, and how a record is spaced, is no matter."""
    if seen.code == 3:
        return None
    if change == "listed":
        return masked(place, seen, good, change)
    found, meant = files(place / "run"), files(place / "finished")
    found.pop("evaluation.json", None)
    record = json.loads(found.pop("relaxprune.json")) == json.loads(meant.pop("relaxprune.json"))
    return None if record and found == meant else "not the files that were written"


def masked(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """Exit 0 is for the source that was pruned, and a result that is it but for zeros and values of masked weights."""
    if seen.code == 3:
        return None
    masks = raw_masks(place / "run/masks.safetensors")
    source, pruned, result = (tensors(place / name) for name in ("source", "original", "run"))
    if source.keys() != pruned.keys() or not all(same_bytes(source[name], pruned[name]) for name in pruned):
        return "another source"
    for name, found in result.items():
        if name in masks:
            right = not found[~masks[name]].tobytes().strip(b"\0") and bool(np.isfinite(found).all())
        else:
            right = same_bytes(found, source[name])
        if not right:
            return f"other values of {name}"
    return None


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a model's one file."""
    return {name: item.numpy() for name, item in load((folder / "model.safetensors").read_bytes()).items()}


def same_bytes(first: np.ndarray, second: np.ndarray) -> bool:
    """Tell whether two tensors are one."""
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def measured(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """A perplexity on what was asked for."""
    found = re.match(r"perplexity (\S+) \(2 windows of 8 tokens, .*\)\n", seen.out)
    return None if found and float(found[1]) >= 1 else seen.out


def resumed(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """The very model, and the very masks, of the run that was not disturbed."""
    if change == "listed":  # by hand: another run, that ends somehow
        return None
    continued = next(place / name for name in ("begun", "finished") if (place / name).exists())
    made, meant = files(continued), files(place / "run")
    differ = [name for name in meant if name.endswith(".safetensors") and made.get(name) != meant[name]]
    return f"other bytes of {differ}" if differ else None


def anything(place: Path, seen: Seen, good: Seen, change: str) -> str | None:
    """No answer is looked at."""
    return None
