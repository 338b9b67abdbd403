"""The output of a long command: lines, a dashboard, JSON events for machines, or only the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from relaxprune import RelaxPruneError

from .dashboard import Dashboard
from .progress import PruneProgress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from relaxprune.pruning import PlannedLayer, PruneEvent

EVENTS_VERSION = 1
Listener = Callable[["PruneEvent"], None]


@dataclass(frozen=True)
class Output:
    """The output of one command.

    Attributes:
        as_json: one JSON object per line on stdout, with ``schema_version`` and ``event``, and nothing else there.
        quiet: only results; errors and notices go to stderr in any case.
    """

    as_json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Refuse both at once."""
        if self.as_json and self.quiet:
            raise RelaxPruneError("give one of --json and --quiet: events for machines, or nothing but the result")

    def say(self, text: object) -> None:
        """Print a message, unless quiet."""
        if self.as_json:
            self.event("message", text=str(text))
        elif not self.quiet:
            print(text, flush=True)

    def result(self, text: object, **facts: Any) -> None:
        """Print the result of the command."""
        if self.as_json:
            self.event("result", text=str(text), **facts)
        else:
            print(text, flush=True)

    def event(self, kind: str, **facts: Any) -> None:
        """Print one event."""
        print(json.dumps({"schema_version": EVENTS_VERSION, "event": kind, **facts}), flush=True)

    def progress(self, layers: Sequence[PlannedLayer], title: str = "pruning") -> AbstractContextManager[Listener]:
        """Return a listener for the events of ``prune_model``."""
        if self.as_json:
            return self._events()
        if self.quiet:
            return _silence()
        return Dashboard(layers, title) if sys.stdout.isatty() else PruneProgress(layers, title)

    @contextmanager
    def _events(self) -> Iterator[Listener]:
        """Print every event of a run."""

        def listen(event: PruneEvent) -> None:
            self.event(
                event.kind,
                block=event.block,
                blocks=event.blocks,
                layer=event.layer,
                layer_index=event.layer_index,
                layers=event.layers,
                seconds_elapsed=event.seconds_elapsed,
                report=None if event.report is None else event.report.to_dict(),
                **({} if event.refining is None else {"refining": asdict(event.refining)}),
            )

        yield listen


@contextmanager
def _silence() -> Iterator[Listener]:
    """Ignore every event."""
    yield lambda event: None
