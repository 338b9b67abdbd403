"""Copies of whole folders."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from relaxprune.problems import RelaxPruneError
from relaxprune.support.new_folder import copy_others


def test_a_copy_takes_no_more_room_than_its_source(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(2**36)
        file.write(random.Random(0).randbytes(9_000_000))
    os.truncate(source / "sparse", 2**40)
    (source / "plain").write_bytes(b"x" * 5000)
    (source / "void").touch()
    copy_others(source, out, ())
    assert (out / "plain").read_bytes() == b"x" * 5000 and (out / "void").read_bytes() == b""
    first, second = (source / "sparse").stat(), (out / "sparse").stat()
    assert second.st_size == first.st_size == 2**40 and second.st_blocks <= first.st_blocks + 1024
    with (source / "sparse").open("rb") as one, (out / "sparse").open("rb") as other:
        for place in (0, 2**35, 2**36 - 10, 2**36 + 8_999_990):
            one.seek(place)
            other.seek(place)
            assert one.read(4096) == other.read(4096)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("nowhere"), os.mkfifo], ids=["link", "pipe"])
def test_what_cannot_be_copied_is_refused(tmp_path: Path, make) -> None:
    (tmp_path / "source").mkdir()
    make(tmp_path / "source/odd")
    with pytest.raises(RelaxPruneError, match="cannot be copied"):
        copy_others(tmp_path / "source", tmp_path / "out", ())
