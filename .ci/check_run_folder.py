"""Reads a run folder back as a stranger would: the model with transformers, the masks and the report beside it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from relaxprune.runs.mask_file import read_masks
from relaxprune.runs.run_record import read_record


def check_weights(folder: Path, sparsity: float) -> int:
    """Check every pruned entry for an exact +0.0 and return how many there are.

    Raises:
        SystemExit: naming the parameter, if one is not zero where its mask is, or has another sparsity.
    """
    model = AutoModelForCausalLM.from_pretrained(folder)
    parameters = dict(model.named_parameters())
    pruned = 0
    for name, mask in read_masks(folder / "masks.safetensors").items():
        gone = parameters[name].detach()[~mask]
        if gone.any() or gone.signbit().any():
            sys.exit(f"{name}: a pruned entry is not +0.0")
        keep = mask.shape[1] - int(mask.shape[1] * sparsity)
        if not torch.equal(mask.sum(dim=1), torch.full((mask.shape[0],), keep)):
            sys.exit(f"{name}: a row does not keep {keep} entries")
        pruned += gone.numel()
    return pruned


def check_report(folder: Path, layers: int) -> None:
    """Check that the report has every layer, each with an error, a smaller bound, and no worse a mask than Wanda's.

    Raises:
        SystemExit: naming the layer.
    """
    reports = read_record(folder / "relaxprune.json")["report"]["layers"]
    if len(reports) != layers:
        sys.exit(f"the report has {len(reports)} layers instead of {layers}")
    for layer in reports:
        # A Gram that is PSD only up to float32's rounding, as one of few tokens is, can leave a bound below 0: by that
        # rounding times the energy of its largest columns, which is far above the objective where inputs are massive.
        least = -layer["objective"]
        if not least <= layer["lower_bound"] <= layer["objective"] <= layer["wanda_objective"]:
            sys.exit(f"{layer['name']}: bound {layer['lower_bound']}, objective {layer['objective']} do not fit")


def main() -> None:
    """Check the folder named on the command line and print one line, or fail with one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sparsity", type=float, required=True)
    parser.add_argument("--layers", type=int, required=True)
    wanted = parser.parse_args()
    AutoTokenizer.from_pretrained(wanted.folder)
    check_report(wanted.folder, wanted.layers)
    pruned = check_weights(wanted.folder, wanted.sparsity)
    print(f"{wanted.folder}: {wanted.layers} layers, {pruned} pruned entries are +0.0, bounds and objectives fit")


if __name__ == "__main__":
    main()
