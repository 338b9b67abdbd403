"""What zeros are worth on an accelerator: dense bf16 against 2:4 bf16 and 2:4 FP8, layers and a whole model.

    python docs/benchmarks/speed_gpu.py --out speed.json [RUN]

Layers are random, of Llama-3-8B's shapes; RUN is a 2:4 run folder, of SmolLM2 for instance. Every line is guarded: a
form that the device or the installed packages do not have says so in its place. Times are medians of repeats, the
device waited for, dense and sparse in turn. No form is compared before its output was held against the dense one. It
stops by itself after `--seconds` (300), with what there is. `--quick` takes small shapes and runs on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune import RelaxPruneError, SpeedOptions, measure_speed
from relaxprune.cli.speed import speed_lines
from relaxprune.support import machine_line
from relaxprune.timing.clock import Clock

SHAPES = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))  # q and o; k and v; gate and up; down
QUICK_SHAPES = ((64, 128),)
TOKENS = (1, 16, 128, 512, 2048)
FORMS = ("bf16 2:4, CUTLASS", "bf16 2:4, cuSPARSELt", "FP8 dense, torchao", "FP8 2:4, torchao")
TARGETS = ("semi-structured", "torchao-fp8-2of4")
LARGEST_DIFFERENCE = 0.1  # of the outputs: 8-bit floats on both sides of a product change less


def two_of_four(rows: int, cols: int, device: torch.device) -> Tensor:
    """Return a random bfloat16 weight (rows, cols) whose two smallest of every four are 0."""
    generator = torch.Generator().manual_seed(rows + cols)
    weight = torch.randn(rows, cols // 4, 4, generator=generator) / cols**0.5
    kept = torch.zeros_like(weight, dtype=torch.bool).scatter_(2, weight.abs().topk(2, dim=2).indices, True)
    return weight.masked_fill(~kept, 0.0).reshape(rows, cols).to(device=device, dtype=torch.bfloat16)


def layer(weight: Tensor) -> nn.Linear:
    """Return a linear layer without a bias that holds a copy of a weight."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    made.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return made


def sparse(name: str, weight: Tensor) -> nn.Module:
    """Return the same layer in one of FORMS; raises what the libraries raise where they have nothing for it."""
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

    made = layer(weight)
    if name.startswith("bf16"):
        kind = SparseSemiStructuredTensorCUTLASS if "CUTLASS" in name else SparseSemiStructuredTensorCUSPARSELT
        made.weight = nn.Parameter(kind.from_dense(weight), requires_grad=False)
        return made
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
    from torchao.quantization.quantize_.workflows.float8.float8_packing_format import Float8PackingFormat as Format

    packing = Format.SPARSE_2D_DATA_2D_METADATA if "2:4" in name else Format.PLAIN
    quantize_(made, Float8DynamicActivationFloat8WeightConfig(packing_format=packing, granularity=PerRow()))
    return made


def layer_lines(
    clock: Clock, shapes: tuple[tuple[int, int], ...], out_of_time: Callable[[], bool]
) -> list[dict[str, Any]]:
    """Time every form of every shape at every number of tokens, and print a line as it comes."""
    lines: list[dict[str, Any]] = []
    print("| rows x cols | form | tokens | dense bf16, us | form, us | form / dense | output differs by |")
    print("| --- " * 7 + "|")
    for rows, cols in shapes:
        weight = two_of_four(rows, cols, clock.device)
        for name in FORMS:
            if out_of_time():
                print(f"stopped before {rows} x {cols}, {name}: out of time")
                return lines
            for tokens in TOKENS:
                line = {"shape": f"{rows} x {cols}", "form": name, "tokens": tokens}
                try:
                    line |= one(clock, weight, name, tokens)
                except Exception as error:  # whatever a library raises where it has no kernel
                    text = " ".join(str(error).split())
                    line |= {"failed": f"{type(error).__name__}: {text[:90]}"}
                lines.append(line)
                print(
                    "| "
                    + " | ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in line.values())
                    + " |",
                    flush=True,
                )
    return lines


def one(clock: Clock, weight: Tensor, name: str, tokens: int) -> dict[str, float]:
    """Time one layer, dense and in a form, after their outputs were compared."""
    inputs = torch.randn(tokens, weight.shape[1], generator=torch.Generator().manual_seed(tokens))
    inputs = inputs.to(device=weight.device, dtype=weight.dtype)
    dense, made = layer(weight), sparse(name, weight)
    with torch.no_grad():
        expected, found = dense(inputs).double(), made(inputs).double()
        difference = float((found - expected).norm() / expected.norm())
        if not difference <= LARGEST_DIFFERENCE:
            raise RelaxPruneError(f"its outputs differ by {difference:.2g} of their size")
        plain, own = clock.seconds(partial(dense, inputs), partial(made, inputs))
    return {"dense_us": 1e6 * plain, "form_us": 1e6 * own, "over_dense": own / plain, "difference": difference}


def model_lines(run: Path, options: SpeedOptions, out_of_time: Callable[[], bool]) -> list[dict[str, Any]]:
    """Measure a run's model in every target."""
    found = []
    for target in TARGETS:
        if out_of_time():
            print(f"stopped before {target} of the whole model: out of time")
            break
        try:
            speed = measure_speed(run, options, to=target)
        except RelaxPruneError as error:
            print(f"\n{target}: {error}")
            found.append({"target": target, "failed": str(error)})
            continue
        print("\n" + "\n".join(speed_lines(speed)), flush=True)
        print(f"kernel: {speed.kernel or 'none, the weights were unpacked'}")
        found.append(speed.to_dict())
    return found


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a 2:4 run folder; without it layers only")
    parser.add_argument("--device", default=None, help="an accelerator where there is one, else the CPU")
    parser.add_argument("--quick", action="store_true", help="small shapes, few repeats")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=300.0, help="start nothing new after this many")
    parser.add_argument("--out", type=Path, default=None, help="file for the numbers, as JSON")
    arguments = parser.parse_args()
    started = time.monotonic()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device(arguments.device or ("cpu" if accelerator is None else accelerator.type))
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(f"{name}; {machine_line()}\n")

    def out_of_time() -> bool:
        return time.monotonic() - started > arguments.seconds

    repeats = 2 if arguments.quick else arguments.repeats
    layers = layer_lines(Clock(device, repeats), QUICK_SHAPES if arguments.quick else SHAPES, out_of_time)
    prompt = 16 if arguments.quick else 512
    options = SpeedOptions(device=str(device), tokens=(1, prompt), prompt=prompt, new_tokens=8, repeats=repeats)
    models = [] if arguments.run is None else model_lines(arguments.run, options, out_of_time)
    if arguments.out is not None:
        content = {"device": name, "machine": machine_line(), "layers": layers, "models": models}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
