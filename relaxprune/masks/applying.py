"""Putting the masks of a package on the dense model that they are for: bit for bit the model that the run pruned."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from relaxprune.models.layers import apply_masks
from relaxprune.models.loading import LoadedModel, LoadOptions, load_model
from relaxprune.models.rotated_blocks import changes_bases
from relaxprune.models.saved_model import ReloadCheck, save_settings, save_weights, verify_saved_model
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.channels.permutation import Permutation
from relaxprune.pruning.channels.reorder import apply_permutations
from relaxprune.runs.fingerprint import weights_sha256
from relaxprune.runs.mask_file import MASKS_NAME
from relaxprune.runs.model_card import CARD_NAME, model_card
from relaxprune.runs.model_files import file_names
from relaxprune.runs.run_record import RECORD_NAME, list_files
from relaxprune.runs.source_weights import is_source
from relaxprune.support.durable import write_json, write_text
from relaxprune.support.json_files import sealed
from relaxprune.support.new_folder import new_folder

from .package import MaskPackage, layers_of, notes_of, read_package, result_hashes


@dataclass(frozen=True)
class ApplyResult:
    """What ``apply_package`` wrote and checked.

    Attributes:
        base_model: the dense model, as the run's record names it.
        checked: what the reload of the written model confirmed.
        files: number of files in the new folder.
        identical: how many of them are the run's own, byte for byte; others depend on the versions of libraries.
    """

    base_model: str
    checked: ReloadCheck
    files: int
    identical: int


def apply_package(
    package: str | Path,
    model: str,
    out: str | Path,
    options: LoadOptions | None = None,
    *,
    shard_bytes: int | None = None,
) -> ApplyResult:
    """Write the pruned model that a mask package and its dense model make.

    Args:
        package: a folder that ``export_package`` wrote.
        model: the dense model, as ``load_model`` takes it; for the hub model that the run pruned, without a revision,
            the run's own commit is taken.
        out: new folder, outside ``package``; it appears when it is complete. It is a run folder like the run's.
        options: how to load the model: the device, the revision, the cache and ``trust_remote_code`` are taken.
        shard_bytes: most that a weight file holds, unless a single tensor is larger; None for 50 GB.

    Raises:
        RelaxPruneError: the package is damaged, the model is another one than was pruned, or ``out`` cannot be written.
    """
    goods = read_package(package)
    with new_folder(Path(out), goods.folder) as staging:
        loaded = _dense(goods, model, replace(options or LoadOptions(), dtype="auto", offload=None))
        save_settings(loaded.model, loaded.tokenizer, staging)
        _prune(goods, loaded)
        save_weights(loaded.model, staging, loaded.surplus, shard_bytes)
        loaded.surplus.copy_files(staging)
        for name in (MASKS_NAME, *goods.certificates):
            (staging / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(goods.folder / name, staging / name)
        checked = verify_saved_model(staging, loaded.model, goods.run.masks, loaded.surplus)
        record = _write_record(goods, staging, checked, changes_bases(loaded.model))
    was, now = goods.run.record["files"], record["files"]
    same = sum(was.get(name) == facts for name, facts in now.items())
    return ApplyResult(notes_of(goods.run).base_model, checked, len(now), same)


def _dense(goods: MaskPackage, model: str, options: LoadOptions) -> LoadedModel:
    """Load the dense model as it is stored, and refuse another one than the masks are for."""
    facts = goods.run.record["fingerprint"]["model"]
    if facts.get("kind") == "hub" and model == facts["source"] and options.revision is None:
        options = replace(options, revision=facts.get("commit"))
    loaded = load_model(model, options)
    if not is_source(goods.run.record, loaded, lambda dtype: load_model(model, replace(options, dtype=dtype))):
        commit = f" (commit {facts['commit']})" if facts.get("commit") else ""
        raise RelaxPruneError(
            f"model {model!r} is not the one that the masks of {str(goods.folder)!r} are for: its weights have SHA-256 "
            f"{weights_sha256(loaded.model)}, those of {facts['source']!r}{commit} had {facts['weights_sha256']}"
        )
    return loaded


def _prune(goods: MaskPackage, loaded: LoadedModel) -> None:
    """Put orders of channels and masks on the dense model, and refuse a result that is not the run's."""
    orders = goods.run.record["report"].get("permutations") or ()
    apply_permutations(loaded.model, [Permutation.from_dict(item) for item in orders])
    apply_masks(loaded.model, goods.run.masks)
    found = result_hashes(loaded)
    wrong = [name for name, wanted in goods.hashes.items() if found.get(name) != wanted]
    if wrong:
        what = "weights are" if wrong[0] == "weights_sha256" else "tensors that the model does not use are"
        raise RelaxPruneError(
            f"model {loaded.source!r} under the masks of {str(goods.folder)!r} is not the model that the run wrote: "
            f"its {what} not those of SHA-256 {goods.hashes[wrong[0]]}; give the model that was pruned"
        )


def _write_record(goods: MaskPackage, folder: Path, checked: ReloadCheck, own_loader: bool) -> Mapping[str, Any]:
    """Write the card, and the run's record with the files and checks of this folder; return that."""
    was = goods.run.record
    card = model_card(
        notes_of(goods.run), was["fingerprint"], layers_of(goods.run), bool(goods.certificates), own_loader
    )
    write_text(folder / CARD_NAME, card)
    record = sealed({**was, "verification": asdict(checked), "files": list_files(folder, file_names(folder))})
    write_json(folder / RECORD_NAME, record)
    return record
