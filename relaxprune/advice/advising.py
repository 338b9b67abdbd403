"""advise(): which pattern to ask for on a device, or why to stay dense, from published measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from relaxprune.problems.checks import whole_number
from relaxprune.problems.errors import RelaxPruneError, did_you_mean

from .figures import DEVICES, FIGURES, Figure
from .sizes import ModelSizes

PAYS = 1.05  # times dense: less is not worth zeros
MEASURED_WIDTH = 2048  # columns: nearly all figures are of wider layers


@dataclass(frozen=True)
class Advice:
    """What to ask for on one device, in one phase of generating text.

    Attributes:
        device: a key of ``DEVICES``.
        phase: "decode" or "prefill".
        tokens: multiplied by each weight at once.
        figure: the measurement that decides, or the reason to stay dense.
        others: other measurements for as many tokens.
        model_bytes: of the whole model in the figure's form; None if dense, or if nobody says.
        left: which layers stay dense all the same, in 16 bits, and why; "" if none does.
    """

    device: str
    phase: str
    tokens: int
    figure: Figure
    others: tuple[Figure, ...]
    model_bytes: float | None
    left: str

    @property
    def pays(self) -> bool:
        """Whether pruning was measured to be faster."""
        return self.figure.ask is not None


def advise(model: ModelSizes, devices: Sequence[str] = (), batch: int = 1, tokens: int = 512) -> list[Advice]:
    """Return what to ask for on some devices: for decoding, then for reading the prompt.

    Args:
        model: the model.
        devices: keys of ``DEVICES``; none for all of them.
        batch: sequences at once.
        tokens: of each prompt.

    Raises:
        RelaxPruneError: an unknown device, or numbers below 1.
    """
    check_use(devices, batch, tokens)
    phases = (("decode", batch), ("prefill", batch * tokens))
    return [_advice(model, device, phase, rows) for device in devices or DEVICES for phase, rows in phases]


def check_use(devices: Sequence[str], batch: int, tokens: int) -> None:
    """Raise RelaxPruneError for an unknown device, or numbers below 1."""
    whole_number("batch", batch, 1)
    whole_number("tokens", tokens, 1)
    for device in devices:
        if device not in DEVICES:
            hint = did_you_mean(device, list(DEVICES))
            raise RelaxPruneError(f"device {device!r} is unknown: use one of {', '.join(DEVICES)}{hint}")


def _advice(model: ModelSizes, device: str, phase: str, tokens: int) -> Advice:
    """Return the fastest measured way on a device, or the first reason to stay dense."""
    known = [figure for figure in FIGURES if figure.device == device and figure.covers(tokens)]
    fast = [figure for figure in known if figure.ask is not None and (figure.speed or 0) >= PAYS]
    best = max(fast, key=lambda figure: figure.speed or 0) if fast else known[0]
    others = tuple(figure for figure in known if figure is not best)
    if best.ask is None:
        return Advice(device, phase, tokens, best, others, None, "")
    left = model.left(best.ask)
    if model.misfits(best.ask) == model.shapes.total():  # no layer would gain
        return Advice(
            device, phase, tokens, replace(best, ask=None, speed=None, measured=left, bits=None), (), None, left
        )
    size = None if best.bits is None else model.bytes(best.bits, best.ask)
    return Advice(device, phase, tokens, best, others, size, left)
