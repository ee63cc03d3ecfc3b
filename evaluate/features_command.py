"""The command that keeps features and statistics in a file: ``genflow evaluate features``."""

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genflow.errors import InputError, check_number
from genflow.evaluate import options
from genflow.files import check_output_file

if TYPE_CHECKING:
    from genflow.evaluate.feature_set import FeatureSet

__all__ = ["check_features_file", "evaluate_features", "write_features"]

_SUFFIXES = (".safetensors", ".npz")


def check_features_file(argument: str, path: str | Path, *, half: bool = False) -> None:
    """Raise InputError unless :func:`write_features` can write there, and overwrites nothing but what it wrote.

    The suffix says what is written; a file of another kind that is there already, such as a model's weights or an
    archive of images, is refused.
    """
    from genflow.evaluate.feature_set import is_feature_set
    from genflow.evaluate.statistics_files import holds_only_statistics

    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{argument}: {str(path)!r} has to end in .safetensors (features) or .npz (mu and sigma)")
    if half and path.suffix == ".npz":
        raise InputError("--half: of features; an .npz holds statistics alone, in float64")
    check_output_file(argument, path)
    own = is_feature_set if path.suffix == ".safetensors" else holds_only_statistics
    if path.is_file() and not own(path):
        raise InputError(f"{argument}: {str(path)!r} is there and holds something else than features; remove it first")


def write_features(path: str | Path, feature_set: "FeatureSet", *, half: bool = False) -> None:
    """Write a ``.safetensors`` of features and statistics, or an ``.npz`` of mu and sigma, by the suffix."""
    from genflow.evaluate.feature_set import save_feature_set
    from genflow.evaluate.statistics_files import save_statistics_npz

    if Path(path).suffix == ".npz":
        save_statistics_npz(path, feature_set)
    else:
        save_feature_set(path, feature_set, half=half)


def evaluate_features(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="F.safetensors for features and statistics, F.npz for mu and sigma as pytorch-fid reads them.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    samples: Annotated[
        str | None,
        typer.Argument(
            help="A folder, .zip or .tar of images, an .npz, .npy or IDX file, fashion-mnist[:train|:test] or a data "
            "set's id.",
            show_default=False,
        ),
    ] = None,
    model: options.Model = None,
    num: options.Num = None,
    count: options.Count = None,
    seed: options.Seed = 0,
    skip_bad: options.SkipBad = False,
    features: options.Features = None,
    weights: options.Weights = None,
    resize: options.Resize = None,
    dtype: options.Dtype = "float32",
    half: Annotated[
        bool, typer.Option("--half", help="Keep features as float16, at half the size; statistics stay float64.")
    ] = False,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    cache: options.Cache = True,
) -> None:
    """Compute features and statistics of images once, for 'genflow evaluate SAMPLES --reference FILE'.

    The network is inception by default, for the data set fashion-mnist its classifier. The file says which network,
    weights and resize mode made the features; what was made by others is refused in a comparison with it.

    Features are also kept by content in $GENFLOW_CACHE/features, else ~/.cache/genflow/features, where a run that was
    stopped goes on; at most 8 GiB, those used longest ago go first. Remove the folder to clear it.

    Examples:

    \b
      genflow evaluate features photos/ --out photos.safetensors
      genflow evaluate features train.zip --resize clean --count 50000 --out clean.npz
      genflow evaluate features fashion-mnist:train --half --out train.safetensors
      genflow evaluate features --model fashion-mnist --num 10000 --out samples.safetensors
      accelerate launch --num_processes 4 -m genflow evaluate features photos/ --out photos.safetensors
    """
    check_features_file("--out", out, half=half)
    if batch_size is not None:
        check_number("--batch-size", batch_size, at_least=1, integer=True)
    if workers is not None:
        check_number("--workers", workers, at_least=0, integer=True)
    warnings.filterwarnings("ignore", category=FutureWarning)
    from genflow.evaluate.extraction import extract
    from genflow.evaluate.sides import choose_extractor, samples_of
    from genflow.processes import choose_device, processes

    place = choose_device(device)
    team = processes(cpu=place.type == "cpu")
    if model is not None:
        from genflow.pipelines.opening import quiet

        quiet()
    given = samples_of(samples, model, num, device=place)
    if given.source is None:
        raise InputError(f"samples: {given.name} holds features or statistics already; allowed: images")
    extractor = choose_extractor(
        [replace(given, argument="reference")],  # by the same defaults as those of a reference's images
        features,
        weights=weights,
        resize=resize,
        dtype=dtype,
        batch_size=batch_size,
        device=place,
    )
    begun, seen = time.perf_counter(), 0

    def begins(images: int) -> None:
        nonlocal seen
        seen = images

    found = extract(
        given.source, extractor, count=count, seed=seed, workers=workers, skip_bad=skip_bad, cache=cache, begins=begins
    )
    seconds = time.perf_counter() - begun
    if team.first:
        write_features(out, found, half=half)
        _tell(out, found, seen, seconds, cache)


def _tell(out: Path, found: "FeatureSet", seen: int, seconds: float, cache: bool) -> None:
    from genflow.evaluate.console import rate
    from genflow.evaluate.feature_cache import LIMIT, cache_folder, cache_size

    protocol, number = found.protocol, found.statistics.count
    what = "mu and sigma" if out.suffix == ".npz" else "features and statistics"
    print(
        f"{out}: {what} of {number:,} images, {found.statistics.dimensions} dimensions of {protocol['features']} "
        f"({protocol['features_sha256'][:12]}), resize {protocol['resize']}, {protocol['dtype']}"
    )
    speed = f", {rate(seen / seconds)} images/s" if seen else ""
    kept = f", {number - seen:,} images' features from the cache" if number > seen else ""
    print(f"{seconds:.1f} s{speed}{kept}")
    for name in protocol["skipped"]:
        print(f"left out, unreadable: {name}")
    folder = cache_folder(cache)
    if folder is not None:
        print(f"cache: {folder} holds {_bytes(cache_size(folder))} of at most {_bytes(LIMIT)}")


def _bytes(size: int) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"
