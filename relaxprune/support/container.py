"""The container of all our tensor files: safetensors with a name, a version and a checksum in the metadata.

A reader reports anything wrong with a file in one sentence, before it allocates more than the file holds. The checksum
has no key: it detects damage, not malice, so readers still check what a file claims.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError

from .durable import durable_path
from .json_files import parse_json
from .sentences import damaged, first_line
from .tensor_bits import checksum, raw_bytes
from .tensor_header import TensorHeader, header_bytes, read_header

T = TypeVar("T")
_LIBRARY_ERRORS = (SafetensorError, ValueError, TypeError, RuntimeError, KeyError, AttributeError, OverflowError)


@dataclass(frozen=True)
class TensorFormat:
    """A kind of tensor file that we write.

    Attributes:
        kind: what error messages call such a file.
        name: the metadata's ``format``.
        version: the metadata's ``schema_version``, as text there.
        keys: further entries that the metadata must have.
        sealed: whether ``sha256`` covers everything else in the file; if not, the format has a check of its own.
        hint: appended to the error for a file of another format.
    """

    kind: str
    name: str
    version: int = 1
    keys: tuple[str, ...] = ()
    sealed: bool = True
    hint: str = ""

    def describe(self, path: Path) -> str:
        """Return what error messages call the file."""
        return f"{self.kind} {str(path)!r}"


class TensorFile:
    """An open safetensors file with a checked header.

    Attributes:
        what: its name in error messages.
        header: what it declares.
    """

    def __init__(self, what: str, header: TensorHeader, opened: Any) -> None:
        """Hold a file that ``open_tensors`` has opened."""
        self.what, self.header, self._opened = what, header, opened

    def __iter__(self) -> Iterator[str]:
        """Iterate over the tensors' names, sorted."""
        return iter(sorted(self.header.tensors))

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, on the CPU.

        Raises:
            RelaxPruneError: the library cannot read it.
        """
        found: Tensor = _told(self.what, lambda: self._opened.get_tensor(name))
        return found

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Read the named tensors, or all of them."""
        return {name: self.tensor(name) for name in (self if names is None else names)}


@contextmanager
def open_tensors(path: Path, what: str) -> Iterator[TensorFile]:
    """Open any safetensors file to read its tensors one by one.

    Args:
        path: the file.
        what: its name in error messages.

    Raises:
        FileNotFoundError: there is no such file.
        RelaxPruneError: it is damaged.
    """
    header = read_header(path, what)
    with _told(what, lambda: safe_open(path, framework="pt")) as opened:
        yield TensorFile(what, header, opened)


def read_container(path: Path, form: TensorFormat) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read one of our tensor files.

    Returns:
        Its tensors on the CPU, sorted by name, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        RelaxPruneError: it is damaged, has another format or version, or lacks an entry.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{form.describe(path)} does not exist")
    with open_tensors(path, form.describe(path)) as file:
        metadata = dict(file.header.metadata)
        check_format(metadata, path, form)
        tensors = file.tensors()
    if form.sealed and metadata["sha256"] != _seal(tensors, metadata):
        raise damaged(form.describe(path), "its checksum does not match its content")
    return tensors, metadata


def check_format(metadata: Mapping[str, str], path: Path, form: TensorFormat) -> None:
    """Refuse metadata with another format or version, or without a required entry.

    Raises:
        RelaxPruneError: naming the file.
    """
    if metadata.get("format") != form.name:
        raise RelaxPruneError(
            f"{str(path)!r} is not a {form.kind}: its metadata must say format {form.name!r}{form.hint}"
        )
    found = metadata.get("schema_version")
    if found != str(form.version):
        raise RelaxPruneError(
            f"{form.describe(path)} has schema version {found!r}, this relaxprune reads {str(form.version)!r}"
        )
    lacking = [key for key in (*form.keys, *(("sha256",) if form.sealed else ())) if key not in metadata]
    if lacking:
        raise damaged(form.describe(path), f"its metadata lacks {', '.join(sorted(lacking))}")


def metadata_json(metadata: Mapping[str, str], key: str, path: Path, form: TensorFormat) -> Any:
    """Return the JSON value of a metadata entry.

    Raises:
        RelaxPruneError: it is not valid JSON.
    """
    try:
        return parse_json(metadata[key])
    except ValueError as error:
        raise damaged(form.describe(path), f"its {key} is not valid JSON ({first_line(error)})") from error


def write_container(
    path: Path, form: TensorFormat, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, str]:
    """Write one of our tensor files durably: it appears whole or not at all, and equal content gives equal bytes.

    Returns:
        The whole metadata, with format, version and, for a sealed format, the checksum.

    Raises:
        RelaxPruneError: a tensor has a dtype that safetensors cannot store.
        OSError: the file cannot be written.
    """
    described = {"format": form.name, "schema_version": str(form.version), **metadata}
    if form.sealed:
        described["sha256"] = _seal(tensors, described)
    write_tensors(path, tensors, described)
    return described


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a plain safetensors file durably; raises as ``write_container`` does."""
    header, order = header_bytes(tensors, metadata or {})
    with durable_path(path) as scratch, scratch.open("wb") as file:
        write_data(file, header, (tensors[name] for name in order))


def write_data(file: BinaryIO, header: bytes, tensors: Iterable[Tensor]) -> None:
    """Write a header, then the bytes of the tensors, one by one."""
    file.write(header)
    for tensor in tensors:
        file.write(raw_bytes(tensor))


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 over the metadata (without ``sha256``) and the tensors."""
    described = {key: value for key, value in metadata.items() if key != "sha256"}
    return checksum(sorted(tensors.items()), json.dumps(described, sort_keys=True).encode())


def _told(what: str, read: Callable[[], T]) -> T:
    """Return what the library reads, or report the file as damaged."""
    try:
        return read()
    except _LIBRARY_ERRORS as error:
        raise damaged(what, first_line(error)) from error
