"""What ``relaxprune plan`` says of a run: judged by hand, by solvers, and by the plan of real weights."""

from __future__ import annotations

import itertools
import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from relaxprune import PruneOptions, plan_model
from relaxprune.cli import main
from relaxprune.costs import Machine, Rates
from relaxprune.costs.counting import counted
from relaxprune.forecast import TextShape, forecast_run
from relaxprune.forecast.solver_work import SolverWork
from relaxprune.models.blocks import NO_BLOCKS
from relaxprune.options import ObjectiveOptions, Target
from relaxprune.options.target import Decided
from relaxprune.pruning import PruneRequest, make_plan
from relaxprune.pruning.made_up import made_up_gram, made_up_inputs, made_up_layer
from relaxprune.pruning.mask_solver import MaskSolver

from ..command_line import only_sentence, run_process
from ..tiny_models import config_of, tiny_model

LARGE = Path(__file__).parent / "llama-3-70b"
GIVEN = ["--flops", "5e13", "--bandwidth", "3e12"]
RATES = Rates(flops=1e12, half_flops=1e12, bandwidth=1e12, launch_seconds=0.0)
TEXT = TextShape(windows=6, length=12, at_once=2)
QUICK = {"max_iterations": 8}


def found_for(family="llama", solver="wanda", options=None, machine=None, text=TEXT, clock=None, **target):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config_of(family)).eval()
    request = PruneRequest.of(Target(**(target or {"sparsity": 0.5})), solver, PruneOptions(**(options or {})))
    plan = make_plan(model, request, text.tokens, values=False)
    clocks = {} if clock is None else {"clock": clock}
    return forecast_run(plan, text, machine or Machine(rates=RATES), **clocks)


def test_llama_by_hand():
    """Three blocks of q, k, v, o, gate, up, down; three Grams of 32 columns and one of 48 in each; 72 tokens."""
    found = found_for()
    attention = 2 * 2 * 12 * 32  # scores and values, of each token and block
    blocks = 3 * (2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48) + attention) * 72
    rotary = 0.01 * blocks
    assert found.work["propagate"].flops == pytest.approx(blocks, abs=rotary)
    assert found.work["statistics"].flops - found.work["propagate"].flops == 3 * 2 * 72 * (3 * 32**2 + 48**2)
    assert found.total_seconds == sum(found.seconds.values())
    assert "propagate" in str(found) and "chosen" in str(found)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_the_plan_is_that_of_a_model_with_weights(family):
    found, real = (
        found_for(family, pattern="2:4"),
        plan_model(tiny_model(family), pattern="2:4", solver="wanda", tokens=72),
    )
    assert found.plan.layers == real.layers and found.plan.matrices == real.matrices
    assert found.plan.memory.added == real.memory.added and found.plan.memory.model == real.memory.model


def test_options_change_their_stages_only():
    plain = found_for(solver="reconstruct", options={"weights": "refit"})
    twice = found_for(solver="reconstruct", options={"weights": "refit", "correct": 0.5})
    tuned = found_for(solver="reconstruct", options={"weights": "refit", "tune": 2, "refine": 1})
    assert twice.work["propagate"].flops == 2 * plain.work["propagate"].flops
    assert twice.work["statistics"].flops > 2 * plain.work["statistics"].flops
    assert {name: tuned.work[name] for name in plain.work} == plain.work and tuned.seconds["tune"] > 0
    assert tuned.work["refine"].flops > 6 * plain.work["propagate"].flops
    shared = found_for(options=QUICK, solver="fw", sparsity=0.5)
    assert "allocate" not in shared.work


def test_devices_divide_what_can_be_divided():
    one, eight = (found_for(machine=Machine(rates=RATES, devices=count, network=1e9)) for count in (1, 8))
    assert eight.work == one.work and one.sent == {"statistics": 0, "solve": 0}
    assert eight.seconds["solve"] == pytest.approx(one.seconds["solve"] / 8 + eight.sent["solve"] / 8 / 1e9)
    # Three batches are on three devices, and each proves by itself that blocks may be replayed.
    assert one.seconds["capture"] / 3 < eight.seconds["capture"] < one.seconds["capture"]
    assert eight.seconds["propagate"] == pytest.approx(one.seconds["propagate"] / 3)
    sent = 2 * 7 * 8 * 3 * (3 * 32**2 + 48**2)
    assert eight.sent["statistics"] == sent
    assert eight.seconds["statistics"] == pytest.approx(one.seconds["statistics"] / 3 + sent / 8 / 1e9)


def test_the_memory_is_that_of_one_of_the_devices():
    moves = {"solver": "reconstruct", "options": {"weights": "refit"}}
    kept, one, eight = (
        found_for(machine=Machine(rates=RATES, devices=count), **words).memory
        for count, words in ((1, {}), (1, moves), (8, moves))
    )
    assert one.records == 5 * kept.records == 3 * one.block_records  # a byte of a mask, and four of a new value
    assert one.states == 3 * one.batch_states
    assert eight == replace(one, states=one.batch_states, block_records=one.packed_records + one.block_records)
    tuned = found_for(machine=Machine(rates=RATES, devices=8), options={"tune": 1}).memory
    assert tuned.states == one.states


def test_weights_that_cannot_travel_stay_on_the_device():
    plan = found_for().plan
    found = (
        forecast_run(plan, TEXT, Machine(rates=RATES)),
        forecast_run(plan, TEXT, Machine(rates=RATES), whole="a .gguf file is dequantised as a whole"),
        forecast_run(replace(plan, blocks=NO_BLOCKS), TEXT, Machine(rates=RATES)),
    )
    places = [{need.residency.weights for need in one.residencies} for one in found]
    assert places == [{"device", "disk"}, {"device"}, {"device"}]
    reasons = [note for one in found for note in one.notes if note.startswith("weights stay on the device: ")]
    assert ["gguf" in reason for reason in reasons] == [True, False] and "no list of blocks" in reasons[1]


def test_windows_that_the_model_writes_count():
    own = found_for(text=TextShape(windows=6, length=12, at_once=2, sampled=2))
    assert own.work["sample"].flops == pytest.approx((found_for().work["propagate"].flops / 3), rel=0.2)


@pytest.mark.parametrize(
    ("solver", "words", "options", "target"),
    [
        ("fw", {"effort": "fast"}, {}, {"sparsity": 0.5}),
        ("fw", {"effort": "fast"}, {}, {"pattern": "2:4"}),
        ("sparsefw", {}, {"max_iterations": 200}, {"sparsity": 0.5}),
        ("sparsegpt", {}, {}, {"sparsity": 0.5}),
        ("reconstruct", {}, {}, {"sparsity": 0.6}),
        ("wanda", {}, {}, {"pattern": "1:4"}),
    ],
)
def test_a_solver_does_on_another_shape_what_is_scaled_to_it(solver, words, options, target):
    request = PruneRequest.of(Target(**target), solver, PruneOptions(**options), words)
    rows, cols = 40, 256
    layer, matrix = made_up_layer(rows, cols), made_up_gram(cols)
    with counted() as counter:
        MaskSolver(Decided(request.target), request.solver, request.options).solve(
            layer, made_up_inputs(matrix, layer, ObjectiveOptions()), 0
        )
    scaled = SolverWork(request).of(rows, cols)
    assert scaled.flops == pytest.approx(counter.work.flops, rel=0.35)
    assert scaled.bytes == pytest.approx(counter.work.bytes, rel=0.35)


def test_measured_rates_follow_the_clock():
    seconds = itertools.count()
    found = found_for(machine=Machine(), clock=lambda: float(next(seconds)))
    assert found.measured and found.rates.flops == 2 * 512 * 1024**2  # the product that is timed takes a second
    assert found.to_dict()["rates"]["measured"] is True


def test_what_is_not_predicted_is_said():
    notes = found_for(solver="ils").notes + found_for(options={"certify": "diagonal"}).notes
    assert "'ils' does not know how long it searches" in notes[0] and "'diagonal'" in notes[1]
    small = found_for(machine=Machine(rates=RATES, device_memory=1000))
    assert small.chosen is None and "memory must hold a block" in small.notes[-1]
    assert small.to_dict()["residency"] is None


def spent_in(folder, words):
    """A process of Python, and the processor time that it took: others may use the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_process(words, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_a_large_model_takes_seconds_and_little_memory(tmp_path):
    """Importing the model's class takes 3 of 5 seconds on an idle machine; on a busy one both take longer."""
    words = ["plan", str(LARGE), "--sparsity", "0.5", "--device-memory", "80GiB", "--host-memory", "500GiB", "--json"]
    program = (
        "import sys; from relaxprune.cli import main; code = main(sys.argv[1:]); "
        "from relaxprune.support import peak_memory_bytes; print(peak_memory_bytes(), file=sys.stderr); sys.exit(code)"
    )
    _, libraries = spent_in(tmp_path, ["-c", "import torch; from transformers import LlamaForCausalLM"])
    done, spent = spent_in(tmp_path, ["-c", program, *words, "--threads", "1"])
    assert spent < 5 / 3 * libraries
    assert int(done.stderr.split()[-1]) < 500 * 2**20
    found = json.loads(done.stdout)
    assert found["counts"] == {
        "layers": 560, "blocks": 80, "entries": 68_451_041_280, "kept": 34_225_520_640, "parameters": 70_553_706_496,
    }  # fmt: skip
    assert found["memory"]["model"] == 2 * 70_553_706_496
    assert found["residency"]["weights"] == "cpu" and found["seconds"] > 0


def test_only_the_configuration_is_read(tmp_path, capsys):
    config = config_of("llama")
    config.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]
    for place in (tmp_path, tmp_path / "config.json"):
        assert main(["plan", str(place), "--pattern", "2:4", "--effort", "fast", *GIVEN]) == 0
        out = capsys.readouterr().out
        assert "21 layers in 3 blocks" in out and "chosen" in out
    assert (
        main(["plan", str(tmp_path), "--sparsity", "0.5", "--recipe", "best", *GIVEN, "--json", "--devices", "2"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1 and found["model"] == str(tmp_path) and found["machine"]["devices"] == 2
    assert set(found["stages"]) == {"sample", "capture", "statistics", "solve", "propagate", "refine"}
    assert found["stages"]["statistics"]["network_bytes"] > 0 and found["request"]["solver"] == "reconstruct"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--flops", "1e12"], "--flops and --bandwidth must be given together"),
        (["--half-flops", "1e12"], "--flops and --bandwidth must be given together"),
        (["--flops", "0", "--bandwidth", "1"], "flops must be a positive number"),
        (["--device-memory", "much"], "--device-memory must be a size such as 24GiB"),
        (["--host-memory", "4GiB"], "--host-memory is given, but there is no --device-memory"),
        (["--network", "0"], "network must be a positive number"),
    ],
)
def test_refusals(words, sentence, tmp_path, capsys):
    config_of("llama").save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--sparsity", "0.5", *words]) == 2
    assert sentence in only_sentence(capsys)


def test_a_quantised_configuration_and_a_missing_one_are_refused(tmp_path, capsys):
    assert main(["plan", str(tmp_path), "--sparsity", "0.5"]) == 2
    assert "has no config.json" in only_sentence(capsys)
    config = config_of("llama").to_dict() | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plan", str(tmp_path), "--sparsity", "0.5"]) == 2
    assert "is quantised (gptq)" in only_sentence(capsys)
