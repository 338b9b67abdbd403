"""What ``relaxprune plan`` predicts: a table of large models, and how predictions compare with measured runs.

Usage:
    python docs/benchmarks/plan.py table
    python docs/benchmarks/plan.py check [CASE …]

``check`` prunes small random models, each in a process of its own with one thread, and compares processor time and peak
memory with what was predicted from the configuration alone in another process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from relaxprune import PruneOptions, plan_model, prune_model
from relaxprune.costs import Machine, Rates
from relaxprune.forecast import TextShape, forecast_run
from relaxprune.options import Target
from relaxprune.pruning import PruneRequest, make_plan

# One NVIDIA H200 as docs/benchmarks/gpu.md measured it: products of 8192 columns in float32, and about its memory's
# bandwidth; 16-bit products as published for dense matrices, of which models reach about half.
H200 = Rates(flops=5e13, half_flops=4e14, bandwidth=3e12)
DEVICE, HOST, NETWORK = 141 * 10**9, 250 * 2**30, 2.5e10
TEXT = TextShape(windows=128, length=2048, at_once=1)
GIB = 2**30

LLAMA = {"max_position_embeddings": 8192, "rope_theta": 500000.0, "vocab_size": 128256, "num_key_value_heads": 8}
LARGE: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "135M": lambda: transformers.LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "8B": lambda: transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, **LLAMA
    ),
    "70B": lambda: transformers.LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, **LLAMA
    ),
    "405B": lambda: transformers.LlamaConfig(
        hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128, **LLAMA
    ),
    "200 experts": lambda: transformers.Qwen3MoeConfig(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4,
        vocab_size=151936, num_experts=200, num_experts_per_tok=8, moe_intermediate_size=768,
        max_position_embeddings=8192,
    ),
}  # fmt: skip
DEVICES = (1, 8, 64)

SMALL = {"vocab_size": 8192, "num_hidden_layers": 2, "max_position_embeddings": 512}
SHAPE = {**SMALL, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One small run.

    Attributes:
        config: of the model.
        words: of ``plan_model``, but for the options.
        options: of ``PruneOptions``.
        windows: of the text.
        length: tokens of each.
    """

    config: Callable[[], transformers.PretrainedConfig]
    words: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    windows: int = 16
    length: int = 256


CASES = {
    "llama, fw fast, 50 %": Case(
        config=lambda: transformers.LlamaConfig(**SHAPE), words={"sparsity": 0.5, "solver": "fw", "effort": "fast"}
    ),
    "llama, fw, 2:4": Case(
        config=lambda: transformers.LlamaConfig(**{**SHAPE, "hidden_size": 256}),
        words={"pattern": "2:4", "solver": "fw"},
    ),
    "gpt2, wanda, 64 windows": Case(
        config=lambda: transformers.GPT2Config(
            n_embd=512, n_layer=2, n_head=8, vocab_size=8192, n_positions=512, bos_token_id=1, eos_token_id=2
        ),
        words={"sparsity": 0.6, "solver": "wanda"},
        windows=64,
    ),
    "opt, reconstruct": Case(
        config=lambda: transformers.OPTConfig(
            **SMALL, hidden_size=512, ffn_dim=1024, num_attention_heads=8, word_embed_proj_dim=512
        ),
        words={"sparsity": 0.5, "solver": "reconstruct"},
        options={"weights": "refit"},
        windows=32,
    ),
    "qwen3, sparsegpt, wide": Case(
        config=lambda: transformers.Qwen3Config(
            **{**SHAPE, "hidden_size": 768, "intermediate_size": 1536}, head_dim=96
        ),
        words={"sparsity": 0.5, "solver": "sparsegpt"},
        windows=64,
        length=128,
    ),
    "mixture, sparsefw": Case(
        config=lambda: transformers.Qwen3MoeConfig(
            **{**SHAPE, "num_hidden_layers": 2}, head_dim=64, num_experts=8, num_experts_per_tok=2,
            moe_intermediate_size=384,
        ),
        words={"sparsity": 0.5, "solver": "sparsefw"},
        options={"max_iterations": 80},
        windows=16,
    ),
    "gemma3, alps, tuned": Case(
        config=lambda: transformers.Gemma3TextConfig(
            **{**SHAPE, "num_hidden_layers": 2}, head_dim=64, sliding_window=64,
            layer_types=["sliding_attention", "full_attention"],
        ),
        words={"sparsity": 0.5, "solver": "alps"},
        options={"tune": 2},
    ),
    "bfloat16 llama, swap": Case(
        config=lambda: transformers.LlamaConfig(**{**SHAPE, "hidden_size": 768}, dtype="bfloat16"),
        words={"sparsity": 0.5, "solver": "swap"},
        windows=32,
    ),
}  # fmt: skip


def without_values(config: transformers.PretrainedConfig, dtype: torch.dtype) -> Any:
    """Return the model of a configuration on the meta device."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def table() -> None:
    """Print the predictions of the large models."""
    print("| model | devices | residency | GiB of device | GiB of host | TB sent | seconds: statistics | solve | all |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, config in LARGE.items():
        model = without_values(config(), torch.bfloat16)
        request = PruneRequest.of(Target(sparsity=0.5), "fw")
        plan = make_plan(model, request, TEXT.tokens, values=False)
        for devices in DEVICES:
            machine = Machine(devices=devices, device_memory=DEVICE, host_memory=HOST, rates=H200, network=NETWORK)
            found = forecast_run(plan, TEXT, machine)
            need = found.chosen
            kept = "none fits" if need is None else f"weights {need.residency.weights}, states {need.residency.states}"
            sizes = ("", "") if need is None else (f"{need.device_bytes / GIB:.1f}", f"{need.host_bytes / GIB:.1f}")
            seconds = [
                sum(found.seconds[stage] for stage in stages)
                for stages in (("capture", "statistics", "propagate"), ("solve",), tuple(found.seconds))
            ]
            cells = (
                name,
                devices,
                kept,
                *sizes,
                f"{sum(found.sent.values()) / 1e12:.3g}",
                *map("{:,.0f}".format, seconds),
            )
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def predict(case: Case) -> dict[str, float]:
    """Return what a run is predicted to take, from its configuration."""
    config = case.config()
    model = without_values(config, config.dtype or torch.float32)
    words = {name: value for name, value in case.words.items() if name not in ("sparsity", "pattern", "solver")}
    target = Target(case.words.get("sparsity"), case.words.get("pattern"))
    request = PruneRequest.of(target, case.words["solver"], PruneOptions(**case.options), words)
    at_once = max(1, 2048 // case.length)
    text = TextShape(windows=case.windows, length=case.length, at_once=at_once)
    plan = make_plan(model, request, text.tokens, values=False)
    found = forecast_run(plan, text, clock=time.process_time)
    memory = found.process_bytes + found.residencies[0].device_bytes
    return {"seconds": found.total_seconds, "bytes": memory, **{f"s {k}": v for k, v in found.seconds.items()}}


def measure(case: Case) -> dict[str, float]:
    """Return what it takes."""
    config = case.config()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32).eval()
    tokens = torch.randint(config.vocab_size, (case.windows, case.length))
    plan = plan_model(model, options=PruneOptions(**case.options), **case.words)
    batches = tokens.split(max(1, 2048 // case.length))
    started = time.process_time()
    report = prune_model(model, batches, plan=plan)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    wall = report.seconds["total"]
    stages = {f"s {stage}": spent * seconds / wall for stage, spent in report.seconds.items() if stage != "total"}
    return {"seconds": seconds, "bytes": peak, **stages}


def check(names: list[str]) -> None:
    """Print predictions and measurements side by side."""
    print("| run | seconds predicted | measured | ratio | GiB predicted | measured | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in names or CASES:
        found, real = (_apart(how, name) for how in ("predict", "measure"))
        cells = []
        for key, unit in (("seconds", 1.0), ("bytes", float(GIB))):
            cells += [f"{found[key] / unit:.2f}", f"{real[key] / unit:.2f}", f"{found[key] / real[key]:.2f}"]
        print("| " + " | ".join([name, *cells]) + " |", flush=True)
        for title, numbers in (("predicted", found), ("measured", real)):
            stages = {key[2:]: round(value, 2) for key, value in numbers.items() if key.startswith("s ")}
            print(f"{name}: {title} {stages}", file=sys.stderr)


def _apart(how: str, name: str) -> dict[str, float]:
    """Run one half of a case in a process of its own."""
    done = subprocess.run([sys.executable, __file__, how, name], stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Do what the first word says."""
    torch.set_num_threads(1)
    how, names = sys.argv[1], sys.argv[2:]
    if how == "table":
        table()
    elif how == "check":
        check(names)
    else:
        print(json.dumps({"predict": predict, "measure": measure}[how](CASES[names[0]])))


if __name__ == "__main__":
    main()
