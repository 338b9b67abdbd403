"""JSON files: one reader, which says in one sentence what is wrong with a file.

Python's own parser accepts NaN, infinities, numbers of any size, repeated keys, and text that no file can hold (lone
surrogates). The last is refused in every file, the others in the files that we write.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from relaxprune.problems.errors import RelaxPruneError

from .sentences import damaged, first_line

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LARGEST = 2**63
# Far more than any record, index or vocabulary has, and read in seconds. What a text becomes takes up to 256 bytes for
# each of its parts, so that a few MiB of brackets would take many GiB.
_MOST_BYTES = 2**28
_MOST_PARTS = 2**22
_MOST_DEPTH = 100  # what reads, writes and seals a value calls itself for each level of it


@dataclass(frozen=True)
class Maybe:
    """The shape of a JSON value that may be missing or null."""

    shape: Any


@dataclass(frozen=True)
class Values:
    """The shape of a JSON object with any keys, whose values all have one shape."""

    shape: Any


@dataclass(frozen=True)
class JsonFormat:
    """A kind of JSON file that we write.

    Attributes:
        version: the ``schema_version`` that is written and read.
        shape: the shape of its other entries, as ``misfit`` takes it.
        advice: what to do about a damaged one.
    """

    version: int
    shape: Mapping[str, Any]
    advice: str = ""


def parse_json(text: str, *, strict: bool = True) -> Any:
    """Parse JSON.

    Args:
        text: one JSON value.
        strict: whether to refuse repeated keys, NaN, infinities and integers of more than 64 bits.

    Raises:
        ValueError: it is not valid JSON, is nested too deeply, or has too many parts.
    """
    if sum(map(text.count, ",[{")) > _MOST_PARTS:
        raise ValueError(f"it has more than {_MOST_PARTS} parts")
    hooks: dict[str, Any] = {
        "object_pairs_hook": _unique,
        "parse_constant": _refuse_constant,
        "parse_float": _finite,
        "parse_int": _whole,
    }
    try:
        value = json.loads(text, **(hooks if strict else {}))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_depth(value)
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # raises a ValueError for half a character
    return value


def check_size(path: Path, advice: str) -> None:
    """Refuse a file that is read as a whole, by us or by others, and has no end, or a later one than is sensible.

    Raises:
        FileNotFoundError: there is none.
        RelaxPruneError: it is a folder, a pipe, a device, or too large.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise damaged(repr(str(path)), "it is no regular file", advice)
    if status.st_size > _MOST_BYTES:
        raise damaged(repr(str(path)), f"it has {status.st_size} bytes, of at most {_MOST_BYTES}", advice)


def present(path: Path) -> bool:
    """Tell whether a file that may be missing is there.

    Raises:
        RelaxPruneError: something is, and it is no file: a folder, a device, a link to nothing.
    """
    if not os.path.lexists(path):
        return False
    if not path.is_file():
        raise RelaxPruneError(f"{str(path)!r} should be a file and is none: remove it, or put the file there")
    return True


def read_json(path: Path, *, strict: bool = False, advice: str = "fetch it again") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file, in UTF-8.
        strict: as in ``parse_json``.
        advice: what to do about a damaged file.

    Raises:
        FileNotFoundError: there is no such file.
        RelaxPruneError: it does not hold a JSON object.
    """
    check_size(path, advice)
    try:
        content = parse_json(path.read_text(encoding="utf-8"), strict=strict)
    except ValueError as error:
        raise damaged(repr(str(path)), f"it is not valid JSON ({first_line(error)})", advice) from error
    if not isinstance(content, dict):
        raise damaged(repr(str(path)), f"it holds a {type(content).__name__} instead of a JSON object", advice)
    return content


def read_document(path: Path, form: JsonFormat) -> dict[str, Any]:
    """Read one of our JSON files and check its version and shape.

    Raises:
        FileNotFoundError: there is no such file.
        RelaxPruneError: it is damaged, or has another version.
    """
    content = read_json(path, strict=True, advice=form.advice)
    found = content.get("schema_version")
    if found != form.version and is_kind(found, (int, str)):
        raise RelaxPruneError(f"{str(path)!r} has schema version {found!r}, this relaxprune reads {form.version}")
    wrong = misfit(content, {"schema_version": int, **form.shape})
    if wrong:
        raise damaged(repr(str(path)), f"{wrong!r} is missing or has the wrong type", form.advice)
    return content


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with ``sha256``, the checksum over everything else in it."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, allow_nan=False)
    return {**rest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Tell whether a JSON object is as ``sealed`` returned it."""
    return sealed(content) == content


def misfit(value: Any, shape: Any, name: str = "") -> str | None:
    """Return the name of the first part of a JSON value that does not have the given shape, or None.

    Args:
        value: a parsed JSON value.
        shape: a type or a tuple of them; a list with one shape, for a list of such; a dict, for an object with at least
            these keys; ``Values`` or ``Maybe``.
        name: the dotted name of the value, "" for the whole.
    """
    if isinstance(shape, Maybe):
        return None if value is None else misfit(value, shape.shape, name)
    kind = list if isinstance(shape, list) else dict if isinstance(shape, Values | Mapping) else shape
    if not is_kind(value, kind):
        return name or "the whole"
    parts: list[tuple[Any, Any, str]] = []
    if isinstance(shape, list):
        parts = [(item, shape[0], f"{name}[{place}]") for place, item in enumerate(value)]
    elif isinstance(shape, Values):
        parts = [(item, shape.shape, _dotted(name, key)) for key, item in value.items()]
    elif isinstance(shape, Mapping):
        parts = [(value.get(key), part, _dotted(name, key)) for key, part in shape.items()]
    return next(filter(None, (misfit(*part) for part in parts)), None)


def is_kind(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Return whether a JSON value has a type; a bool is not a number, and an int is also a float."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def _dotted(name: str, key: str) -> str:
    """Return the name of an entry of an object."""
    return f"{name}.{key}" if name else key


def _check_depth(value: Any) -> None:
    """Refuse a parsed JSON value that is nested too deeply."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MOST_DEPTH):
        parts = (part for item in level for part in (item.values() if isinstance(item, dict) else item))
        level = [part for part in parts if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object whose keys are all different."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _refuse_constant(name: str) -> NoReturn:
    """Refuse NaN, Infinity and -Infinity."""
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    """Return a number that is not too large for a float."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _whole(text: str) -> int:
    """Return a whole number of at most 64 bits."""
    value = int(text)
    if not -_LARGEST <= value < 2 * _LARGEST:
        raise ValueError("a whole number is too large")
    return value
