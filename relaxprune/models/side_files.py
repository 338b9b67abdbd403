"""The files of a source beside its weights: tokenizer, processor, chat templates, code of its own, licence, notes.

What is copied is decided by what a file is, not by a list of names: texts, and the few binary formats of tokenizers and
pictures. Weights, whatever their format, programs and links that lead out of the source are left where they are.
"""

from __future__ import annotations

import logging
import shutil
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from pathlib import Path

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.json_files import read_json
from relaxprune.support.sentences import some

from .checkpoint import allowed_roots

_logger = logging.getLogger("relaxprune")

_MOST_BYTES = 64 * 2**20
_LOOK_BYTES = 2**16
_BINARY = (".model", ".spm", ".bpe", ".vocab", ".tiktoken", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf")
_PROGRAMS = (".sh", ".bat", ".cmd", ".ps1", ".bash", ".zsh", ".command", ".pl", ".rb", ".js", ".php", ".pth")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".npy", ".index.json")
# Made anew for the pruned model, or of another run if the source is one's folder.
_OWN = ("config.json", "README.md", "relaxprune.json", "rotation.json", "evaluation.json", "report.html", "report.json")


def side_files(folder: Path) -> list[str]:
    """Return the files of a model's folder that belong to a pruned copy too, as paths in it, sorted.

    Python files are among them only if the model's configuration names code of its own.
    """
    code = names_own_code(folder)
    found, left = [], []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name in _OWN or name.lower().endswith(_WEIGHTS):
            continue
        target = path.resolve()
        if not any(target.is_relative_to(root) for root in allowed_roots(folder.resolve())):
            left.append(name)
        elif path.suffix == ".py":
            found += [name] if code else []
        elif _is_wanted(path):
            found.append(name)
    if left:
        _logger.warning("links out of %s are not copied: %s", folder, some(left))
    return sorted(found)


def copy_side_files(folder: Path, names: Sequence[str], out: Path) -> None:
    """Copy files of a model's folder to the same places in ``out``, without their permissions.

    Raises:
        RelaxPruneError: one of them cannot be read.
        OSError: one cannot be written.
    """
    for name in names:
        try:
            source = (folder / name).open("rb")
        except OSError as error:
            raise RelaxPruneError(
                f"file {str(folder / name)!r} of the model cannot be read: {error.strerror}"
            ) from error
        with source:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            with (out / name).open("wb") as target:
                shutil.copyfileobj(source, target)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders that have no dot in front, without following links to folders."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__pycache__")):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        elif path.is_file():
            yield path


def names_own_code(folder: Path) -> bool:
    """Say whether a configuration in the folder names Python code of the model's own."""
    configs = (path for path in folder.glob("*.json") if path.name.endswith("config.json") and path.is_file())
    return any(isinstance(content, dict) and content.get("auto_map") for content in map(read_json, configs))


def _is_wanted(path: Path) -> bool:
    """Say whether a file is a text or in a format of tokenizers or pictures, of moderate size, and no program."""
    if path.stat().st_size > _MOST_BYTES or path.suffix.lower() in _PROGRAMS:
        return False
    with path.open("rb") as file:
        start = file.read(_LOOK_BYTES)
    if start.startswith((b"#!", b"\x7fELF", b"MZ")):
        return False
    return path.suffix.lower() in _BINARY or _is_text(start)


def _is_text(start: bytes) -> bool:
    """Say whether the first bytes of a file are UTF-8 text; a letter that they cut in two is one."""
    try:
        return "\0" not in getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
