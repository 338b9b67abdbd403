"""Certificates of a pruning run: what is proven, what is reported, and what the run folder keeps."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch

from relaxprune.certificates import load_certificate
from relaxprune.cli import main
from relaxprune.models.layer_roles import role_of, summarise
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.layer_certificates import solver_for
from relaxprune.pruning.pipeline import prune_model
from relaxprune.runs.certificate_files import CertificateFiles
from relaxprune.runs.run_folder import RunFolder
from relaxprune.solvers import make_solver

from ..record_keys import documented_keys, keys_of
from ..tiny_llama import save_tiny_llama, write_text
from ..tiny_models import padded_batches, tiny_model

ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYER = "*.0.self_attn.q_proj"
TOKENS = ("--windows", "4", "--length", "32", "--max-iterations", "12", "--threads", "1")


class Keeper:
    """A recorder that keeps certificates, and says in which order things were saved."""

    def __init__(self):
        self.certificates, self.saved = {}, []

    def load(self, block_index):
        return None

    def save(self, block_index, record):
        self.saved.append(block_index)

    def save_certificate(self, parameter, certificate, problem):
        self.certificates[parameter] = (certificate, problem)
        self.saved.append(parameter)


@pytest.fixture(autouse=True)
def _threads():
    """Work with one thread: for matrices this small, threads that wait for each other are all that takes time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pruned(certify, solver="fw", include=(LAYER,), rows=None, **solver_options):
    keeper = Keeper()
    options = PruneOptions(include=include, certify=certify, certify_rows=rows, max_iterations=12)
    if solver == "wanda":
        options = PruneOptions(include=include, certify=certify, certify_rows=rows)
    report = prune_model(
        tiny_model("llama"), padded_batches(4), sparsity=0.5, solver=solver, options=options, recorder=keeper,
        **solver_options,
    )  # fmt: skip
    return report, keeper


@pytest.mark.parametrize(("method", "rows", "covered"), [("fw", None, 32), ("diagonal", None, 32), ("sdp", 3, 3)])
def test_the_report_has_the_numbers_of_the_certificate(method, rows, covered):
    report, keeper = pruned(method, rows=rows)
    (layer,) = report.layers
    certificate, problem = keeper.certificates[layer.parameter]
    assert keeper.saved == [layer.parameter, 0], "a block counts once its certificates are kept"
    assert (layer.bound.certificate, layer.bound.certified_rows) == (method, covered)
    assert (certificate.method, certificate.rows_covered) == (method, covered)
    assert (layer.lower_bound, layer.gap) == (certificate.lower_bound, certificate.gap)
    assert layer.relative_gap == certificate.relative_gap
    assert layer.objective == certificate.objective >= certificate.lower_bound
    assert torch.equal(certificate.mask, report.masks[layer.parameter])
    assert problem.polytope.kept((32, 32)) == 512
    way = layer.loss.wanda_objective - layer.lower_bound
    assert layer.proven_share == (layer.loss.wanda_objective - layer.objective) / way
    assert 0 < layer.proven_share < 1
    assert layer.bound.certificate_seconds == certificate.seconds
    assert (layer.bound.estimated_gap is not None) == (rows is not None)
    if rows is not None:
        assert layer.bound.estimated_gap < layer.relative_gap, "the rows that were not drawn prove less"
        assert f"{layer.bound.estimated_gap:.4f}" in str(report)
    assert report.options["certify"] == method
    assert report.options["solver_options"]["tighten"] == ("none" if method == "fw" else "diagonal")


def test_better_methods_prove_more():
    bounds = {}
    for method in (None, "fw", "diagonal", "sdp"):
        layer = pruned(method, rows=4 if method == "sdp" else None, tighten="none")[0].layers[0]
        bounds[method] = layer.relative_gap
    assert bounds[None] == bounds["fw"] > bounds["diagonal"] and bounds["fw"] > bounds["sdp"]


def test_without_certificates_the_bound_is_the_solvers_own():
    report, keeper = pruned(None)
    (layer,) = report.layers
    assert (layer.bound.certificate, layer.bound.certified_rows, keeper.certificates) == (None, None, {})
    assert layer.proven_share > 0 and "certified" not in str(report)


def test_a_solver_without_a_relaxation_is_certified_too():
    own, certified = pruned(None, "wanda")[0].layers[0], pruned("fw", "wanda")[0].layers[0]
    assert own.lower_bound < certified.lower_bound <= certified.objective == own.objective
    assert certified.proven_share == 0


def test_the_tightened_pass_is_the_convex_phase_unless_the_user_says_otherwise():
    fw = make_solver("fw")
    assert solver_for("diagonal", fw).options()["tighten"] == "diagonal"
    assert solver_for("sdp", make_solver("fw", momentum=0.5)).options()["momentum"] == 0.5
    assert solver_for("fw", fw) is fw and solver_for(None, fw) is fw
    assert solver_for("diagonal", fw, {"tighten": "none"}) is fw
    wanda = make_solver("wanda")
    assert solver_for("sdp", wanda) is wanda
    report, _ = pruned("diagonal", tighten="none")
    assert report.options["solver_options"]["tighten"] == "none" and report.layers[0].bound.certificate == "diagonal"


def test_roles_share_a_line():
    assert [role_of(name) for name in ("a.0.mlp.up_proj", "experts.3", "2", "")] == ["up_proj", "experts", "2", ""]
    report, _ = pruned("fw", include=("*.0.*",))
    assert [item.role for item in report.roles] == list(ROLES)
    gaps = summarise([("0.a", 0.25, 0.2, 0.5), ("1.a", 0.75, 0.4, None), ("0.b", 0.5, None, None)])
    assert [(item.layers, item.mean_relative_gap, item.mean_proven_share) for item in gaps] == [
        (2, 0.5, 0.5), (1, 0.5, None),
    ]  # fmt: skip
    assert gaps[0].mean_estimated_gap == pytest.approx(0.3) and gaps[1].mean_estimated_gap is None
    lines = [line.split() for line in str(report).splitlines()]
    head, line = lines[(start := next(n for n, line in enumerate(lines) if line[:1] == ["certified"])) : start + 2]
    item = report.roles[0]
    assert head == ["certified", "layers", "proven", "share", "gap", "gap,", "estimated"]
    assert line == ["q_proj", "1", f"{item.mean_proven_share:.4f}", f"{item.mean_relative_gap:.4f}", "-"]
    assert report.to_dict()["roles"][0]["mean_proven_share"] == report.layers[0].proven_share


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"certify": "diagnal"}, "did you mean 'diagonal'"),
        ({"certify": "exact"}, "fw, diagonal, sdp"),
        ({"certify": "sdp", "certify_rows": 0}, "certify_rows must be a whole number of at least 1"),
        ({"certify": "sdp", "certify_rows": 2.5}, "whole number"),
        ({"certify": "fw", "certify_rows": 4}, "does not use"),
        ({"certify_rows": 4}, "does not use"),
    ],
)
def test_wrong_values_are_refused(values, words):
    with pytest.raises(RelaxPruneError, match=words):
        PruneOptions(**values)


def test_rows_by_default():
    assert PruneOptions(certify="sdp").rows_to_certify == 32
    assert PruneOptions(certify="diagonal").rows_to_certify is None
    assert PruneOptions(certify="diagonal", certify_rows=5).rows_to_certify == 5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    save_tiny_llama(folder / "tiny", blocks=2)
    write_text(folder / "text.txt")
    return folder


def arguments(place: Path, *more: str) -> list[str]:
    source = [str(place / "tiny"), "--calibration", str(place / "text.txt")]
    return ["prune", *source, "--sparsity", "0.5", *TOKENS, *more]


@pytest.fixture(scope="module")
def finished(place):
    """A run that was interrupted after its first block and resumed."""
    out = place / "out"
    words = [*arguments(place, "--out", str(out)), "--certify", "diagonal", "--certify-rows", "8"]
    save = RunFolder.save_certificate

    def stop(self, parameter, *proof):
        if ".layers.1.mlp.up_proj" in parameter:
            raise KeyboardInterrupt
        save(self, parameter, *proof)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save_certificate", stop)
        assert main(words) == 130
    assert len(list(out.glob(".relaxprune/*/certificates/*"))) == 12
    again = [word if word != "diagonal" else "sdp" for word in words]
    assert main([*again, "--resume"]) == 2
    kept = next(out.glob(".relaxprune/*/certificates/*.0.self_attn.q_proj*"))
    aside = kept.rename(out.parent / "aside")
    assert main([*words, "--resume"]) == 2
    aside.rename(kept)
    assert main([*words, "--resume"]) == 0
    return out


def test_a_resumed_run_ends_with_every_certificate(finished):
    record = json.loads((finished / "relaxprune.json").read_text())
    layers = record["report"]["layers"]
    names = {f"certificates/{layer['parameter']}.safetensors": layer for layer in layers}
    assert len(names) == 14 and set(names) <= set(record["files"]) and not (finished / ".relaxprune").exists()
    assert {path.name for path in (finished / "certificates").iterdir()} == {Path(name).name for name in names}
    for name, layer in names.items():
        certificate = load_certificate(finished / name)
        assert (certificate.lower_bound, certificate.relative_gap) == (layer["lower_bound"], layer["relative_gap"])
        assert (certificate.method, certificate.rows_covered) == ("diagonal", layer["rows"])
        # The tightened convex phase proved something of every row; the drawn ones only went on from there.
        assert (layer["certificate"], layer["certified_rows"]) == ("diagonal", layer["rows"])
    settings = record["fingerprint"]["settings"]
    assert (settings["certify"], settings["certify_rows"]) == ("diagonal", 8)
    assert (
        settings["solver_options"]["tighten"] == record["report"]["options"]["solver_options"]["tighten"] == "diagonal"
    )
    found, documented = keys_of(record), documented_keys()
    assert [key for key in sorted(found) if not any(fnmatchcase(key, known) for known in documented)] == []


def test_a_changed_certificate_is_found(place, finished, capsys):
    path = next((finished / "certificates").iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    words = arguments(place, "--out", str(finished), "--certify", "diagonal", "--certify-rows", "8", "--resume")
    assert main(words) == 2 and path.name in capsys.readouterr().err
    path.write_bytes(whole)
    assert main(words) == 0


def test_what_the_command_line_says_and_refuses(place, capsys):
    assert main(arguments(place, "--plan", "--certify", "sdp")) == 0
    assert "certificates: sdp, at most 32 rows drawn per layer, the others by cheaper methods; fw with" in (
        capsys.readouterr().out
    )
    assert main(arguments(place, "--plan", "--certify", "diagonal", "--option", "tighten=none")) == 0
    assert "certificates: diagonal, every row\n" in capsys.readouterr().out
    assert main(arguments(place, "--out", str(place / "never"), "--certify", "best")) == 2
    assert main(arguments(place, "--out", str(place / "never"), "--certify-rows", "3")) == 2
    told = capsys.readouterr()
    assert len(told.err.strip().splitlines()) == 2 and "loading" not in told.out and not (place / "never").exists()


def test_a_missing_or_foreign_certificate_is_found(tmp_path, finished):
    files = CertificateFiles(finished, tmp_path)
    assert files.missing(["model.layers.0.mlp.up_proj.weight", "no/such.weight"]) == ["no/such.weight"]
    with pytest.raises(RelaxPruneError, match="is not the certificate"):
        files.check(pruned("fw")[0].layers)
    with pytest.raises(RelaxPruneError, match="does not exist"):
        CertificateFiles(tmp_path, tmp_path).check(pruned("fw")[0].layers)
