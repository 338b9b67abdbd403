"""A picture of measured speeds: layers by tokens, and the whole model."""

from __future__ import annotations

from relaxprune.report.drawing import SERIES, drawing, svg

from .measuring import Speed


def speed_picture(found: Speed) -> str:
    """Return an SVG element: converted over dense, for each layer shape by tokens, and for the whole model."""
    label = f"{found.target}: time over that of the dense model"
    with drawing(4.2, rows=2) as (figure, (layers, whole)):
        shapes = list(dict.fromkeys((item.rows, item.cols) for item in found.layers))
        for number, (rows, cols) in enumerate(shapes):
            own = [item for item in found.layers if (item.rows, item.cols) == (rows, cols)]
            colour = SERIES[number % len(SERIES)]
            layers.plot(
                [item.tokens for item in own],
                [item.ratio for item in own],
                "o-",
                color=colour,
                label=f"{rows} x {cols}",
            )
        layers.set_xscale("log", base=2)
        tokens = sorted({item.tokens for item in found.layers})
        layers.set_xticks(tokens, [str(count) for count in tokens])  # powers of two would be formulas
        layers.minorticks_off()
        layers.set_xlabel("tokens at once")
        if shapes:
            figure.legend(loc="outside upper center", ncols=2, frameon=False)
        names, ratios = ["prefill"], [found.converted.prefill_s / found.dense.prefill_s]
        if found.dense.decode_s and found.converted.decode_s:
            names, ratios = [*names, "decode"], [*ratios, found.converted.decode_s / found.dense.decode_s]
        names, ratios = [*names, "bytes"], [*ratios, found.converted.weight_bytes / found.dense.weight_bytes]
        whole.barh(names, ratios, height=0.5, color=SERIES[1])
        whole.invert_yaxis()
        whole.set_xlabel("whole model, over the dense one")
        layers.set_ylabel("over the dense layer")
        layers.axhline(1.0, color=SERIES[-1], linewidth=0.8)
        whole.axvline(1.0, color=SERIES[-1], linewidth=0.8)
        return svg(figure, "speed", label)
