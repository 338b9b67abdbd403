"""A model as a graph of openvino: traced, its constants found, and some of them replaced by 8-bit integers."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.sentences import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST = 127  # of a symmetric 8-bit integer
_TELEMETRY = "openvino_telemetry"


def silent_openvino() -> Any:
    """Import openvino and return it, without its telemetry.

    Importing it sends statistics to its makers without asking; where ``openvino_telemetry`` cannot be imported, it has
    stand-ins that send nothing.
    """
    modules: dict[str, Any] = sys.modules  # None in it: cannot be imported
    if "openvino" not in modules and _TELEMETRY not in modules:
        modules[_TELEMETRY] = None
        try:
            import_module("openvino")
        finally:
            del modules[_TELEMETRY]
    return import_module("openvino")


class _Logits(nn.Module):
    """A model as a function from token ids to logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Any:
        return self.model(input_ids=input_ids, use_cache=False).logits


def traced(model: PreTrainedModel) -> Any:
    """Return openvino's graph of a model, for any number of windows of any length.

    By its front end: ``openvino.convert_model`` also sends statistics to its makers.
    """
    silent_openvino()
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    free = torch.export.Dim.DYNAMIC
    example = torch.arange(24).reshape(2, 12) % 7
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                _Logits(model), (example,), dynamic_shapes=({0: free, 1: free},), strict=False
            )
            front = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchFXPythonDecoder.from_exported_program(program)  # has to be there until the graph is
            graph = front.convert(front.load(decoder))
            apply_moc_transformations(graph, cf=False, smart_reshape=True)  # as convert_model does
            return graph
    except Exception as error:  # tracing raises whatever the model's code and two libraries raise
        raise RelaxPruneError(f"openvino cannot take this model: {first_line(error)}") from error


def float_constants(graph: Any, shapes: set[tuple[int, int]]) -> Iterator[Any]:
    """Yield the float32 constants of a graph that have one of these shapes."""
    for node in list(graph.get_ops()):
        if _element(node) == "f32" and tuple(node.get_output_shape(0)) in shapes:
            yield node


def quantised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight (rows, cols) as 8-bit integers and a float32 scale for each row."""
    scale = values.abs().amax(dim=1, keepdim=True) / MOST
    scale = torch.where(scale > 0, scale, 1.0)
    return torch.round(values / scale).to(torch.int8), scale


def replace(node: Any, name: str, integers: Tensor, scale: Tensor) -> None:
    """Put integers times a scale in the place of a constant; the integers get the weight's name."""
    from openvino import opset13 as operations

    constant = operations.constant(integers.numpy())
    constant.set_friendly_name(name)
    users = list(node.output(0).get_target_inputs())
    product = operations.multiply(operations.convert(constant, "f32"), operations.constant(scale.numpy()))
    for user in users:
        user.replace_source_output(product.output(0))


def integer_constants(graph: Any) -> dict[str, Any]:
    """Return the 8-bit constants of a graph by the names of their weights."""
    return {node.get_friendly_name(): node for node in graph.get_ops() if _element(node) == "i8"}


def constant_bytes(graph: Any) -> int:
    """Return the bytes of all constants of a graph."""
    return sum(node.data.nbytes for node in graph.get_ops() if _element(node))


def _element(node: Any) -> str:
    """Return the element type of a constant; "" for any other node."""
    return str(node.get_output_element_type(0).get_type_name()) if node.get_type_name() == "Constant" else ""


def dense(_graph: Any, node: Any) -> Tensor:
    """Return what an 8-bit constant and its scale stand for, (rows, cols) float32.

    Args:
        _graph: what the constant is in; a node knows what uses it only as long as its graph is there.
        node: the constant.
    """
    convert = next(iter(node.output(0).get_target_inputs())).get_node()
    product = next(iter(convert.output(0).get_target_inputs())).get_node()
    scale = product.input_value(1).get_node()
    integers, scales = torch.from_numpy(node.data.copy()), torch.from_numpy(scale.data.copy())
    return integers.float() * scales


def digest(tensor: Tensor) -> bytes:
    """Return a hash of a float32 tensor's values."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).digest()
