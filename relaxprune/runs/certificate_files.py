"""The certificates of a run folder: one file per layer, in a folder of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.durable import install_files, sync_folder

if TYPE_CHECKING:
    from relaxprune.certificates import Certificate
    from relaxprune.problems import MaskProblem
    from relaxprune.pruning.layer_report import LayerReport

FOLDER_NAME = "certificates"


class CertificateFiles:
    """Where a run keeps its certificates: with its progress while it lasts, then in a folder next to the model."""

    def __init__(self, path: Path, work: Path) -> None:
        """Hold the run's folder and that of its progress; writes nothing."""
        self._path = path
        self._staged = work / "finished"

    def save(self, parameter: str, certificate: Certificate, problem: MaskProblem) -> None:
        """Write a layer's certificate durably."""
        path = self.staged(parameter)
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent.parent)
            sync_folder(path.parent.parent.parent)
        certificate.save(problem, path)

    def staged(self, parameter: str) -> Path:
        """Return where a certificate lies while the run lasts."""
        return self._staged / FOLDER_NAME / _file_name(parameter)

    def moved(self, path: Path) -> Path | None:
        """Return where one of these files lies once it was moved beside the model, None if it was not."""
        if not path.is_relative_to(self._staged):
            return None
        moved = self._path / path.relative_to(self._staged)
        return moved if moved.is_file() else None

    def missing(self, parameters: Iterable[str]) -> list[str]:
        """Return the parameters without a file, of an unfinished run."""
        places = {name: self.staged(name) for name in parameters}
        return [name for name, path in places.items() if not path.is_file() and self.moved(path) is None]

    def install(self) -> list[str]:
        """Move the files to their final folder durably; return all paths there, relative to the run's folder."""
        install_files(self._staged, self._path)
        return sorted(f"{FOLDER_NAME}/{path.name}" for path in (self._path / FOLDER_NAME).glob("*.safetensors"))

    def check(self, layers: Iterable[LayerReport]) -> None:
        """Read every layer's file back and compare it with the report.

        Raises:
            RelaxPruneError: naming the first file that is missing, damaged, or does not have the reported bound.
        """
        from relaxprune.certificates.verify import read_claim

        for layer in layers:
            path = self._path / FOLDER_NAME / _file_name(layer.parameter)
            read = read_claim(path).claim
            reported = (layer.bound.certificate, layer.objective, layer.lower_bound)
            if (read.method, read.objective, read.lower_bound) != reported:
                raise RelaxPruneError(f"{str(path)!r} is not the certificate that the run reported for its layer")


def _file_name(parameter: str) -> str:
    """Return a file name that no two parameters share; ordinary names are kept as they are."""
    return f"{quote(parameter, safe='')}.safetensors"
