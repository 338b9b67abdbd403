"""Names of targets: lazy paths, and a suggestion for a misspelt name."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from relaxprune.problems.errors import RelaxPruneError, did_you_mean

from .target import Target

_TARGETS: dict[str, str] = {
    "semi-structured": "relaxprune.conversion.semi_structured:SemiStructured",
    "torchao-fp8-2of4": "relaxprune.conversion.torchao_fp8:TorchaoFp8",
    "macko": "relaxprune.conversion.macko:Macko",
    "openvino": "relaxprune.conversion.openvino_ir:OpenVino",
    "compact": "relaxprune.conversion.compact_form:CompactForm",
}


def target_names() -> list[str]:
    """Return the names of all targets, without importing any."""
    return list(_TARGETS)


def target_class(name: str) -> type[Target]:
    """Import the target of this name.

    Raises:
        RelaxPruneError: no target has the name; the closest is suggested.
    """
    if name not in _TARGETS:
        raise RelaxPruneError(
            f"target is {name!r}; known targets are {', '.join(_TARGETS)}{did_you_mean(name, _TARGETS)}"
        )
    module, _, attribute = _TARGETS[name].partition(":")
    found: type[Target] = getattr(import_module(module), attribute)
    return found


def make_target(name: str) -> Target:
    """Return the target of this name, whose package is installed.

    Raises:
        RelaxPruneError: no target has the name, or its package is missing; the sentence says how to install it.
    """
    found = target_class(name)
    if found.package and find_spec(found.package) is None:
        raise RelaxPruneError(
            f"target {name!r} needs {found.package}, which is not installed: pip install 'relaxprune[{found.extra}]'"
        )
    return found()
