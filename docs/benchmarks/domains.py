"""Domain shift and calibration tokens: masks chosen on one kind of text, their errors on unseen text of every kind.

    python docs/benchmarks/domains.py --plot domains.png --write-texts texts

Four domains. `prose`: --prose, by default the language reference that comes with Python, which is English, though
technical. `code`: the standard library's own Python files. `language`: translated messages (.mo files) of installed
packages in --language; `pip install --no-deps Django` brings some. `model`: text sampled from the model. Calibration
and unseen text of a domain share nothing. Errors are layer by layer, on Grams of the dense model: objective on the
Gram of the unseen text, over its dense energy.
"""

from __future__ import annotations

import argparse
import gettext
import site
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import head, line, model_grams, model_weight, objective, picture, polytope
from matplotlib.axes import Axes
from torch import Tensor

from relaxprune import MaskProblem, RelaxPruneError, load_model, solve
from relaxprune.text.windows import CalibrationOptions, calibration_windows, evaluation_windows

METHODS: dict[str, dict[str, Any]] = {
    "wanda": {"solver": "wanda"},
    "sparsefw": {"solver": "sparsefw", "alpha": 0.75, "at_most": False, "max_iterations": 500},
    "fw": {"solver": "fw"},
}
SHRINKAGES = (0.02, 0.1, 0.3)
HELD_OUT = 0.4
DRAWN = "model"
ROLES = ("self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Domain:
    """Token windows of one kind of text: (windows, length) each, without a token in both."""

    calibration: Tensor
    unseen: Tensor


def python_code(characters: int = 1_500_000) -> str:
    """Return source code of the standard library, file after file in the order of their names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    parts, size = [], 0
    for file in sorted(folder.glob("*.py")):
        parts.append(file.read_text(encoding="utf-8", errors="ignore"))
        size += len(parts[-1])
        if size >= characters:
            break
    return "\n\n".join(parts)


def translations(language: str) -> str:
    """Return the translated messages of installed packages, each once."""
    messages: dict[str, None] = {}
    for folder in sorted({*site.getsitepackages(), *sys_path()}):
        for file in sorted(Path(folder).glob(f"**/{language}/LC_MESSAGES/*.mo")):
            with file.open("rb") as opened:
                catalogue: dict[Any, str] = gettext.GNUTranslations(opened)._catalog  # type: ignore[attr-defined]
            messages.update((text.strip(), None) for key, text in catalogue.items() if key and len(text) > 20)
    return "\n".join(messages)


def sys_path() -> list[str]:
    """Return the folders on the import path."""
    import sys

    return [folder for folder in sys.path if folder and Path(folder).is_dir() and "site" in folder]


def texts(folder: Path, prose: str, language: str) -> dict[str, str]:
    """Write the texts of the domains that are not there yet; return domain -> calibration source."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {"prose": prose}
    for name, text in (("code", python_code()), ("language", translations(language))):
        if not text:
            print(f"\nno messages in {language!r} are installed: this domain is left out.")
            continue
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        sources[name] = str(folder / f"{name}.txt")
    return sources


def windows(loaded: Any, sources: dict[str, str], arguments: argparse.Namespace) -> dict[str, Domain]:
    """Cut every domain into windows; one whose text is too short is told and left out."""
    most, unseen = max(arguments.windows), arguments.unseen
    found: dict[str, Domain] = {}
    for name, source in sources.items():
        common: dict[str, Any] = {"length": arguments.length, "held_out": HELD_OUT}
        try:
            one = calibration_windows(source, loaded.tokenizer, CalibrationOptions(windows=most, **common))
            other = evaluation_windows(source, loaded.tokenizer, CalibrationOptions(windows=unseen, **common))
        except RelaxPruneError as error:
            print(f"\n{name} is left out: {error}")
            continue
        found[name] = Domain(one.tokens, other.tokens)
    if arguments.sample:
        options = CalibrationOptions(windows=most + unseen, length=arguments.length)
        drawn = calibration_windows("self", loaded.tokenizer, options, model=loaded.model).tokens
        found[DRAWN] = Domain(drawn[:most], drawn[most:])
    return found


def mask(weight: Tensor, gram: Tensor, pattern: str, options: dict[str, Any]) -> Tensor:
    """Choose a mask, (rows, cols) bool."""
    masks = polytope(pattern, (weight.shape[0], weight.shape[1]))
    return solve(MaskProblem(weight, gram, masks), **options).mask


def shrunk(gram: Tensor, share: float) -> Tensor:
    """Return (1 − share) G + share Diag(G): less faith in correlations, which few tokens estimate badly."""
    return (1 - share) * gram + share * torch.diag(gram.diagonal())


def mean_error(weights: dict[str, Tensor], grams: dict[str, Tensor], masks: dict[str, Tensor]) -> float:
    """Return the mean over layers of objective / dense energy on given Grams."""
    errors = []
    for name, weight in weights.items():
        energy = objective(weight, grams[name], torch.zeros_like(masks[name]))
        errors.append(objective(weight, grams[name], masks[name]) / energy)
    return sum(errors) / len(errors)


def shift(weights: dict[str, Tensor], seen: dict[str, Any], unseen: dict[str, Any], pattern: str) -> None:
    """Print the table of every domain against every other."""
    print(f"\nMean relative error on unseen text, {pattern}, by the domain of the calibration text:\n")
    head("calibrated on", "method", *unseen)
    for source, grams in seen.items():
        for method, options in METHODS.items():
            masks = {name: mask(weight, grams[name], pattern, options) for name, weight in weights.items()}
            line(source, method, *(mean_error(weights, unseen[target], masks) for target in unseen))


def learning(
    weights: dict[str, Tensor], by_count: dict[int, Any], unseen: dict[str, Tensor], pattern: str
) -> dict[str, list[tuple[int, float]]]:
    """Print and return the error on unseen text against the number of calibration tokens."""
    rows = {**{name: (options, 0.0) for name, options in METHODS.items()}}
    rows |= {f"fw, shrinkage {share:g}": (METHODS["fw"], share) for share in SHRINKAGES}
    print(f"\nMean relative error on unseen text of the same domain, {pattern}, by calibration tokens:\n")
    head("method", *(f"{tokens}" for tokens in by_count))
    curves: dict[str, list[tuple[int, float]]] = {}
    for label, (options, share) in rows.items():
        for tokens, grams in by_count.items():
            masks = {n: mask(weight, shrunk(grams[n], share), pattern, options) for n, weight in weights.items()}
            curves.setdefault(label, []).append((tokens, mean_error(weights, unseen, masks)))
        line(label, *(error for _, error in curves[label]))
    return curves


def panel(curves: dict[str, list[tuple[int, float]]], axes: Axes) -> None:
    """Draw errors against tokens."""
    for label, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker=".", label=label, linestyle="--" if "," in label else "-")
    axes.set(xscale="log", xlabel="calibration tokens", ylabel="mean relative error, unseen text")
    axes.legend(fontsize="x-small")


def main() -> None:
    """Print two tables in Markdown, and draw the second if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prose", default="builtin", help="builtin or a text file")
    parser.add_argument("--language", default="de")
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 15, 29])
    parser.add_argument("--rows", type=int, default=64, help="of every layer")
    parser.add_argument("--pattern", default="50%")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--unseen", type=int, default=16, help="windows of unseen text")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--no-sample", dest="sample", action="store_false", help="leave out text by the model")
    parser.add_argument("--write-texts", type=Path, default=Path("runs/domains"), help="folder for the texts")
    parser.add_argument("--plot", default=None)
    arguments = parser.parse_args()
    loaded = load_model(arguments.model)
    domains = windows(loaded, texts(arguments.write_texts, arguments.prose, arguments.language), arguments)
    names = [f"model.layers.{block}.{role}" for block in arguments.blocks for role in ROLES]
    weights = {name: model_weight(loaded.model, name, arguments.rows) for name in names}
    counts = sorted(arguments.windows)
    print(
        f"\n{len(names)} layers, first {arguments.rows} rows; {counts[-1]} windows of {arguments.length} calibration "
        f"tokens, {arguments.unseen} of unseen text"
    )
    seen = {name: model_grams(loaded.model, domain.calibration, names) for name, domain in domains.items()}
    unseen = {name: model_grams(loaded.model, domain.unseen, names) for name, domain in domains.items()}
    shift(weights, seen, unseen, arguments.pattern)
    tokens = domains["prose"].calibration
    by_count = {n * arguments.length: model_grams(loaded.model, tokens[:n], names) for n in counts[:-1]}
    by_count[counts[-1] * arguments.length] = seen["prose"]
    curves = learning(weights, by_count, unseen["prose"], arguments.pattern)
    if arguments.plot:
        picture(arguments.plot, [lambda axes: panel(curves, axes)])


if __name__ == "__main__":
    main()
