"""The machine that a run was made on, and the peak memory of the process."""

from __future__ import annotations

import os
import platform

import torch

from .memory import peak_memory_bytes


def memory_line() -> str:
    """Return a phrase with the peak memory in GiB."""
    peak = peak_memory_bytes()
    return "peak memory unknown" if peak is None else f"peak memory {peak / 2**30:.2f} GiB"


def machine_line() -> str:
    """Return the processor, threads, accelerator and versions that timings depend on, in one line."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    threads = "thread" if torch.get_num_threads() == 1 else "threads"
    device = "no accelerator" if accelerator is None else f"accelerator {accelerator.type}"
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} {threads}, {device}, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def _processor() -> str:
    """Return the processor's name, from /proc if it exists."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or "unknown processor"
