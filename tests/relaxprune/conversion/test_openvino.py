"""The IR of openvino, read back by openvino itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from relaxprune.conversion import convert_run
from relaxprune.conversion.openvino_graph import silent_openvino
from relaxprune.conversion.registry import make_target
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.runs import read_masks

if find_spec("openvino") is None:
    pytest.skip("openvino is not installed: pip install 'relaxprune[openvino]'", allow_module_level=True)


def test_nothing_is_sent(tmp_path: Path) -> None:
    """Importing openvino makes an identity for its statistics in the home folder, before it sends them."""
    code = "from relaxprune.conversion.openvino_graph import silent_openvino as get; import sys; get().Core(); import"
    words = [sys.executable, "-P", "-c", f"{code} openvino_telemetry; assert 'openvino' in sys.modules"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)}, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*"))


def test_integers_zeros_and_logits(runs: Path, tmp_path: Path) -> None:
    found = convert_run(runs / "half", "openvino", tmp_path / "out")
    assert found.layers == 7 and found.from_dense.relative < 0.01
    stored, masks = load_file(runs / "half" / "model.safetensors"), read_masks(runs / "half")
    graph = silent_openvino().Core().read_model(tmp_path / "out" / "openvino_model.xml")
    integers = {node.get_friendly_name(): torch.from_numpy(node.data.copy()) for node in graph.get_ops()
                if node.get_type_name() == "Constant" and node.get_friendly_name() in masks}  # fmt: skip
    assert set(integers) == set(masks)
    for name, mask in masks.items():
        assert integers[name].dtype == torch.int8 and not integers[name][~mask].any()
        step = stored[name].abs().amax(1, keepdim=True) / 127
        assert ((integers[name] * step - stored[name]).abs() <= 0.51 * step).all()
    rate = float(
        json.loads((tmp_path / "out" / "cpu.json").read_text())["CPU"]["CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"]
    )
    assert rate == pytest.approx(min(float((each == 0).double().mean()) for each in integers.values()), abs=0.01)
    with pytest.raises(RelaxPruneError, match="runs on its CPU plugin"):
        make_target("openvino").read(tmp_path / "out", torch.device("meta"))
