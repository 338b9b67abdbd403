"""Where calibration and evaluation text comes from, with the two kept apart at the source.

A ``TextSource`` has two parts, "calibration" and "evaluation", which never share text: the official splits if there are
any, otherwise the two ends of one text. It yields documents; ``windows.py`` cuts them into token windows. A new source
is a function here and a line in ``CORPORA``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sysconfig
import tokenize
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

from relaxprune.problems.errors import RelaxPruneError, did_you_mean
from relaxprune.support.sentences import first_line

_logger = logging.getLogger("relaxprune")

Part = Literal["calibration", "evaluation"]

# Rows of the C4 validation split that the pruning papers join into one evaluation text.
_C4_EVALUATION_ROWS = 1100
# Characters at the start of a source file in which it says that it was generated.
_HEAD = 200


class Documents(Protocol):
    """Texts that can be counted and read one by one, so that a data set on disk need not be loaded at once."""

    def __len__(self) -> int:
        """Return the number of documents."""

    def __getitem__(self, index: int, /) -> str:
        """Return the document at ``index``."""


@dataclass(frozen=True)
class TextSource:
    """Text in two disjoint parts.

    Attributes:
        name: what the user asked for.
        documents: returns the documents of a part. A single one gives many windows; several give at most one each.
        description: JSON-ready facts that identify the text: hashes, versions, splits.
    """

    name: str
    documents: Callable[[Part], Documents]
    description: Mapping[str, Any] = field(default_factory=dict)


def open_text(source: str, held_out: float = 0.25, besides: Sequence[str] = ()) -> TextSource:
    """Return the text source for a name or a path; nothing is downloaded before its documents are requested.

    Args:
        source: a name in ``CORPORA``, such as "builtin" (English that comes with Python), "python" (source of its
            standard library) or "c4" (through ``datasets``), or the path of a UTF-8 text file. A name wins over a file;
            write ``./name`` for the file.
        held_out: share of a builtin, python or file text, at its end, kept for evaluation: 0 for none, 1 for all.
        besides: further names that the caller accepts, for the error about an unknown one.

    Raises:
        RelaxPruneError: unknown source, unreadable file, missing package ``datasets``, or ``held_out`` outside [0, 1].
        FileNotFoundError: ``source`` looks like a path and does not exist.
    """
    if not 0 <= held_out <= 1:
        raise RelaxPruneError(f"held_out should be a share between 0 and 1, got {held_out}")
    if source in CORPORA:
        return CORPORA[source](held_out)
    path = Path(source).expanduser()
    if path.is_file():
        return _text_file(source, path, held_out)
    if path.is_dir():
        raise RelaxPruneError(f"text source {source!r} is a folder: give a text file")
    if "/" in source or os.sep in source or path.suffix:
        raise FileNotFoundError(f"text source {source!r} looks like a file, but there is no such file")
    known = [*CORPORA, *besides]
    hint = did_you_mean(source, known)
    raise RelaxPruneError(f"text source {source!r} is neither a text file nor one of: {', '.join(known)}{hint}")


def split_text(text: str, held_out: float) -> tuple[str, str]:
    """Cut ``text`` in two at the end of a paragraph, line or word, shortly before its share ``1 - held_out`` is full.

    Returns:
        The calibration part and the evaluation part; joined they are the text, and they share no character.
    """
    cut = round(len(text) * (1 - held_out))
    if 0 < cut < len(text):
        for mark in ("\n\n", "\n", " "):
            # A mark far before the cut would move whole pages to the other side: look back a twentieth at most.
            found = text.rfind(mark, cut - len(text) // 20, cut)
            if found >= 0:
                cut = found + len(mark)
                break
    return text[:cut], text[cut:]


def _single_text(name: str, text: str, held_out: float, facts: dict[str, Any]) -> TextSource:
    return _two_parts(name, *split_text(text, held_out), held_out, facts)


def _two_parts(name: str, calibration: str, evaluation: str, held_out: float, facts: dict[str, Any]) -> TextSource:
    parts: dict[Part, Sequence[str]] = {"calibration": [calibration], "evaluation": [evaluation]}
    text = calibration + evaluation
    facts = {
        **facts,
        "text_sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
        "characters": len(text),
        "calibration_characters": len(calibration),
        "held_out": held_out,
    }
    return TextSource(name, parts.__getitem__, facts)


def _builtin(held_out: float) -> TextSource:
    """The language reference that Python ships for ``help()``; it differs between versions of Python.

    Its topics quote each other's sections, so each paragraph is kept once: otherwise held-out text would repeat
    calibration text.
    """
    from pydoc_data.topics import topics

    paragraphs: dict[str, str] = {}
    for topic in sorted(topics):
        for paragraph in topics[topic].split("\n\n"):
            words = " ".join(paragraph.split())
            if words:
                paragraphs.setdefault(words, paragraph.rstrip())
    facts = {"text": "pydoc_data.topics", "python": platform.python_version()}
    return _single_text("builtin", "\n\n".join(paragraphs.values()), held_out, facts)


def _python(held_out: float) -> TextSource:
    """Source of the standard library, file after file in the order of their names; none is in both parts.

    Modules that are one file: packages hold the tests and most generated tables. It differs between versions of Python.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts: list[str] = []
    for path in sorted(folder.glob("*.py")):
        with tokenize.open(path) as file:
            text = file.read()
        if "generated" not in text[:_HEAD].lower():
            texts.append(f"{text.rstrip()}\n\n\n")
    if not texts:
        raise RelaxPruneError(f"text source 'python' finds no source files in {str(folder)!r}: give a text file")
    ends = list(accumulate(map(len, texts)))
    cut = bisect_right(ends, ends[-1] * (1 - held_out))
    facts = {"text": "standard library", "files": len(texts), "python": platform.python_version()}
    return _two_parts("python", "".join(texts[:cut]), "".join(texts[cut:]), held_out, facts)


def _text_file(source: str, path: Path, held_out: float) -> TextSource:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RelaxPruneError(f"text source {source!r} is not UTF-8 text (byte {error.start}): convert it") from error
    return _single_text(source, text, held_out, {"text": path.name})


def _wikitext2(_held_out: float) -> TextSource:
    """WikiText-2 (raw), official train and test splits, rows joined by blank lines as the pruning papers do."""
    _require_datasets("wikitext2")
    splits: dict[Part, str] = {"calibration": "train", "evaluation": "test"}

    def documents(part: Part) -> Documents:
        rows = _load_split("wikitext2", "Salesforce/wikitext", "wikitext-2-raw-v1", split=splits[part])
        return ["\n\n".join(rows[index] for index in range(len(rows)))]

    facts = {"text": "Salesforce/wikitext, wikitext-2-raw-v1", "splits": dict(splits)}
    return TextSource("wikitext2", documents, facts)


def _c4(_held_out: float) -> TextSource:
    """C4: one window each from documents of the first training shard; evaluation on the joined start of validation."""
    _require_datasets("c4")
    files = {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"}

    def documents(part: Part) -> Documents:
        split = "train" if part == "calibration" else "validation"
        rows = _load_split("c4", "allenai/c4", data_files={split: files[split]}, split=split)
        if part == "calibration":
            return rows
        return [" ".join(rows[index] for index in range(min(len(rows), _C4_EVALUATION_ROWS)))]

    facts = {"text": "allenai/c4", "files": files, "evaluation_rows": _C4_EVALUATION_ROWS}
    return TextSource("c4", documents, facts)


CORPORA: dict[str, Callable[[float], TextSource]] = {
    "builtin": _builtin,
    "python": _python,
    "c4": _c4,
    "wikitext2": _wikitext2,
}
"""Name -> function that opens it, given the share of a text kept for evaluation (official splits ignore it)."""


@dataclass(frozen=True)
class _Rows:
    """The column ``text`` of a data set, read row by row."""

    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> str:
        return str(self.rows[index]["text"])


def _require_datasets(source: str) -> Any:
    """Return the module ``datasets``, or raise an error that names the extra to install."""
    try:
        import datasets
    except ImportError as error:
        raise RelaxPruneError(
            f"text source {source!r} needs the package datasets: run `pip install 'relaxprune[data]'`"
        ) from error
    return datasets


def _load_split(source: str, *arguments: str, **options: Any) -> Documents:
    """Load one split through ``datasets``; scripts are never run, and a failure becomes one sentence."""
    datasets = _require_datasets(source)
    _logger.info("text source %s: loading %s", source, ", ".join(arguments))
    try:
        # Only the environment's token is used; False stops the library from reading a stored one.
        return _Rows(datasets.load_dataset(*arguments, token=os.environ.get("HF_TOKEN") or False, **options))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise RelaxPruneError(
            f"text source {source!r} could not be loaded ({first_line(error)}): go online, fill the datasets cache, or "
            "use 'builtin' or a text file, which need no download"
        ) from error
