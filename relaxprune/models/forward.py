"""Running a model without leaving a trace, and the checks that come before it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency.homes import is_away
from relaxprune.residency.store import store_of

from .layer_kinds import is_plain

# Wrappers that leave a process only a part of the weights or of the batch.
_SPREAD = ("FullyShardedDataParallel", "DeepSpeedEngine", "PipelineStage")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every part of ``model`` in evaluation mode, without gradients; restore each part's flag, errors or not.

    Raises:
        RelaxPruneError: the switch changes weights, as that of adapters which merge themselves does.
    """
    flags = [(module, module.training) for module in model.modules()]
    before = _fingerprint(model)
    model.eval()
    try:
        if (changed := _first_difference(before, _fingerprint(model))) is not None:
            model.train(flags[0][1])
            raise RelaxPruneError(
                f"model must keep its weights when it is put into evaluation mode, got one whose eval() changes "
                f"{changed!r}: merge or remove what does so first"
            )
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def _fingerprint(model: nn.Module) -> dict[str, tuple[object, ...]]:
    """Return for each parameter where it lies and a sum over its bits; nothing where eval() only sets flags.

    Parameters whose values are elsewhere are left out: nothing there can be changed.
    """
    own = (nn.Module.train, nn.Module.eval)
    if all((type(module).train, type(module).eval) == own for module in model.modules()):
        return {}
    there = ((name, parameter) for name, parameter in model.named_parameters() if not is_away(parameter))
    return {name: _bits(parameter) for name, parameter in there if is_plain(parameter)}


def _bits(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return where a tensor lies, and the sum of its entries as integers: nearly any change of a bit changes that."""
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    words = flat[: len(flat) // 4 * 4].view(torch.int32)
    return tensor.data_ptr(), tuple(tensor.shape), int(words.sum()), int(flat[len(words) * 4 :].sum())


def _first_difference(one: dict[str, tuple[object, ...]], other: dict[str, tuple[object, ...]]) -> str | None:
    """Return the first name under which two fingerprints differ."""
    return next((name for name in {**one, **other} if one.get(name) != other.get(name)), None)


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Evaluate as ``evaluating`` does, besides without cache, uncompiled, and expert by expert; then all is as before.

    Also after an exception: ``use_cache`` and the way of the experts are restored config by config, and the random
    state of the CPU and of the model's device as a whole.
    """
    device = model_device(model)
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(torch.random.fork_rng(devices=[]))
        else:
            index = torch.get_device_module(device).current_device() if device.index is None else device.index
            stack.enter_context(torch.random.fork_rng(devices=[index], device_type=device.type))
        # Inference tensors carry no version, and versions tell whether an input was changed in place.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(_configured(model, "use_cache", False))
        if "torch._dynamo" in sys.modules:  # code that is compiled already does not call the hooks of its modules
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # Expert by expert: how fused experts are heard (``ExpertListener``).
        stack.enter_context(_configured(model, "_experts_implementation", "eager"))
        stack.enter_context(evaluating(model))
        yield


@contextmanager
def _configured(model: nn.Module, name: str, value: object) -> Iterator[None]:
    """Set an attribute of each distinct configuration object that has it; then put the old values back."""
    configs = {id(config): config for config in (getattr(part, "config", None) for part in model.modules())}
    before = [(config, getattr(config, name)) for config in configs.values() if hasattr(config, name)]
    try:
        for config, _ in before:
            setattr(config, name, value)
        yield
    finally:
        for config, old in before:
            setattr(config, name, old)


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters; ``refuse_unsupported`` makes sure that there is one only."""
    return next(model.parameters()).device


def refuse_unsupported(model: nn.Module, *, values: bool = True) -> None:
    """Refuse models whose weights cannot be changed in place.

    Args:
        model: any module.
        values: False for a model of which only the shapes are wanted, so that its tensors may be on the meta device.

    Raises:
        RelaxPruneError: not a module, no parameters, meta or inference tensors, several devices, offloading hooks,
            adapters, or wrappers that split it.
    """
    if not isinstance(model, nn.Module):
        raise RelaxPruneError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    devices = {parameter.device for parameter in model.parameters()}
    if not devices:
        raise RelaxPruneError(f"model must have parameters, got a {type(model).__name__} without any")
    if values and any(device.type == "meta" for device in devices):
        raise RelaxPruneError(
            "model must have values for its weights, got meta tensors; load it, or have accelerate offload it"
        )
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise RelaxPruneError(
            "model must have weights that can be changed, got inference tensors; make or load it outside of "
            "torch.inference_mode()"
        )
    mapped = {} if store_of(model).travels else getattr(model, "hf_device_map", None) or {}
    places = {str(place) for place in mapped.values()}
    if len(devices) > 1 or len(places) > 1 or any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise RelaxPruneError("model must lie on one device, got one spread by a device map; load it without one")
    if any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise RelaxPruneError("model must be without adapters, got peft modules; merge_and_unload() them first")
    for module in model.modules():
        kind = type(module).__name__
        if kind in _SPREAD or (isinstance(module, nn.DataParallel) and len(module.device_ids) > 1):
            raise RelaxPruneError(f"model must be one whole, got a {kind}, which splits it: give the model inside")
