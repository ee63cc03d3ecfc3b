"""The reference tools as their users call them, with the features that they computed on the way.

Each function takes two folders of images and the folder of :func:`~genflow.evaluate.parity_inputs.make_weights`, which
TORCH_HOME must name too, and returns a :class:`ToolRun`. The tools are imported inside: they live in the parity
environment alone.
"""

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genflow.files import atomic_path

__all__ = ["ToolRun", "clean_fid", "kept", "prdc", "pytorch_fid", "torch_fidelity"]


@dataclass
class ToolRun:
    """What one tool says of ``generated`` against ``real``.

    Attributes:
        figures: by our names: fid, kid, is, is_std, precision, recall; ``kid, float64`` is the tool's function on its
            features in float64, where its own KID is the small difference of sums in float32.
        real, generated: features ``(N, D)``.
        seconds: of the tool's own call, decoding and network included.
    """

    figures: dict[str, float]
    real: np.ndarray
    generated: np.ndarray
    seconds: float = 0.0
    extra: dict[str, np.ndarray] = field(default_factory=dict)


@contextmanager
def recorded(module: Any, name: str) -> Iterator[list[Any]]:
    """Yield a list that collects whatever ``module.name`` returns while the block runs."""
    original, found = getattr(module, name), []

    def record(*positional: Any, **named: Any) -> Any:
        found.append(original(*positional, **named))
        return found[-1]

    setattr(module, name, record)
    try:
        yield found
    finally:
        setattr(module, name, original)


@contextmanager
def quiet() -> Iterator[None]:
    """The tools print and draw bars; the table is what counts."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def pytorch_fid(
    real: Path, generated: Path, weights: Path, *, dims: int = 2048, batch_size: int = 32, workers: int = 0
) -> ToolRun:
    """pytorch-fid: ``calculate_fid_given_paths``, of the layer with ``dims`` features."""
    from pytorch_fid import fid_score

    begun = time.perf_counter()
    with quiet(), recorded(fid_score, "get_activations") as features:
        paths = [str(real), str(generated)]
        fid = fid_score.calculate_fid_given_paths(paths, batch_size, "cpu", dims, num_workers=workers)
    return ToolRun({"fid": float(fid)}, *features, time.perf_counter() - begun)


def clean_fid(
    real: Path, generated: Path, weights: Path, *, mode: str, batch_size: int = 32, workers: int = 0
) -> ToolRun:
    """clean-fid: ``compute_fid`` in ``mode`` (clean, legacy_pytorch, legacy_tensorflow), and its KID of all images.

    Its TorchScript comes from ``weights``: left alone, the tool would look for one in /tmp.
    """
    import torch
    from cleanfid import features as extractors
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W

    begun = time.perf_counter()
    with quiet(), torch.no_grad(), recorded(fid, "get_folder_features") as features:
        if mode == "legacy_pytorch":
            network = extractors.build_feature_extractor(mode, torch.device("cpu"), use_dataparallel=False)
        else:
            network = InceptionV3W(str(weights), download=False, resize_inside=mode == "legacy_tensorflow").eval()
        options = {"num_workers": workers, "batch_size": batch_size, "device": torch.device("cpu"), "verbose": False}
        value = fid.compute_fid(str(real), str(generated), mode=mode, custom_feat_extractor=network, **options)
    seconds = time.perf_counter() - begun
    # No more images than a subset takes: every subset is all of them, and the figure is free of chance.
    kid = fid.kernel_distance(*features, num_subsets=1)
    exact = fid.kernel_distance(*(side.astype(np.float64) for side in features), num_subsets=1)
    return ToolRun({"fid": float(value), "kid": kid, "kid, float64": exact}, *features, seconds)


def torch_fidelity(real: Path, generated: Path, weights: Path, *, batch_size: int = 32, layer: str = "2048") -> ToolRun:
    """torch-fidelity: ``calculate_metrics`` with fid, kid (of all images), isc and prc of its Inception.

    Subsets of KID are as large as the sets, so that nothing in it is chance; of the Inception Score nothing is
    shuffled.
    """
    import torch_fidelity as tool
    from torch_fidelity import utils
    from torch_fidelity.metric_kid import kid_features_to_metric

    count = min(len(list(folder.iterdir())) for folder in (real, generated))
    begun = time.perf_counter()
    with quiet(), recorded(utils, "get_featuresdict_from_dataset") as found:
        metrics = tool.calculate_metrics(
            input1=str(generated), input2=str(real), cuda=False, batch_size=batch_size, cache=False, verbose=False,
            save_cpu_ram=True, feature_extractor="inception-v3-compat", fid=True, kid=True, isc=True, prc=True,
            feature_layer_fid=layer, feature_layer_kid=layer, feature_layer_prc=layer,
            kid_subsets=1, kid_subset_size=count, samples_shuffle=False,
        )  # fmt: skip
    seconds = time.perf_counter() - begun
    sides = [part[layer].double() for part in found]
    exact = kid_features_to_metric(*sides, kid_subsets=1, kid_subset_size=count, verbose=False)
    figures = {
        "fid": metrics["frechet_inception_distance"],
        "kid": metrics["kernel_inception_distance_mean"],
        "kid, float64": exact["kernel_inception_distance_mean"],
        "is": metrics["inception_score_mean"],
        "is_std": metrics["inception_score_std"],
        "precision": metrics["precision"],
        "recall": metrics["recall"],
    }
    of_generated, of_real = ({key: value.numpy() for key, value in part.items()} for part in found)
    extra = {"logits": of_generated["logits_unbiased"]}
    return ToolRun(figures, of_real[layer], of_generated[layer], seconds, extra)


def prdc(real: np.ndarray, generated: np.ndarray, k: int = 5) -> dict[str, float]:
    """Density and coverage by the package of their authors; balls are open there (``<``)."""
    from prdc import compute_prdc

    with quiet():
        figures = compute_prdc(real_features=real, fake_features=generated, nearest_k=k)
    return {name: float(value) for name, value in figures.items()}


def kept(path: Path, tool: Callable[..., ToolRun], *positional: Any, **named: Any) -> ToolRun:
    """What ``tool`` says, from ``path`` where an earlier run left it."""
    if path.is_file():
        with np.load(path) as file:
            known = json.loads(str(file["figures"]))
            extra = {key.removeprefix("extra_"): file[key] for key in file.files if key.startswith("extra_")}
            return ToolRun(known["figures"], file["real"], file["generated"], known["seconds"], extra)
    run = tool(*positional, **named)
    known = json.dumps({"figures": run.figures, "seconds": run.seconds})
    with atomic_path(path) as temporary:
        extra = {f"extra_{key}": value for key, value in run.extra.items()}
        np.savez(temporary, figures=np.array(known), real=run.real, generated=run.generated, **extra)
    return run
