"""Record today's answers bit for bit, and compare them after a change that must not alter any.

    python docs/benchmarks/same_answers.py record FILE.json --part layers
    python docs/benchmarks/same_answers.py compare FILE.json

Part ``layers`` solves small seeded problems with every solver, and certifies and refits some; part ``model`` prunes
two blocks of SmolLM2-135M from the command line in several ways. Masks, weights and certificates are kept as SHA-256 of
their contents, numbers as hexadecimal floats, and a refusal as the class of its error. Times are left out. Recordings
compare on one kind of machine, with one version of torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

import relaxprune
from relaxprune import NM, KSparse, MaskProblem, QuadraticProblem, ReconstructionProblem, TransposableNM, solve
from relaxprune.solvers import make_solver

Values = dict[str, str]
Entry = tuple[str, Callable[[], Values]]  # its name, and how it is computed

LISTING = ("exact", "enumerate", "cvxpy")  # too slow for more than the tiniest problems
HOMES = ("relaxprune", "relaxprune.solving", "relaxprune.solving.solving", "relaxprune.certificates")

# Fewer iterations than these solvers make by default, so that all problems are done in minutes.
CAPS = {"sparsefw": 150, "ils": 40, "dicg": 100, "afw": 60, "pfw": 60, "bpfw": 60}
# Options, starts and searches other than the default ones; and the default ones without caps.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "fw": [
        *({"effort": "fast"}, {"effort": "best"}, {"tighten": "diagonal"}, {"precision": "bf16"}, {"start": None}),
        *({"anneal": False, "gap_tolerance": 1e-3}, {"momentum": 0.0, "smoothing": 0.0}, {"polish": "obs-swap"}),
        *({"start": "ria", "polish": None}, {"start": "magnitude", "polish": "swap"}, {"convex_share": 0.5}),
    ],
    "sparsefw": [{}, {"at_most": False, "alpha": 0.5, "saliency": "ria"}],
    "swap": [{"start": "magnitude"}],
    "ils": [{}, {"copies": 3, "seed": 5, "max_iterations": 10}],
    "dicg": [{}, {"in_face": False, "share": 0.25}],
    "afw": [{}],
    "pfw": [{}],
    "bpfw": [{}, {"gap_tolerance": 1e-2}],
    "fista": [{"scaled": False}],
    "admm": [{"variant": "relaxed"}, {"rho": 1.0, "power": 0.4, "start": "ria"}],
    "reconstruct": [{"effort": "best"}, {"effort": "fast", "polish": "obs-swap"}, {"damping": 0.02, "rho": 0.2}],
    "alps": [{"damping": 0.1}],
    "sparsegpt": [{"blocksize": 4, "damping": 0.1}],
    "obs-swap": [{"start": "magnitude"}],
    "exact": [{"backend": "daqp"}],
    "ria": [{"power": 1.0}],
    "wanda": [{"polish": "swap"}],
}

MODEL = "smollm2-135m --include model.layers.[01].* --windows 8 --length 128 --threads 1 --quiet"
RUNS = {
    "fw": "--sparsity 50% --effort fast",
    "refit": "--sparsity 50% --refit --max-iterations 8",
    "certify": "--sparsity 50% --effort fast --certify diagonal --certify-rows 16",
    "permute": "--pattern 2:4 --permute --effort fast",
    "allocation": "--sparsity 50% --allocation model --effort fast",
    "correct": "--pattern 2:4 --refit --correct 0.5 --statistics groups --token-cap 4 --max-iterations 8",
    "tune": "--sparsity 50% --refit --solver wanda --tune 1 --length 512",
}
LAYER_FIELDS = (
    *("objective", "lower_bound", "status", "iterations", "products", "polish", "sparsity", "dense_energy"),
    *("wanda_objective", "relaxed_objective", "rounded_objective", "kept_objective", "certificate", "certified_rows"),
)


def exported(name: str) -> Any:
    """Return what the package calls ``name``, in whichever of ``HOMES`` this version has it."""
    for home in HOMES:
        try:
            return getattr(import_module(home), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"no {name} in {', '.join(HOMES)}: add its module to HOMES")


def exact(value: object) -> str:
    """Write a value so that equal texts mean equal bits; of a tensor the hash of type, shape and content."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        kind = f"{plain.dtype} {tuple(plain.shape)} ".encode()
        return hashlib.sha256(kind + plain.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    return value.hex() if isinstance(value, float) else str(value)


def fields(result: object, *names: str) -> Values:
    """Return some attributes of a result."""
    return {name: exact(getattr(result, name)) for name in names}


def solved(problem: Any, solver: str, options: dict[str, Any]) -> Values:
    """Return what ``solve`` says, but for times."""
    found = solve(problem, solver, **options)
    values = fields(
        found, "mask", "objective", "lower_bound", "block_objective", "block_lower_bound", "polish", "weight"
    )
    values |= fields(found, "relaxed_mask", "relaxed_objective", "rounded_objective", "kept_objective")
    return values | fields(found.stats, "iterations", "products", "swaps") | {"status": found.status.name}


def in_blocks(problem: Any, solver: str, options: dict[str, Any]) -> Values:
    """Return what ``solve`` says when little more memory than one block of rows needs is there."""
    least = exported("least_memory")(problem.mask_problem, solver)
    return {"least_memory": str(least)} | solved(
        problem, solver, {**options, "memory_budget_bytes": least + least // 4}
    )


def certified(problem: Any, mask: Any, method: str, options: dict[str, Any]) -> Values:
    """Return what ``certify`` says, after its certificate was verified, in rationals too."""
    found = relaxprune.certify(problem, mask, method, **options)
    found.verify(problem, exact=True)
    values = fields(
        found, "method", "objective", "lower_bound", "block_lower_bound", "rows_covered", "relaxed_objective"
    )
    return values | {"estimate": exact(None if found.estimate is None else found.estimate.lower_bound)}


def weights_certified(problem: ReconstructionProblem, solver: str, method: str) -> Values:
    """Return what ``certify_weights`` says of a solver's answer."""
    weight = solve(problem, solver).weight
    found = exported("certify_weights")(problem, weight, method)
    return fields(found, "method", "objective", "lower_bound", "block_lower_bound")


def refitted(problem: ReconstructionProblem, mask: Tensor) -> Values:
    """Return what ``refit`` says of a mask."""
    found = relaxprune.refit(problem, mask)
    return fields(found, "weight", "objective", "relative_error", "kept_objective", "damping", "residual", "products")


def layer(rows: int, cols: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return a random weight (rows, cols), correlated inputs (tokens, cols) and others close to them, float64."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, cols, generator=draw, dtype=torch.float64)
    inputs = inputs @ (torch.eye(cols) + 0.4 * torch.randn(cols, cols, generator=draw)).double()
    noise = torch.randn(tokens, cols, generator=draw, dtype=torch.float64)
    return torch.randn(rows, cols, generator=draw), inputs, inputs + 0.2 * noise


def problems(rows: int, cols: int) -> Iterator[tuple[str, Any]]:
    """Yield problems of every kind over every set of masks, small in name and size: ``cols`` is a multiple of 8."""
    weight, inputs, changed = layer(rows, cols, 3 * cols)
    dense, gram, cross = (a.T @ b / len(inputs) for a, b in ((inputs, inputs), (changed, changed), (inputs, changed)))
    thin = inputs[: cols // 2].T @ inputs[: cols // 2]  # of rank cols / 2
    half = cols // 2
    sets = {
        "row": KSparse(half),
        "row at most": KSparse(half, at_most=True),
        "layer": KSparse(rows * half, per="layer"),
        "layer at most": KSparse(rows * half - 1, per="layer", at_most=True),
        "2:4": NM(2, 4),
        "3:8 at most": NM(3, 8, at_most=True),
        "5:8": NM(5, 8),
        "transposable": TransposableNM(1, 2) if rows % 4 else TransposableNM(2, 4),
    }
    scale = weight.abs().mean(1, keepdim=True) * gram.diagonal().float()
    for name, polytope in sets.items():
        yield f"mask {name}", MaskProblem(weight, gram.float(), polytope)
        yield f"quadratic {name}", QuadraticProblem(gram, (weight * scale).double(), polytope)
        yield f"weights {name}", ReconstructionProblem(weight, gram.float(), polytope)
    kept, pruned = torch.zeros(2, rows, cols, dtype=torch.bool)
    kept[0, 1] = kept[1, 6] = pruned[1, 3] = pruned[0, 4] = True
    for name in ("row", "layer", "2:4", "transposable"):
        face = {"fixed_kept": kept, "fixed_pruned": pruned}
        yield f"mask face of {name}", MaskProblem(weight, gram.float(), sets[name], **face)
        yield f"quadratic face of {name}", QuadraticProblem(gram, (weight * scale).double(), sets[name], **face)
    yield "mask row, float64", MaskProblem(weight.double(), gram, sets["row"])
    yield "mask row, low rank", MaskProblem(weight, thin.float(), sets["row"])
    yield "mask 2:4, bfloat16", MaskProblem(weight.bfloat16(), gram.float(), sets["2:4"])
    yield "weights row, damped", ReconstructionProblem(weight, thin.float(), sets["row"], damping=0.03)
    moved = {"cross": cross.float(), "dense_gram": dense.float(), "damping": 0.01}
    yield "weights 2:4, corrected", ReconstructionProblem(weight.bfloat16(), gram.float(), sets["2:4"], **moved)


def layers() -> Iterator[Entry]:
    """Yield the entries of part ``layers``."""
    small, tiny = dict(problems(8, 16)), dict(problems(2, 8))
    for solver in relaxprune.available_solvers():
        sizes = tiny if solver in LISTING else small
        capped = {"max_iterations": CAPS[solver]} if solver in CAPS else {}
        dtypes = ("float32", "float64") if hasattr(make_solver(solver), "dtype") else (None,)
        for name, problem in sizes.items():
            for dtype in dtypes:
                options = capped if dtype is None else {**capped, "dtype": dtype}
                yield f"{solver} {dtype or ''}/{name}", partial(solved, problem, solver, options)
            yield f"{solver} 7 iterations/{name}", partial(solved, problem, solver, {"max_iterations": 7})
        for name in ("mask row", "mask transposable", "quadratic 2:4", "weights row", "weights 2:4, corrected"):
            yield f"{solver} in blocks of rows/{name}", partial(in_blocks, sizes[name], solver, capped)
        for options in VARIANTS.get(solver, []):
            label = " ".join(f"{key}={value}" for key, value in options.items()) or "without a cap"
            for name in (
                "mask row",
                "mask layer",
                "mask 2:4",
                "quadratic row",
                "weights row",
                "weights 2:4, corrected",
            ):
                yield f"{solver} {label}/{name}", partial(solved, sizes[name], solver, options)
    for name, problem in tiny.items():
        if isinstance(problem, ReconstructionProblem):
            for method in ("perspective", "exact"):
                yield f"certify_weights {method}/{name}", partial(weights_certified, problem, "reconstruct", method)
            yield f"refit/{name}", partial(refitted, problem, solve(problem.mask_problem, "wanda").mask)
            continue
        for method in ("fw", "diagonal", "sdp", "exact"):
            yield (
                f"certify {method}/{name}",
                partial(certified, problem, problem.polytope.round(problem.score(problem.default_start)), method, {}),
            )
        for method in ("diagonal", "sdp"):
            drawn = partial(certified, problem, solve(problem, "fw"), method, {"rows": 1, "seed": 3})
            yield f"certify {method}, a drawn row/{name}", drawn
    weight, inputs, _ = layer(4, 480, 960)  # supports that are refitted by conjugate gradients
    wide = ReconstructionProblem(weight, (inputs.T @ inputs / 960).float(), KSparse(240), damping=0.01)
    yield "refit/wide", partial(refitted, wide, solve(wide.mask_problem, "wanda").mask)


def pruned(folder: Path, options: str) -> Values:
    """Prune two blocks into ``folder`` and return the numbers of the layers and the hash of every tensor written."""
    arguments = [*shlex.split(MODEL), *shlex.split(options), "--out", str(folder)]
    done = subprocess.run([sys.executable, "-P", "-m", "relaxprune", "prune", *arguments], stdout=subprocess.DEVNULL)
    values = {"exit code": str(done.returncode)}
    if done.returncode not in (0, 3):  # 3: finished with a notice
        return values
    for one in json.loads((folder / "relaxprune.json").read_text())["report"]["layers"]:
        values |= {f"{one['name']} {name}": exact(one[name]) for name in LAYER_FIELDS}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            where = path.relative_to(folder).as_posix()
            values |= {f"{where} {name}": exact(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    return values


def models(folder: Path) -> Iterator[Entry]:
    """Yield the entries of part ``model``, whose runs write into ``folder``."""
    for name, options in RUNS.items():
        yield name, partial(pruned, folder / name, options)


def computed(parts: list[str], keep: str | None) -> dict[str, dict[str, Values]]:
    """Compute the entries of some parts; whatever error ends one is its only value."""
    found: dict[str, dict[str, Values]] = {part: {} for part in parts}
    with tempfile.TemporaryDirectory() as temporary:
        for part in parts:
            for name, compute in layers() if part == "layers" else models(Path(keep or temporary)):
                try:
                    found[part][name] = compute()
                except Exception as error:  # a refusal, or what a change broke
                    found[part][name] = {"error": type(error).__name__}
    return found


def differences(before: dict[str, Values], after: dict[str, Values]) -> Iterator[str]:
    """Yield a line for every value that is not the same."""
    for entry in dict.fromkeys([*before, *after]):
        old, new = before.get(entry, {}), after.get(entry, {})
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                yield f"{entry}: {name} was {old.get(name, 'not there')}, is {new.get(name, 'not there')}"


def main() -> int:
    """Record or compare; 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--part", choices=("layers", "model", "all"), default="all")
    parser.add_argument("--keep", metavar="DIR", help="keep the run folders of part model here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    parts = ["layers", "model"] if asked.part == "all" else [asked.part]
    capability = torch.backends.cpu.get_cpu_capability()
    made_with = {"torch": torch.__version__, "python": platform.python_version(), "processor": capability}
    if asked.action == "record":
        recording = {"made_with": made_with, **computed(parts, asked.keep)}
        asked.file.write_text(json.dumps(recording, indent=1) + "\n")
        print(f"{sum(len(values) for part in parts for values in recording[part].values())} values recorded")
        return 0
    recording = json.loads(asked.file.read_text())
    if recording["made_with"] != made_with:
        print(f"recorded with {recording['made_with']}, compared with {made_with}: bits may differ for that alone")
    parts = [part for part in parts if part in recording]
    after = computed(parts, asked.keep)
    lines = [f"{part}: {line}" for part in parts for line in differences(recording[part], after[part])]
    print("\n".join(lines))
    count = sum(len(values) for part in parts for values in recording[part].values())
    print(f"{count} values compared, {len(lines)} different")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
