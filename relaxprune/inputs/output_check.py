"""Whether a layer computes columns · Wᵀ + b with the weight that would be pruned, measured on the model's own passes.

A Gram of columns and a weight say what pruning costs only if their product is the layer's output. Subclasses, hooks and
re-parametrisations can come between, and a parent can use a weight without calling its module. None of that can be seen
from types, so each layer's output, as the layers after it get it, is compared with the product.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from relaxprune.models.layer_kinds import is_plain
from relaxprune.models.layers import PrunableLayer
from relaxprune.ranks.ranks import Ranks
from relaxprune.residency.homes import is_away
from relaxprune.residency.store import Whole, store_of

from .batches import Batch, run_model
from .gram_accumulator import CHUNK_TOKENS, exact_matmul
from .tree import flatten

NEVER_CALLED = "its parent uses the weight as a tensor; the module itself is never called"
USED_BESIDES = "its weight is also used as a tensor outside of its own forward pass"
_ROUNDINGS = 4.0  # of x, W, the output and the sum with b, each of relative size u
_SUMMATION = 8.0  # times √cols: how far partial sums drift, the probabilistic bound of Higham and Mary (2019)
_TF32 = 2.0**-11  # accelerators may round float32 to this before they multiply
# They take no values from the tensors they are given.
_VALUELESS = {"type_as", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}


class OutputCheck:
    """Compares the outputs of layers with the product of their inputs and weights, at their first calls.

    Entered, it listens until every layer was called; layers that the first pass misses are checked by a later one.

    Attributes:
        failed: layer name -> why its weight must not be pruned.
    """

    def __init__(self, layers: Sequence[PrunableLayer]) -> None:
        """Prepare for some layers; fused experts multiply with their matrices by construction (``ExpertListener``)."""
        self.failed: dict[str, str] = {}
        self._layers = [layer for layer in layers if layer.expert is None]
        self._called: set[str] = set()
        self._known: set[str] = set()  # of those called, by all ranks
        self._handles: dict[str, RemovableHandle] = {}
        self._first_pass = False

    def __enter__(self) -> OutputCheck:
        """Listen."""
        for layer in self._layers:
            hook = layer.module.register_forward_hook(partial(self._check, layer), with_kwargs=True)
            self._handles[layer.name] = hook
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop listening."""
        for handle in self._handles.values():
            handle.remove()

    def run(self, model: nn.Module, batch: Batch) -> None:
        """Put one batch through the model, and check every layer that it reaches."""
        uses = _Uses(self._layers, store_of(model))
        self._first_pass = True
        with exact_matmul(next(model.parameters()).device), uses.listening():
            run_model(model, batch)
        self._first_pass = False
        for name in self._called:
            self._handles[name].remove()
        for name in uses.elsewhere:
            self.failed[name] = USED_BESIDES if name in self._called else NEVER_CALLED

    def unite(self, ranks: Ranks) -> None:
        """Take in what other ranks have found on their batches; of several, what the first of them found."""
        if ranks.alone:
            return
        for told in ranks.exchange({name: self.failed.get(name) for name in sorted(self._called)}):
            for name, reason in told.items():
                if name not in self._known:
                    self._known.add(name)
                    self._called.add(name)
                    self._handles[name].remove()
                    if reason is None:
                        self.failed.pop(name, None)
                    else:
                        self.failed[name] = reason

    def _check(
        self, layer: PrunableLayer, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Check one call of a layer."""
        self._called.add(layer.name)
        if not self._first_pass:
            self._handles[layer.name].remove()
        inputs = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        reason = "it is called without a tensor" if inputs is None else unlike_product(layer, inputs, output)
        if reason is not None:
            self.failed.setdefault(layer.name, reason)


def unlike_product(layer: PrunableLayer, inputs: Tensor, output: Any) -> str | None:
    """Return how a layer's output differs from columns · Wᵀ + b by more than rounding explains, None where it does not.

    Args:
        layer: with the weight as it is.
        inputs: what its module was called with.
        output: what came out.

    With the units u of the coarsest dtype and v of the accumulation, the roundings of a token x are independent errors
    of relative size u in x, W, b and the output y, and of v √cols in partial sums. Added as variances they come to
    (4 u + 8 √cols v) s + 4 u (‖y‖ + ‖b‖) for the norm of the token's output, with s² = Σ_j x_j² ‖W_:j‖². Tokens that
    are not finite are left to the statistics, which refuse them.
    """
    if not isinstance(output, Tensor):
        return f"its output is a {type(output).__name__}, not columns · Wᵀ + b"
    with torch.no_grad(), exact_matmul(inputs.device):
        bias = getattr(layer.module, "bias", None)
        try:
            product = _product(layer, inputs, bias)
        except RuntimeError:  # another dtype under autocast, or a width that does not fit
            product = None
        if product is not None and torch.equal(product, output):
            return None
        try:
            columns, results = layer.columns(inputs).flatten(0, -2), _rows_last(layer, output).flatten(0, -2)
            fits = columns.shape[1] == layer.shape[1] and results.shape == (len(columns), layer.shape[0])
        except (RuntimeError, IndexError):
            fits = False
        if not fits or not inputs.is_floating_point() or not output.is_floating_point():
            return f"its output {tuple(output.shape)} is not columns · Wᵀ + b, for inputs {tuple(inputs.shape)}"
        return _difference(layer, columns, results, bias)


def _product(layer: PrunableLayer, inputs: Tensor, bias: Tensor | None) -> Tensor:
    """Return columns · Wᵀ + b as torch and transformers compute it, in the layer's own shape and dtype."""
    weight = layer.stored
    if layer.kind == "Conv2d":
        conv: Any = layer.module
        images: Tensor = nn.Conv2d._conv_forward(conv, inputs, weight, bias)
        return images
    if layer.kind == "Conv1D" and bias is not None:
        flat = torch.addmm(bias, inputs.reshape(-1, inputs.shape[-1]), weight)
        return flat.view(*inputs.shape[:-1], flat.shape[-1])
    return functional.linear(inputs, layer.matrix(), bias)


def _rows_last(layer: PrunableLayer, output: Tensor) -> Tensor:
    """Return a layer's output with its rows in the last dimension, in the order of ``layer.columns``."""
    if layer.kind != "Conv2d":
        return output
    images = output if output.dim() == 4 else output.unsqueeze(0)
    return images.flatten(2).transpose(1, 2)


def _difference(layer: PrunableLayer, columns: Tensor, results: Tensor, bias: Tensor | None) -> str | None:
    """Say by how much (tokens, rows) results differ from the product in float64, where rounding does not explain it."""
    weight = layer.matrix().detach().cpu().double()
    energies = weight.square().sum(dim=0)  # (cols,)
    offset = torch.zeros(()) if bias is None else bias.detach().cpu().double()
    parts = (columns.dtype, layer.weight.dtype, results.dtype)
    unit = max(torch.finfo(dtype).eps for dtype in parts) / 2
    if columns.device.type != "cpu" and unit < _TF32:
        unit = _TF32
    drift = _SUMMATION * math.sqrt(layer.shape[1]) * max(torch.finfo(torch.float64).eps, min(unit, 2.0**-24))
    for start in range(0, len(columns), CHUNK_TOKENS):
        some = slice(start, start + CHUNK_TOKENS)
        inputs, found = columns[some].detach().cpu().double(), results[some].detach().cpu().double()
        finite = inputs.isfinite().all(dim=1) & found.isfinite().all(dim=1)
        inputs, found = inputs[finite], found[finite]
        exact = inputs @ weight.T + offset
        scale = (inputs.square() @ energies).sqrt()
        bound = (_ROUNDINGS * unit + drift) * scale + _ROUNDINGS * unit * (exact.norm(dim=1) + offset.norm())
        error = (found - exact).norm(dim=1)
        if bool((error > bound).any()):
            worst = int((error / bound.clamp(min=torch.finfo(torch.float64).tiny)).argmax())
            measured, explained = float(error[worst]), float(bound[worst])
            return (
                f"its output is not columns · Wᵀ + b: it differs by {measured:.3g}, rounding explains {explained:.2g}"
            )
    return None


class _Uses(TorchFunctionMode):
    """Hears which layers' weights are used as tensors while their own modules are not running.

    Attributes:
        elsewhere: names of these layers.
    """

    def __init__(self, layers: Sequence[PrunableLayer], store: Whole) -> None:
        super().__init__()
        self.elsewhere: set[str] = set()
        self._all, self._store, self._loads = layers, store, -1
        self._layers: list[PrunableLayer] = []
        self._starts: list[int] = []
        self._running: list[nn.Module] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to one forward pass."""
        modules = {layer.module for layer in self._all}
        # Around all other hooks: those of a module may cast its weight for the time that it runs.
        handles = [module.register_forward_pre_hook(self._enter, prepend=True) for module in modules]
        handles += [module.register_forward_hook(self._leave) for module in modules]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _args: object) -> None:
        """Note the start of a layer's forward pass."""
        self._running.append(module)

    def _leave(self, *_call: object) -> None:
        """Note the end of a layer's forward pass."""
        self._running.pop()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, and note the weights whose values it takes; a view of a weight takes none yet."""
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _VALUELESS or name.startswith("new_"):
            return result
        given = flatten(args[:1] if name == "to" else (args, kwargs or {}))[0]
        used = {layer for tensor in given if (layer := self._layer_of(tensor)) is not None}
        used = {layer for layer in used if layer.module not in self._running}
        if used and any(
            tensor.is_floating_point() and self._layer_of(tensor) is None for tensor in flatten((result,))[0]
        ):
            self.elsewhere |= {layer.name for layer in used}
        return result

    def _find(self) -> None:
        """Find out where the layers' weights lie, if blocks have come and gone since."""
        if self._loads != self._store.loads:
            there = [layer for layer in self._all if not is_away(layer.weight)]
            self._layers = sorted(there, key=lambda layer: layer.weight.data_ptr())
            self._starts = [layer.weight.data_ptr() for layer in self._layers]
            self._loads = self._store.loads

    def _layer_of(self, tensor: Tensor) -> PrunableLayer | None:
        """Return the layer in whose weight a tensor begins."""
        if not is_plain(tensor) or not tensor.numel():
            return None
        self._find()
        place = tensor.data_ptr()
        index = bisect_right(self._starts, place) - 1
        if index < 0:
            return None
        layer = self._layers[index]
        inside = place < self._starts[index] + layer.weight.numel() * layer.weight.element_size()
        return layer if inside and tensor.device == layer.weight.device else None
