"""``openvino``: an IR whose pruned weights are 8-bit integers with a scale for each row, zeros exactly zero.

``openvino_model.xml`` and ``.bin`` map token ids (batch, length) to logits, without a cache; every other tensor is in
float32. ``cpu.json`` holds the properties that the CPU plugin is compiled with, as ``benchmark_app -load_config`` reads
them: ``CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE``, the least share of zeros among the converted weights, and
``DYNAMIC_QUANTIZATION_GROUP_SIZE`` 0: by default the plugin rounds the inputs of such layers to 8 bits, 32 at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.durable import write_json
from relaxprune.support.json_files import Values, misfit, read_json
from relaxprune.support.sentences import damaged, first_line

from .openvino_graph import (
    MOST,
    constant_bytes,
    dense,
    digest,
    float_constants,
    integer_constants,
    quantised,
    replace,
    silent_openvino,
    traced,
)
from .target import ConvertedModel, Job, Target, copy_description

_MODEL, _CONFIG = "openvino_model.xml", "cpu.json"
_RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
_INPUT_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"


class OpenVino(Target):
    """OpenVINO's IR with 8-bit weights."""

    name = "openvino"
    summary = "OpenVINO IR with 8-bit weights and their zeros, for its CPU plugin"
    package = "openvino"
    extra = "openvino"
    kinds: ClassVar[Mapping[str, str]] = {"Linear": "nn.Linear", "Conv1D": "Conv1D"}
    tolerance = 0.001
    explains = "sums in another order"
    besides = "8-bit weights and another runtime"
    dense_bits = 16  # the graph is traced in 32, which is no gain of the form

    def dtype(self, stored: torch.dtype) -> torch.dtype:
        """Return float32, in which the graph is traced."""
        return torch.float32

    def write(self, job: Job, folder: Path) -> None:
        """Trace the model, quantise its pruned weights in the graph, and save it."""
        copy_description(job.run.path, folder)
        graph = traced(job.model)
        shares = []
        wanted = {digest(layer.matrix()): layer for layer in job.layers}  # openvino turns stored transposes around
        for node in float_constants(graph, {layer.shape for layer in job.layers}):
            values = torch.from_numpy(node.data.copy())
            layer = wanted.get(digest(values))
            if layer is not None:
                integers, scale = quantised(values)
                replace(node, layer.parameter, integers, scale)
                shares.append(float((integers == 0).double().mean()))
        found = {node.get_friendly_name() for node in graph.get_ops()}
        lost = [layer.parameter for layer in job.layers if layer.parameter not in found]
        if lost:
            raise RelaxPruneError(
                f"openvino's graph does not hold {lost[0]!r} as it is: exclude it, or report this model"
            )
        silent_openvino().save_model(graph, folder / _MODEL, compress_to_fp16=False)
        rate = f"{math.floor(100 * min(shares)) / 100:.2f}"
        write_json(folder / _CONFIG, {"CPU": {_RATE: rate, _INPUT_GROUP: "0"}})

    def files(self, folder: Path) -> list[Path]:
        """Return the graph and its constants."""
        return [folder / _MODEL, (folder / _MODEL).with_suffix(".bin")]

    def read(self, folder: Path, device: torch.device) -> ConvertedModel:
        """Read the IR and compile it for the CPU."""
        if device.type != "cpu":
            raise RelaxPruneError(f"target openvino runs on its CPU plugin, got device {device}: give cpu")
        config = read_json(folder / _CONFIG).get("CPU")
        if misfit(config, Values(str)):
            raise damaged(repr(str(folder / _CONFIG)), "it holds no properties of the CPU plugin")
        openvino = silent_openvino()
        try:
            graph = openvino.Core().read_model(folder / _MODEL)
            settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
            compiled = openvino.Core().compile_model(graph, "CPU", {**settings, **(config or {})})
        except RuntimeError as error:
            raise damaged(repr(str(folder / _MODEL)), first_line(error)) from error
        return ConvertedModel(
            logits=lambda tokens: torch.from_numpy(compiled(tokens.numpy())[0].copy()),
            weights={name: partial(dense, graph, node) for name, node in integer_constants(graph).items()},
            memory_bytes=constant_bytes(graph),
            kernel="openvino CPU plugin",
        )

    def rounding(self, weight: Tensor) -> Tensor:
        """Return half a step of the row's scale, and some roundings of float32."""
        size = weight.double().abs()
        return size.amax(dim=1, keepdim=True) / MOST / 2 + 4 * torch.finfo(torch.float32).eps * size
