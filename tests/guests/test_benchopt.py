"""The benchopt benchmark "layer mask selection": its own commands run it, and a rival's solver joins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("benchopt") is None:
    pytest.skip("benchopt has an environment of its own: make test-guests", allow_module_level=True)

import numpy as np
import pandas
from safetensors.numpy import save_file

from relaxprune import KSparse, solve
from relaxprune.runs import read_problem_file

BENCHMARK = Path(__file__).resolve().parents[2] / "docs/benchmarks/benchopt"
BENCHOPT = [sys.executable, "-m", "benchopt"]
RIVAL = """
from benchopt import BaseSolver
import numpy as np

class Solver(BaseSolver):
    name = "Rival"
    sampling_strategy = "run_once"
    parameters = {"kept": [24, 25]}

    def set_objective(self, weight, gram, polytope, problem):
        self.weight = weight

    def run(self, _):
        self.mask = np.argsort(np.argsort(-np.abs(self.weight), axis=1), axis=1) < self.kept

    def get_result(self):
        return {"mask": self.mask}
"""


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A copy of the benchmark, into which it writes."""
    return shutil.copytree(BENCHMARK, tmp_path / "benchmark", ignore=shutil.ignore_patterns("outputs", "__cache__"))


def call(words: list[str], folder: Path) -> None:
    """Run the host in a process of its own, with its programs before others of the same names."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*BENCHOPT, *words], cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def results(benchmark: Path, *words: str) -> pandas.DataFrame:
    """Run the benchmark and return its table."""
    call(["run", str(benchmark), *words, "--n-repetitions", "1", "--no-plot", "--no-html"], benchmark.parent)
    (file,) = (benchmark / "outputs").glob("*.parquet")
    return pandas.read_parquet(file)


def layer(folder: Path) -> Path:
    """Write a problem file as other programs do, without metadata."""
    generator = np.random.default_rng(3)
    inputs = generator.standard_normal((200, 48)) @ generator.standard_normal((48, 48))
    tensors = {"weight": generator.standard_normal((8, 48)), "gram": inputs.T @ inputs / 200}
    save_file(tensors, folder / "layer.safetensors")
    return folder / "layer.safetensors"


def test_solvers_are_judged_on_a_file_by_one_bound(benchmark: Path) -> None:
    path = layer(benchmark.parent)
    (benchmark / "solvers" / "rival.py").write_text(RIVAL)
    found = results(
        benchmark, "-d", f"Problem-file[path={path},sparsity=0.5]", "-s", "Wanda", "-s", "Rival", "-s",
        "relaxprune[solver=[fw,swap]]", "--max-runs", "3",
    )  # fmt: skip
    last = found.sort_values("stop_val").groupby("solver_name").last()
    problem = read_problem_file(path).mask_problem(KSparse(24))
    value = last["objective_value"]
    assert value["Wanda"] == pytest.approx(solve(problem, "wanda").relative_error)
    assert value["Rival[kept=24]"] == pytest.approx(solve(problem, "magnitude").relative_error)
    assert np.isnan(value["Rival[kept=25]"])  # its mask is not in the set
    curve = found[found["solver_name"] == "relaxprune[polish=auto,solver=fw]"]
    assert sorted(curve["stop_val"]) == [0, 10, 20, 40]
    assert (
        curve["objective_value"].max() == pytest.approx(value["Wanda"])
        and curve["objective_value"].min() < 0.8 * (value["Wanda"])
    )
    judged = found[found["objective_value"].notna()]
    (bound,) = set(judged["objective_lower_bound"])
    assert 0 < bound <= judged["objective_objective"].min()
    assert bound <= solve(problem, "ils", time_limit_s=1.0).objective
    assert judged["objective_sparsity"].eq(0.5).all()


def test_the_host_s_own_tests(benchmark: Path) -> None:
    call(["test", str(benchmark), "--skip-install"], benchmark.parent)
