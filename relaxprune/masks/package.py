"""A mask package: the masks of a run and what they are worth, without any weight.

A folder with ``masks.safetensors`` (one bit for each weight), ``relaxprune.json`` (the run's own record: settings,
errors and bounds), the certificates of its bounds, if it has any, a card, and ``relaxprune-masks.json``: the size and
SHA-256 of each of these, and the SHA-256 of the pruned model's weights. With the dense model, whose SHA-256 the record
has, that is the pruned model (``applying``).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from relaxprune.models.loading import LoadedModel, LoadOptions, load_model
from relaxprune.options.prune_options import new_values
from relaxprune.options.target import Target
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.runs.certificate_files import FOLDER_NAME as CERTIFICATES
from relaxprune.runs.fingerprint import weights_sha256
from relaxprune.runs.finished_run import FinishedRun, read_finished_run
from relaxprune.runs.mask_file import MASKS_NAME
from relaxprune.runs.model_card import CARD_NAME, CARD_SHAPE, package_card
from relaxprune.runs.run_record import RECORD_NAME, UNSEALED, RunNotes, is_inside, list_files, now, verify_files
from relaxprune.support.durable import is_unchanged, write_json, write_text
from relaxprune.support.json_files import JsonFormat, Values, is_sealed, misfit, read_document, sealed
from relaxprune.support.new_folder import new_folder
from relaxprune.support.sentences import damaged
from relaxprune.support.tensor_bits import checksum

PACKAGE_NAME = "relaxprune-masks.json"
_HASHES = {"weights_sha256": str, "unused_sha256": str}
_FORM = JsonFormat(
    version=1,
    shape={"written": str, "pruned": _HASHES, "files": Values({"bytes": int, "sha256": str}), "sha256": str},
    advice="fetch the mask package again",
)


@dataclass(frozen=True, eq=False)
class MaskPackage:
    """A mask package whose files are as they were written.

    Attributes:
        run: the run's record, reports and masks; its path is the package's folder.
        hashes: of the pruned model, as ``result_hashes`` gives them.
        files: its files -> ``bytes`` and ``sha256``.
    """

    run: FinishedRun
    hashes: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.run.path

    @property
    def certificates(self) -> list[str]:
        """Its certificate files, as paths in its folder."""
        return _certificates(self.files)

    @property
    def weights(self) -> int:
        """Number of weights that have a bit."""
        return sum(rows * cols for rows, cols in self.run.masks.shapes.values())

    def size(self, names: list[str] | None = None) -> int:
        """Bytes of some of its files, of all by default."""
        return sum(self.files[name]["bytes"] for name in (self.files if names is None else names))


def export_package(
    run: str | Path, out: str | Path, *, certificates: bool = True, trust_remote_code: bool = False
) -> MaskPackage:
    """Write the mask package of a finished run.

    Args:
        run: the run's folder.
        out: new folder, outside ``run``; it appears when it is complete.
        certificates: take the run's certificates along, which have up to nine bytes for each weight.
        trust_remote_code: run Python files that come with the model, where loading it needs them.

    Raises:
        RelaxPruneError: there is no finished run, a file of it is not as it was written, or it rotated the model or
            gave weights new values, which masks do not hold.
    """
    folder, target = Path(run), Path(out)
    found = read_finished_run(folder)
    _refuse_new_weights(found)
    _refuse_rotated(found)
    with new_folder(target, folder) as staging:
        verify_files(folder)
        result = load_model(str(folder.resolve()), LoadOptions(trust_remote_code=trust_remote_code))
        names = [MASKS_NAME, RECORD_NAME, *(_certificates(found.record["files"]) if certificates else ())]
        for name in names:
            (staging / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, staging / name)
        write_text(staging / CARD_NAME, package_card(notes_of(found), found.record["fingerprint"], layers_of(found)))
        content = {
            "schema_version": _FORM.version,
            "written": now(),
            "pruned": result_hashes(result),
            "files": list_files(staging, [*names, CARD_NAME]),
        }
        write_json(staging / PACKAGE_NAME, sealed(content))
    return read_package(target)


def read_package(folder: str | Path) -> MaskPackage:
    """Read a mask package and compare every file of it with its checksum.

    Raises:
        RelaxPruneError: it is none, a file is missing or not the one that was written, or its run moved weights.
    """
    folder = Path(folder)
    if not (folder / PACKAGE_NAME).is_file():
        raise RelaxPruneError(
            f"{str(folder)!r} is no mask package (it has no {PACKAGE_NAME}): make one of a run with masks export"
        )
    content = read_document(folder / PACKAGE_NAME, _FORM)
    files = content["files"]
    if not is_sealed(content):
        raise damaged(repr(str(folder / PACKAGE_NAME)), "its checksum does not match its content", _FORM.advice)
    for name, facts in files.items():
        strange = not is_inside(name) or (folder / name).is_symlink()
        if strange or len(PurePath(name).parts) > 2 or not is_unchanged(folder / name, facts):
            raise RelaxPruneError(
                f"{str(folder / name)!r} is missing or is not the file that the mask package was given"
            )
    if lacking := {MASKS_NAME, RECORD_NAME} - set(files):
        raise damaged(repr(str(folder / PACKAGE_NAME)), f"it lists no {sorted(lacking)[0]}", _FORM.advice)
    run = read_finished_run(folder)
    if not is_sealed(run.record):
        raise damaged(repr(str(folder / RECORD_NAME)), UNSEALED, _FORM.advice)
    if wrong := misfit(run.record, CARD_SHAPE):
        raise damaged(repr(str(folder / RECORD_NAME)), f"{wrong!r} is missing or has the wrong type", _FORM.advice)
    Target.from_dict(run.settings["polytope"])  # refused unless it is one
    _refuse_new_weights(run)
    return MaskPackage(run, content["pruned"], files)


def result_hashes(loaded: LoadedModel) -> dict[str, str]:
    """Return what identifies a pruned model: checksums of its weights, and of the tensors that it does not use."""
    unused = loaded.surplus.tensors
    return {
        "weights_sha256": weights_sha256(loaded.model),
        "unused_sha256": checksum((name, unused.read(name)) for name in sorted(unused.files)),
    }


def notes_of(run: FinishedRun) -> RunNotes:
    """Return what a run's record notes for its card."""
    notes = run.record["notes"]
    base = notes.get("base_model") or run.record["fingerprint"]["model"]["source"]
    return RunNotes(notes.get("command") or "", base, notes.get("license"), tuple(notes["notices"]))


def layers_of(run: FinishedRun) -> list[dict[str, Any]]:
    """Return the reports of a run's layers, as its card takes them."""
    return [layer.to_dict() for layer in run.layers]


def _refuse_new_weights(run: FinishedRun) -> None:
    """Raise RelaxPruneError for a run whose kept weights are not the source's."""
    if new_values(run.settings):
        asked = {"refit": run.settings.get("weights") == "refit"}
        asked |= {name: bool(run.settings.get(name)) for name in ("tune", "refine")}
        moved = [f"--{name}" for name, given in asked.items() if given]
        raise RelaxPruneError(
            f"run {str(run.path)!r} gave kept weights new values ({', '.join(moved)}), so its masks alone are not its "
            "model: publish the model itself, or prune without these options"
        )


def _refuse_rotated(run: FinishedRun) -> None:
    """Raise RelaxPruneError for a run that rotated its model: nobody else has the weights that its masks are for."""
    if run.record["fingerprint"]["model"].get("rotation"):
        raise RelaxPruneError(
            f"run {str(run.path)!r} rotated its model, so its masks are not for the base model: publish the model "
            "itself, or the one that `relaxprune rotate` writes, and prune that"
        )


def _certificates(names: Iterable[str]) -> list[str]:
    """Return those of some listed files that are certificates, sorted."""
    found = (name for name in names if name.startswith(f"{CERTIFICATES}/"))
    return sorted(name for name in found if PurePath(name).suffix == ".safetensors")
