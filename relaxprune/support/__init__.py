"""Helpers that any package may use: files, memory, text and the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy

if TYPE_CHECKING:
    from .container import write_tensors as write_tensors
    from .durable import write_bytes as write_bytes
    from .durable import write_json as write_json
    from .machine import machine_line as machine_line
    from .machine import memory_line as memory_line
    from .memory import peak_memory_bytes as peak_memory_bytes
    from .memory import resident_bytes as resident_bytes
    from .outputs import refuse_output_file as refuse_output_file
    from .outputs import refuse_output_folder as refuse_output_folder
    from .tables import table as table

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "machine_line": ".machine",
        "memory_line": ".machine",
        "peak_memory_bytes": ".memory",
        "refuse_output_file": ".outputs",
        "refuse_output_folder": ".outputs",
        "resident_bytes": ".memory",
        "table": ".tables",
        "write_bytes": ".durable",
        "write_json": ".durable",
        "write_tensors": ".container",
    },
)
