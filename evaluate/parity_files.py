"""Statistics files between the tools: theirs read by ours, ours read by theirs, and the distance that each finds."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from genflow.evaluate.feature_set import FeatureSet
from genflow.evaluate.parity_table import FILE_LIMIT, Row
from genflow.evaluate.parity_tools import ToolRun, quiet
from genflow.evaluate.statistics_files import load_statistics, save_statistics_npz
from genflow.metrics import FeatureStatistics, frechet_distance_from_statistics

__all__ = ["clean_fid_rows", "pytorch_fid_rows", "write_ours"]

_MODE = "legacy_pytorch"  # clean-fid's mode that takes its weights from TORCH_HOME
_SINGULAR_LIMIT = 1e-5
_NAMES = ("genflow-parity-a", "genflow-parity-b")


def pytorch_fid_rows(images: str, folders: tuple[Path, Path], ours: ToolRun, dims: int, work: Path) -> Iterator[Row]:
    """pytorch-fid's own files of ``dims`` features, and ours, each pair read by both programs."""
    from pytorch_fid import fid_score

    work.mkdir(parents=True, exist_ok=True)
    written = [work / f"pytorch-fid-{dims}-{side}.npz" for side in "ab"]
    with quiet():
        for folder, path in zip(folders, written, strict=True):
            path.unlink(missing_ok=True)
            fid_score.save_fid_stats([str(folder), str(path)], 32, "cpu", dims, num_workers=0)
    pairs = {"its files": written, "our files": write_ours(ours, work)}
    for name, pair in pairs.items():
        with quiet():
            theirs = fid_score.calculate_fid_given_paths([str(path) for path in pair], 32, "cpu", dims, num_workers=0)
        yield Row.of(images, "pytorch-fid", f"fid of {name}, {dims}", float(theirs), _distance(pair), FILE_LIMIT)


def clean_fid_rows(images: str, folders: tuple[Path, Path], ours: ToolRun, work: Path) -> list[Row]:
    """clean-fid's own custom statistics, and ours put in their place, each pair read by both programs.

    Of 2048 features and fewer images, so the covariances are singular, and scipy's square root of such a product is
    itself good to about 1e-6 only.
    """
    from cleanfid import features, fid

    work.mkdir(parents=True, exist_ok=True)
    found = {}
    with _no_custom_statistics() as places, quiet():
        for folder, name in zip(folders, _NAMES, strict=True):
            fid.make_custom_stats(name, str(folder), mode=_MODE, batch_size=32, device=torch.device("cpu"))
        for whose in ("its files", "our files"):
            if whose == "our files":
                for path, place in zip(write_ours(ours, work), places, strict=True):
                    shutil.copyfile(path, place)
            read = [features.get_reference_statistics(name, "na", mode=_MODE, split="custom") for name in _NAMES]
            found[whose] = float(fid.frechet_distance(*read[0], *read[1])), _distance(places)
    return [Row.of(images, "clean-fid", f"fid of {whose}", *pair, _SINGULAR_LIMIT) for whose, pair in found.items()]


def write_ours(run: ToolRun, folder: Path) -> list[Path]:
    """Our statistics files of both sides' features."""
    paths = [folder / f"genflow-{run.real.shape[1]}-{side}.npz" for side in "ab"]
    for path, values in zip(paths, (run.real, run.generated), strict=True):
        statistics = FeatureStatistics.from_features(torch.from_numpy(np.asarray(values)))
        save_statistics_npz(path, FeatureSet(statistics, {"features": "inception"}))
    return paths


def _distance(pair: list[Path]) -> float:
    return frechet_distance_from_statistics(*(load_statistics(path).statistics for path in pair))


@contextmanager
def _no_custom_statistics() -> Iterator[list[Path]]:
    """Yield where clean-fid keeps statistics by our names, inside its package; none are there before and after."""
    import cleanfid

    folder = Path(cleanfid.__file__).parent / "stats"
    files = [folder / f"{name}_{_MODE}_custom_na{end}.npz" for end in ("", "_kid") for name in _NAMES]
    try:
        for path in files:
            path.unlink(missing_ok=True)
        yield files[: len(_NAMES)]
    finally:
        for path in files:
            path.unlink(missing_ok=True)
