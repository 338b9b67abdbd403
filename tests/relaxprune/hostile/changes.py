"""Random changes of files: bytes, JSON, tensor files whose checksum is right again, and what is no file at all."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from relaxprune.masks.compact import COMPACT_FILE, _unpack
from relaxprune.problems import RelaxPruneError
from relaxprune.support.container import TensorFormat, write_container
from relaxprune.support.durable import file_facts
from relaxprune.support.json_files import sealed
from relaxprune.support.tensor_bits import checksum

PATHS = (
    "../outside/secret.safetensors", "..", "/etc/passwd", "/dev/zero", "/dev/stdin", "a\0b", "", ".", "C:\\x",
    "\\\\h\\s", "sub/../../x", "é" * 300, "-", "~", "%2e%2e/x",
)  # fmt: skip
# A JSON string @N@ stands for what Python's writer would not write.
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 5000, "-0", "-0.0", '"\\ud800"', "[" * 9000 + "]" * 9000,
       '{"a":' * 3000 + "1" + "}" * 3000, "[" * 400 + "]" * 400, "[" * 90 + "]" * 90, "01", "nul")  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 2**31, 2**31 - 1, 2**62, 2**63, 2**64, 1e308, 1e-320, 0.5, "", "x", "2:4", "1",
    [], {}, [1], {"a": 1}, [[2**62]], [2**31, 2**31], [0, 2**62], "é" * 99, *PATHS,
    *(f"@{place}@" for place in range(len(RAW))),
)  # fmt: skip
# Entries of a model's configuration that decide how much is made of it; some are in no ordinary file.
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "num_labels", "max_position_embeddings", "pad_token_id", "layer_types", "model_type", "architectures",
    "rope_parameters", "quantization_config", "auto_map", "text_config", "torch_dtype", "dtype", "tie_word_embeddings",
)  # fmt: skip
FULL = 1 << 36  # bytes of a file that takes none


def change_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flip a bit, cut, repeat, insert, take away, overwrite, or lie about the length of a header."""
    place = chance.randrange(len(data) + 1)
    start, end = data[:place], data[place:]
    some = chance.choice((b"\0", b"\xff", b"{", b"}", b'"', b",", b"9", b"\n", b"\0" * 64, b"\xff" * 8))
    length = chance.choice((0, 1, 7, len(data) - 8, len(data) - 7, 10**8, 10**8 + 1, 2**31, 2**63, 2**64 - 1))
    return chance.choice(
        (
            lambda: start + bytes([(end or b"\0")[0] ^ 1 << chance.randrange(8)]) + end[1:],
            lambda: start + bytes([(end or b"\0")[0] ^ 1 << chance.randrange(8)]) + end[1:],
            lambda: start,
            lambda: data + start,
            lambda: start + some + end,
            lambda: start + end[1:],
            lambda: start + some + end[len(some) :],
            lambda: max(0, length).to_bytes(8, "little") + data[8:],
            lambda: end + start,
        )
    )()


def change_json(value: Any, chance: random.Random, values: tuple[Any, ...] = VALUES) -> Any:
    """Put something else in the place of one part of a JSON value, leave it out, add to it, or swap two parts."""
    holder: Any = {"": value}
    key: Any = ""
    while isinstance(holder[key], (dict, list)) and holder[key] and chance.random() < 0.85:
        holder = holder[key]
        key = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
    kind = chance.random()
    if key != "" and kind < 0.15:
        del holder[key]
    elif key != "" and kind < 0.3:
        if isinstance(holder, dict):
            other = chance.choice(list(holder))
            holder[key], holder[other] = holder[other], holder[key]
        else:
            holder.insert(key, holder[key])
    elif isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool) and kind < 0.5:
        holder[key] = chance.choice(
            (holder[key] + 1, -holder[key], holder[key] * 1000, float(holder[key]), holder[key] / 2)
        )
    else:
        holder[key] = chance.choice(values)
    return holder[key] if key == "" else value


def json_text(value: Any, chance: random.Random) -> str:
    """Write a JSON value, with what only a text can say: a key twice, what is no number, another end."""
    text = json.dumps(value)
    for place, raw in enumerate(RAW):
        text = text.replace(f'"@{place}@"', raw)
    kind = chance.random()
    if kind < 0.05 and '": ' in text:
        text = text.replace("{", "{" + text[text.index('"') :].split(", ")[0] + ", ", 1)
    elif kind < 0.08:
        text = chance.choice(("\ufeff", " " * 9, "//\n")) + text
    elif kind < 0.1:
        text += chance.choice(("{}", "\0", "]"))
    return text


def change_json_file(path: Path, chance: random.Random) -> str:
    """Change the value that a JSON file holds; returns whether its seal is right again, as ``change_file`` does."""
    change = "structure"
    value = json.loads(path.read_text(encoding="utf-8"))
    if path.name == "config.json" and chance.random() < 0.6:
        value[chance.choice(SIZES)] = chance.choice(VALUES)
    elif path.name.endswith(".index.json") and chance.random() < 0.6:
        value["weight_map"][chance.choice(list(value["weight_map"]))] = chance.choice((*PATHS, *VALUES))
    else:
        value = change_json(value, chance)
    if isinstance(value, dict) and "sha256" in value and chance.random() < 0.7:
        with suppress(ValueError):  # a number became infinite
            value, change = sealed(value), "listed"
    path.write_bytes(json_text(value, chance).encode(chance.choice(("utf-8",) * 9 + ("utf-16",)), "replace"))
    return change


def change_header(path: Path, chance: random.Random) -> None:
    """Change the header of a tensor file, whose length fits again."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header.get("__metadata__", {})
    inner = [key for key, text in metadata.items() if text[:1] in ("{", "[", "n")]
    if inner and chance.random() < 0.4:
        key = chance.choice(inner)
        metadata[key] = json_text(change_json(json.loads(metadata[key]), chance), chance)
    else:
        header = change_json(header, chance)
    text = json_text(header, chance).encode("utf-8", "replace")
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def change_tensors(path: Path, chance: random.Random, form: TensorFormat | None) -> None:
    """Change tensors or metadata of a tensor file so that sizes, places and checksum fit again."""
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    tensors = load(data)
    inner = [key for key, text in metadata.items() if text[:1] in ("{", "[", "n") and key != "header"]
    if inner and chance.random() < 0.5:
        key = chance.choice(inner)
        metadata[key] = json_text(change_json(json.loads(metadata[key]), chance), chance)
    elif tensors:
        change_tensor(tensors, chance)
    if form is COMPACT_FILE:
        with suppress(Exception):  # not whole any more: the checksum stays what it was
            metadata["sha256"] = checksum(sorted(_unpack(tensors, json.loads(metadata["shapes"])).items()))
    rest = {key: text for key, text in metadata.items() if key not in ("format", "schema_version")}
    plain = TensorFormat("file", metadata.get("format", "pt"), int(metadata.get("schema_version", 1)), sealed=False)
    with suppress(RelaxPruneError, UnicodeError):  # what cannot be written is no file
        path.unlink()
        write_container(path, form or plain, tensors, rest)


def change_tensor(tensors: dict[str, Tensor], chance: random.Random) -> None:
    """Change one of some tensors: dtype, shape, values, name, or whether it is there."""
    name = chance.choice(sorted(tensors))
    tensor = tensors[name]
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: tensor.to(chance.choice((torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool))),
        lambda: tensor.reshape(-1).view(torch.uint8),
        lambda: tensor.reshape(chance.choice(((-1,), (1, -1), (-1, 1), (1, *tensor.shape), (*tensor.shape, 1)))),
        lambda: tensor.reshape(-1)[: chance.randrange(tensor.numel() + 1)],
        lambda: torch.zeros(chance.choice(((0,), (0, 8), (2**40, 0), (), (1,) * 60)), dtype=tensor.dtype),
        lambda: tensor.T if tensor.ndim == 2 else tensor,
        lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor,
        lambda: put(tensor, chance, (0, 1, -1, 255, 127)),
        lambda: put(tensor, chance, (float("nan"), float("inf"), 1e300, -1e300, 1e-310, 3e38, -0.0, 0.5)),
        lambda: tensors[chance.choice(sorted(tensors))],
        lambda: None,
    )
    changed = chance.choice(kinds)()
    if changed is None:
        del tensors[name]
        if chance.random() < 0.5:
            tensors[chance.choice((f"{name}.values", "x", "", "\0", "../x", name.upper(), "é" * 50))] = tensor
    else:
        tensors[name] = changed.contiguous().clone()


def put(tensor: Tensor, chance: random.Random, values: tuple[float, ...]) -> Tensor:
    """Put a value into one place of a tensor, or into all, as far as its dtype has it."""
    found = tensor.clone().reshape(-1)
    with suppress(RuntimeError, OverflowError):
        if found.numel():
            found[chance.randrange(found.numel()) if chance.random() < 0.8 else slice(None)] = chance.choice(values)
    return found.reshape(tensor.shape)


def replace_place(path: Path, chance: random.Random) -> None:
    """Put in the place of a file what is none, or a link, or a file of 64 GiB that take no room."""
    data = path.read_bytes()
    path.unlink()
    outside = path.parent / "../outside"
    kinds: tuple[Callable[[], Any], ...] = (
        path.mkdir,
        path.touch,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/dev/null"),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to(outside),
        lambda: None,
        lambda: sparse(path, b""),
        lambda: sparse(path, data),
        lambda: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
        lambda: path.write_bytes(chance.randbytes(chance.choice((1, 7, 8, 9, 4000)))),
    )
    chance.choice(kinds)()


def sparse(path: Path, start: bytes) -> None:
    """Write a file that says that it has ``FULL`` bytes."""
    path.write_bytes(start)
    os.truncate(path, FULL)


# Files of ours that have the checksums of others.
LISTS = ("manifest.json", "relaxprune.json", "relaxprune-masks.json")


def list_again(path: Path) -> bool:
    """Have the list of a run's files say that a changed file is the right one; returns whether one does."""
    lists = {above / name for above in path.parents for name in LISTS} - {path}
    for file in filter(Path.is_file, lists):
        content = json.loads(file.read_text())
        entry = content["files"].get(path.relative_to(file.parent).as_posix())
        if entry is not None and path.is_file():
            entry.update(file_facts(path))
            file.write_text(json.dumps(sealed(content)))
            return True
    return False


def change_file(path: Path, chance: random.Random, form: TensorFormat | None) -> str:
    """Change a file in one way; returns which: "bytes", "structure", "sealed", "place", or "listed" anew."""
    change = change_content(path, chance, form)
    return "listed" if change != "place" and chance.random() < 0.5 and list_again(path) else change


def change_content(path: Path, chance: random.Random, form: TensorFormat | None) -> str:
    """Change a file in one way, whatever lists it; returns which."""
    kind = chance.random()
    if kind < 0.06:
        replace_place(path, chance)
        return "place"
    if kind < 0.4 or not (path.suffix == ".json" or path.name.endswith(".safetensors")):
        path.write_bytes(change_bytes(path.read_bytes(), chance))
        return "bytes"
    if path.suffix == ".json":
        return change_json_file(path, chance)
    if kind < 0.65:
        change_header(path, chance)
        return "structure"
    change_tensors(path, chance, form)
    return "sealed"
