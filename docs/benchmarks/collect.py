"""Collect the weights and Grams of some layers of a model, one safetensors file each, for the other benchmarks.

    python docs/benchmarks/collect.py layers --text wikitext2-valid.txt

Inputs are those of the dense model; names follow the pattern "15.v".
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import model_grams, model_weight, short
from safetensors.torch import save_file

from relaxprune import load_model
from relaxprune.text.windows import CalibrationOptions, calibration_windows

LAYERS = (
    "model.layers.15.self_attn.v_proj",
    "model.layers.15.self_attn.o_proj",
    "model.layers.0.mlp.gate_proj",
    "model.layers.15.mlp.down_proj",
)


def main() -> None:
    """Write the files and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", default="builtin", help="calibration source: builtin, a text file, wikitext2, c4")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    loaded = load_model(arguments.model)
    options = CalibrationOptions(windows=arguments.windows, length=arguments.length)
    windows = calibration_windows(arguments.text, loaded.tokenizer, options)
    grams = model_grams(loaded.model, windows.tokens, arguments.layers)
    for name in arguments.layers:
        file = arguments.out / f"{short(name)}.safetensors"
        save_file({"weight": model_weight(loaded.model, name), "gram": grams[name].contiguous()}, file)
        print(f"{file}: {name}, {windows}")


if __name__ == "__main__":
    main()
