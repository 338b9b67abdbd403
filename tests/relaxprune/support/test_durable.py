"""Durable writing: whole files only, the user's permissions, nothing left behind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from relaxprune.support import durable


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> int:
    old = os.umask(request.param)
    request.addfinalizer(lambda: os.umask(old))
    return int(request.param)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX systems")
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    durable.write_text(tmp_path / "new", "x")
    assert mode(tmp_path / "new") == 0o666 & ~umask
    (tmp_path / "inner").mkdir()
    private = tmp_path / "inner" / "moved"
    private.write_text("y")
    private.chmod(0o600)
    assert durable.move_into(private, tmp_path) == tmp_path / "moved"
    assert mode(tmp_path / "moved") == 0o666 & ~umask
    assert not private.exists()


@pytest.mark.parametrize("name", ["open", "close", "chmod", "fsync", "replace"])
def test_a_move_that_is_refused_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source = tmp_path / "inner" / "moved"
    source.parent.mkdir()
    source.write_text("y")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(durable.os, name, refuse)
        durable.move_into(source, tmp_path)
    assert source.read_text() == "y"
    assert durable.move_into(source, tmp_path).read_text() == "y"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    durable.write_text(target, "old")
    with pytest.raises(RuntimeError), durable.durable_path(target) as scratch:
        scratch.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_target_is_complete_when_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(durable, "sync_file", lambda path: order.append("file"))
    monkeypatch.setattr(durable, "sync_folder", lambda path: order.append("folder"))
    real_replace = os.replace

    def replace(source: Path, target: Path) -> None:
        order.append("replace")
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    durable.write_text(tmp_path / "file", "new")
    assert order == ["file", "replace", "folder"]


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        durable.write_json(tmp_path / "file", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
