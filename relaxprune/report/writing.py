"""Writing a report: the page and its JSON, or a sentence that says why not, before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.runs.finished_run import read_finished_run
from relaxprune.solving.comparison_plot import require_matplotlib
from relaxprune.support.durable import write_json, write_text
from relaxprune.support.folder_lock import refuse_held_folder
from relaxprune.support.json_files import read_json
from relaxprune.support.outputs import refuse_output_file

from .content import KIND, run_content
from .page import render
from .sections import run_page
from .side_by_side import comparison_content, comparison_page

_MARK = '<meta name="generator" content="relaxprune.report'


def write_report(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the report of a run, or of several side by side, as one HTML page with its JSON next to it.

    The page needs no network and runs no script. An earlier report of the same name is replaced.

    Args:
        folders: one finished run folder, or several to be compared.
        out: the page, ending in .html; by default report.html in the only folder. The JSON is next to it.

    Returns:
        The page's path.

    Raises:
        RelaxPruneError: there is no folder, no finished run in one, a damaged file or no matplotlib, or an output is a
            file that is not a report.
    """
    if not folders:
        raise RelaxPruneError("give at least one run folder to report on")
    if out is None and len(folders) > 1:
        raise RelaxPruneError(f"give --out FILE for the comparison of {len(folders)} runs, such as comparison.html")
    page = Path(folders[0]) / "report.html" if out is None else Path(out)
    if page.suffix.lower() not in (".html", ".htm"):
        raise RelaxPruneError(f"--out must name a file that ends in .html, got {str(page)!r}")
    require_matplotlib()
    runs = [read_finished_run(folder) for folder in folders]
    if len(runs) > 1 and (bare := [run for run in runs if not run.layers]):
        raise RelaxPruneError(f"run folder {str(bare[0].path)!r} pruned no layer: there is nothing to compare")
    refuse_foreign(page)
    refuse_foreign(page.with_suffix(".json"))
    if len(runs) == 1:
        content = run_content(runs[0])
        described = run_page(content)
    else:
        content = comparison_content(runs)
        described = comparison_page(content)
    html = render(described, page.with_suffix(".json").name)
    write_json(page.with_suffix(".json"), content)
    write_text(page, html)
    return page


def refuse_foreign(path: Path) -> None:
    """Refuse to replace a file that is not a report, and a file that cannot be written.

    Raises:
        RelaxPruneError: naming the file.
    """
    if path.is_file() and _ours(path):
        refuse_held_folder(path.parent)
        return
    refuse_output_file(path)


def _ours(path: Path) -> bool:
    """Return whether a file is a report, or the JSON of one."""
    try:
        if path.suffix == ".json":
            return read_json(path).get("kind") == KIND
        return _MARK in path.read_text(encoding="utf-8")[:2000]
    except ValueError:  # not text, or not a JSON object
        return False
