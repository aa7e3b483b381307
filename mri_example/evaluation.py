"""From reconstructions and targets to a table of scores."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mri_example.data.files import KSpaceFile, read_reconstruction, volume_paths
from mri_example.data.writing import whole_file
from mri_example.errors import InputError
from mri_example.metrics import METRICS, Scores, Summary, score, summarize


@dataclass(frozen=True)
class Evaluation:
    """Scores by the name of the volume, and their summary."""

    volumes: dict[str, Scores]
    summary: Summary

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.volumes, "mean +- 2 sd"))
        lines = [f"{'volume':{width}}  {'NMSE':>16}  {'PSNR':>15}  {'SSIM':>15}"]
        for name, s in self.volumes.items():
            lines.append(
                f"{name:{width}}  {s.nmse:16.5f}  {s.psnr:15.3f}  {s.ssim:15.4f}"
            )
        m, d = self.summary.mean, self.summary.spread
        lines.append(
            f"{'mean +- 2 sd':{width}}  {m.nmse:.5f} +- {d.nmse:.4f}"
            f"  {m.psnr:6.3f} +- {d.psnr:.3f}  {m.ssim:.4f} +- {d.ssim:.4f}"
        )
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write all numbers as JSON."""
        numbers = {
            "volumes": {name: asdict(s) for name, s in self.volumes.items()},
            "mean": asdict(self.summary.mean),
            "two_standard_deviations": asdict(self.summary.spread),
        }
        with whole_file(path) as partial:
            partial.write_text(json.dumps(numbers, indent=2) + "\n")


def evaluate(
    targets: Path, reconstructions: Path, acquisition: str | None = None
) -> Evaluation:
    """Compare a folder of reconstructions with the targets, volume by volume.

    Args:
        targets: Folder of files with targets.
        reconstructions: Folder of reconstructions with the same names.
        acquisition: Count only the volumes of this acquisition.

    Returns:
        The scores.

    Raises:
        InputError: If a target has no reconstruction, or nothing is left to count.
    """
    files = [KSpaceFile.inspect(path) for path in volume_paths(targets)]
    if acquisition is not None:
        known = sorted({str(f.attributes.get("acquisition")) for f in files})
        files = [f for f in files if f.attributes.get("acquisition") == acquisition]
        if not files:
            raise InputError(
                f"acquisition is {acquisition!r}, but the files have {', '.join(known)}"
            )
    missing = [
        f.path.name for f in files if not (reconstructions / f.path.name).exists()
    ]
    if missing:
        raise InputError(
            f"{reconstructions} lacks {missing[0]} ({len(missing)} missing of "
            f"{len(files)}): reconstruct all volumes first"
        )
    scores = {
        f.path.name: score(
            f.target_volume(), read_reconstruction(reconstructions / f.path.name)
        )
        for f in files
    }
    return Evaluation(scores, summarize(scores.values()))


__all__ = ["METRICS", "Evaluation", "evaluate"]
