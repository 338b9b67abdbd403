from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from typing import ClassVar

import pytest
import torch

from relaxprune import KSparse, MaskProblem, RelaxPruneError, available_solvers, solve
from relaxprune.options import Target
from relaxprune.problems import Problem
from relaxprune.pruning import PruneRequest
from relaxprune.runs.fingerprint import software_versions
from relaxprune.solvers import Answer, Run, Solver, make_solver, registry, solver_class, solver_names

BUILT_IN = [
    "fw",
    "sparsefw",
    "swap",
    "ils",
    "dicg",
    "afw",
    "pfw",
    "bpfw",
    "fista",
    "admm",
    "reconstruct",
    "alps",
    "sparsegpt",
    "obs-swap",
    "cvxpy",
    "exact",
    "enumerate",
    "wanda",
    "ria",
    "magnitude",
]


@dataclass(frozen=True)
class Last(Solver):
    """Keeps the last columns: a solver of another package."""

    extra: int = 0
    name: ClassVar[str] = "last"
    summary: ClassVar[str] = "keep the last columns"

    def run(self, problem: Problem, run: Run) -> Answer:
        order = torch.arange(problem.shape[1], dtype=torch.float64) + self.extra
        return Answer(problem.polytope.round(order.expand(problem.shape)))


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch):
    """Declare entry points of a package that is not there, and the module they point to."""

    def declare(*points: tuple[str, str]) -> None:
        module = types.ModuleType("outside_package")
        vars(module).update(Last=Last, number=3)
        monkeypatch.setitem(sys.modules, "outside_package", module)
        found = EntryPoints(
            EntryPoint(name, f"outside_package:{value}", "relaxprune.solvers") for name, value in points
        )
        monkeypatch.setattr(registry, "entry_points", lambda group: found.select(group=group))

    return declare


def test_the_built_in_names():
    assert solver_names()[: len(BUILT_IN)] == BUILT_IN
    for name, summary in available_solvers().items():
        assert solver_class(name).name == name and summary == solver_class(name).summary
        assert summary and "\n" not in summary


def test_names_cost_no_import_of_a_solver(tmp_path):
    code = (
        "import sys; from relaxprune.solvers import solver_names; solver_names();"
        "assert not [m for m in sys.modules if m.startswith('relaxprune.solvers.frank') or m == 'cvxpy']"
    )
    # Not from the repository root: there the folder would shadow the package.
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=tmp_path)


def test_a_solver_of_another_package_is_found(outside):
    outside(("last", "Last"))
    assert solver_names() == [*BUILT_IN, "last"] and available_solvers()["last"] == "keep the last columns"
    problem = MaskProblem(torch.ones(2, 4), torch.eye(4), KSparse(1))
    solution = solve(problem, "last", extra=2, polish=None)
    assert solution.mask.tolist() == [[False, False, False, True]] * 2
    assert solution.solver == "last" and solution.options == {"extra": 2}
    assert solution.lower_bound <= solution.objective


def test_what_a_run_records_of_the_packages_that_a_solver_depends_on(tmp_path, monkeypatch):
    info = tmp_path / "last_solver-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: last-solver\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[relaxprune.solvers]\nlast = last_package:Last\n")
    module = types.ModuleType("last_package")
    vars(module).update(Last=Last)
    monkeypatch.setitem(sys.modules, "last_package", module)
    monkeypatch.syspath_prepend(tmp_path)
    for solver, option, expected in (
        ("fw", {}, ()),
        ("cvxpy", {}, ("cvxpy", "clarabel")),
        ("cvxpy", {"backend": "HIGHS"}, ("cvxpy", "highspy")),
        ("exact", {}, ("pyscipopt",)),
        ("exact", {"backend": "daqp"}, ("daqp",)),
        ("last", {}, ("last-solver",)),
    ):
        request = PruneRequest.of(Target(sparsity=0.5), solver, solver_options=option)
        assert request.distributions == expected
        recorded = software_versions(request.distributions)
        assert set(expected) == set(recorded) - set(software_versions())
    assert recorded["last-solver"] == "1.5"
    assert software_versions(["no-such-distribution"])["no-such-distribution"] == "unknown"


def test_its_name_is_suggested_too(outside):
    outside(("last", "Last"))
    with pytest.raises(RelaxPruneError, match="did you mean 'last'"):
        make_solver("lasst")


@pytest.mark.parametrize("points", [[("fw", "Last")], [("last", "Last"), ("last", "Last")]])
def test_a_name_cannot_be_declared_twice(outside, points):
    outside(*points)
    with pytest.raises(RelaxPruneError, match="is declared twice"):
        solver_names()
    assert solver_class("fw").name == "fw"


def test_what_is_not_a_solver_is_refused(outside):
    outside(("number", "number"))
    with pytest.raises(RelaxPruneError, match=r"solver 'number' must be a subclass of .*Solver with a name, got 3"):
        make_solver("number")


def test_an_instance_is_used_as_it_is():
    solver = make_solver("ria", power=1.0)
    assert make_solver(solver) is solver
    problem = MaskProblem(torch.randn(3, 6), torch.eye(6), KSparse(2))
    assert torch.equal(solve(problem, solver).mask, solve(problem, "ria", power=1.0).mask)
    with pytest.raises(RelaxPruneError, match="solver is an instance, which carries its own options; got power"):
        make_solver(solver, power=0.5)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "fww",
            {},
            f"solver is 'fww'; known solvers are {', '.join(BUILT_IN)}; did you mean 'fw'?",
        ),
        ("sparse-fw", {}, "did you mean 'sparsefw'?"),
        (3, {}, "solver must be a name or a Solver instance, got int"),
        (None, {}, "solver must be a name or a Solver instance, got NoneType"),
        ("sparsefw", {"alhpa": 0.5}, "solver 'sparsefw' has no option 'alhpa'; did you mean 'alpha'?"),
        ("wanda", {"power": 1.0}, "solver 'wanda' has no option 'power' (its options are none)"),
        ("fw", {"dtype": "float16"}, "dtype must be one of float32, float64, got"),
        ("fw", {"momentum": 1.0}, "momentum must lie in [0, 1)"),
        ("fw", {"momentum": float("nan")}, "momentum must be a finite number"),
        ("fw", {"smoothing": -0.1}, "smoothing must lie in [0, 1)"),
        ("fw", {"convex_share": 1.5}, "convex_share must lie in [0, 1"),
        ("fw", {"convex_share": "half"}, "convex_share"),
        ("fw", {"anneal": "no"}, "anneal"),
        ("sparsefw", {"alpha": 2}, "alpha is the share of kept weights to fix and must lie in [0, 1], got 2"),
        ("sparsefw", {"alpha": "most"}, "alpha"),
        ("sparsefw", {"saliency": "wandda"}, "saliency must be one of magnitude, wanda, ria"),
        ("ria", {"power": "x"}, "power"),
        ("ria", {"power": float("nan")}, "power"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(name, options, words):
    with pytest.raises(RelaxPruneError) as refused:
        make_solver(name, **options)
    message = str(refused.value)
    assert words in message and "\n" not in message
    assert "not supported between" not in message, "Python's words, not the user's"
