"""Samples and references of every kind through the whole path, and what may not change a figure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.errors import InputError
from genflow.evaluate import compare_sets, evaluate, evaluate_in_detail
from genflow.evaluate.extraction import extract
from genflow.evaluate.feature_set import save_feature_set
from genflow.evaluate.sides import recognise, take_rows
from genflow.evaluate.sources import open_source
from genflow.evaluate.statistics_files import save_statistics_npz
from genflow.images import save_png
from genflow.metrics import FeatureExtractor, create_extractor, fd_infinity, neighbour_metrics

ALL_BUT_CLASSES = (
    "fd,fd-infinity,kid,is,precision,recall,density,coverage,authenticity,saturation,contrast,colourfulness"
)


def pictures(seed: int, count: int, low: int = 0, high: int = 256) -> np.ndarray:
    """uint8 ``(count, 8, 8)``."""
    return np.random.default_rng(seed).integers(low, high, (count, 8, 8), np.uint8)


class World:
    """Two sets of images, the network, and both as files of features and statistics."""

    def __init__(self, home: Path, network: Path) -> None:
        self.home, self.network = home, network
        self.samples, self.real = home / "samples.npy", home / "real.npz"
        np.save(self.samples, pictures(1, 30))
        np.savez(self.real, arr_0=pictures(2, 50)[..., None], labels=np.arange(50) % 2)
        extractor = create_extractor(network)
        self.real_features = extract(open_source(self.real), extractor, cache=False, progress=False)
        self.features, self.statistics = home / "real.safetensors", home / "statistics.npz"
        save_feature_set(self.features, self.real_features)
        save_statistics_npz(self.statistics, self.real_features)
        self.foreign = home / "foreign.npz"
        np.savez(
            self.foreign,
            mu=self.real_features.statistics.mean.numpy(),
            sigma=self.real_features.statistics.covariance.numpy(),
        )

    def evaluate(self, samples: Any = None, reference: Any = None, **options: Any) -> dict[str, Any]:
        options = {"features": self.network, **options}
        return evaluate(samples or self.samples, reference or self.real, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_network: Path) -> World:
    return World(tmp_path_factory.mktemp("world"), tiny_network)


def test_images_features_and_statistics_are_one_reference(world: World) -> None:
    whole = world.evaluate(metrics=ALL_BUT_CLASSES)
    kept = world.evaluate(reference=world.features, metrics=ALL_BUT_CLASSES)
    assert kept["metrics"] == whole["metrics"]
    for file in (world.statistics, world.foreign):
        found = world.evaluate(reference=file)
        assert set(found["metrics"]) == {"fd"}
        assert found["metrics"]["fd"] == pytest.approx(whole["metrics"]["fd"], rel=1e-9)
    assert world.evaluate(reference=world.statistics)["protocol"]["reference_count"] == 50
    trusted = world.evaluate(reference=world.foreign)["protocol"]
    assert trusted["reference_count"] is None
    assert any("taken on trust" in warning for warning in trusted["warnings"])


def test_samples_may_be_features_or_statistics_too(world: World) -> None:
    made = extract(open_source(world.samples), create_extractor(world.network), cache=False, progress=False)
    save_feature_set(world.home / "made.safetensors", made)
    save_statistics_npz(world.home / "made.npz", made)
    whole = world.evaluate()["metrics"]
    assert evaluate(world.home / "made.safetensors", world.features)["metrics"] == whole
    found = evaluate(world.home / "made.npz", world.statistics)
    assert found["metrics"] == {"fd": pytest.approx(whole["fd"], rel=1e-9)}
    assert found["protocol"]["count"] == 30
    some = evaluate(world.home / "made.safetensors", world.features, count=20, seed=3)
    assert some["metrics"] == world.evaluate(count=20, seed=3)["metrics"]
    with pytest.raises(InputError, match="count: .*statistics alone"):
        evaluate(world.home / "made.npz", world.statistics, count=5)


def test_statistics_beside_images_are_taken_and_the_images_seen_for_neighbours(world: World, tmp_path: Path) -> None:
    """ADM's reference files: mu and sigma of all images, 10,000 of them for precision and recall."""
    few = take_rows(world.real_features, torch.arange(20))
    statistics = world.real_features.statistics
    np.savez(
        tmp_path / "adm.npz",
        arr_0=pictures(2, 50)[:20, ..., None],
        mu=statistics.mean.numpy(),
        sigma=statistics.covariance.numpy(),
    )
    both = world.evaluate(reference=tmp_path / "adm.npz")["metrics"]
    assert both["fd"] == pytest.approx(world.evaluate()["metrics"]["fd"], rel=1e-9)
    made = create_extractor(world.network)(torch.from_numpy(pictures(1, 30)[:, None])).values
    assert both["recall"] == neighbour_metrics(few.features, made).recall
    assert set(world.evaluate(reference=tmp_path / "adm.npz", metrics="fd")["metrics"]) == {"fd"}


def test_spatial_features_take_the_spatial_statistics_of_a_file(tmp_path: Path) -> None:
    moments = {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.ones(2), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "adm.npz", **moments)
    for features, dimensions in ((None, 3), ("inception", 3), ("inception:spatial", 2)):
        found = recognise("reference", tmp_path / "adm.npz", features=features)
        assert found.known.statistics.dimensions == dimensions


def test_a_collapsed_set_is_precise_and_recalls_little(world: World, tmp_path: Path) -> None:
    """Thirty samples, all near one real image: the figures must not be the other way round."""
    real = pictures(2, 50)
    shifts = np.random.default_rng(3).integers(-1, 2, (30, 8, 8))
    np.save(tmp_path / "collapsed.npy", np.clip(real[0] + shifts, 0, 255).astype(np.uint8))
    found = world.evaluate(tmp_path / "collapsed.npy", metrics="precision,recall,coverage")["metrics"]
    assert found["precision"] == 1
    assert found["recall"] <= 2 / 50
    swapped = world.evaluate(world.real, tmp_path / "collapsed.npy", metrics="precision,recall")["metrics"]
    assert (swapped["precision"], swapped["recall"]) == (found["recall"], found["precision"])


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"workers": 0}, {"workers": 3, "batch_size": 16}])
def test_neither_batches_nor_workers_change_a_figure(world: World, options: dict[str, Any]) -> None:
    expected = world.evaluate(metrics=ALL_BUT_CLASSES, cache=False)["metrics"]
    found = world.evaluate(metrics=ALL_BUT_CLASSES, cache=False, **options)["metrics"]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)  # a network's sums depend on the batch's shape
    for key in ("precision", "recall", "density", "coverage", "authenticity"):
        assert found[key] == expected[key]


def test_the_order_of_samples_does_not_count(world: World, tmp_path: Path) -> None:
    metrics = "fd,precision,recall,density,coverage,authenticity,contrast"
    np.save(tmp_path / "turned.npy", pictures(1, 30)[::-1].copy())
    expected = world.evaluate(metrics=metrics)["metrics"]
    assert world.evaluate(tmp_path / "turned.npy", metrics=metrics)["metrics"] == pytest.approx(expected, rel=1e-9)


def test_strict_balls_leave_the_edge_out(world: World) -> None:
    """Each sample is a copy of a real image; those that stand on the edge of no ball but their own change nothing, so
    the strict figure is prdc's."""
    closed, strict = (
        world.evaluate(world.real, strict=flag, metrics="precision,density,coverage")["metrics"]
        for flag in (False, True)
    )
    features = world.real_features.features
    expected = neighbour_metrics(features, features, strict=True)
    assert strict == {
        "precision": expected.precision,
        "density": expected.density,
        "coverage": expected.coverage,
    }
    assert strict["density"] < closed["density"]


def test_copies_of_training_images_are_told(world: World, tmp_path: Path) -> None:
    train = pictures(5, 40)
    mixed = np.concatenate([train[:10], pictures(6, 10)])
    np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "mixed.npy", mixed)
    found = evaluate_in_detail(tmp_path / "mixed.npy", world.real, features=world.network, train=tmp_path / "train.npy")
    assert found.memorization.ratios[:10].max() == 0
    assert found.result["metrics"]["memorization"] >= 0.5
    assert found.result["protocol"]["train"] == str(tmp_path / "train.npy")
    assert found.train.picture(3).tobytes() == train[3].tobytes()


def test_figures_by_class(world: World, tmp_path: Path) -> None:
    for index, image in enumerate(pictures(7, 40)):
        save_png(Image.fromarray(image), tmp_path / f"{index:02d}.png", {"class": index % 2})
    found = evaluate_in_detail(tmp_path, world.real, features=world.network, per_class=True, bootstrap=20)
    columns, metrics = found.result["per_class"], found.result["metrics"]
    assert columns["classes"] == ["dark", "light"]
    assert columns["count"] == [20, 20]
    assert columns["reference_count"] == [25, 25]
    assert metrics["intra_fd"] == pytest.approx(np.mean(columns["fd"]), rel=1e-12)
    assert np.mean(columns["precision"]) == pytest.approx(metrics["precision"], abs=1e-12)
    assert np.mean(columns["recall"]) == pytest.approx(metrics["recall"], abs=1e-12)
    assert np.mean(columns["accuracy"]) == pytest.approx(metrics["accuracy"], abs=1e-12)
    assert "intra_fd" in found.result["intervals"]
    with pytest.raises(InputError, match="per_class: needs the classes of the samples"):
        world.evaluate(per_class=True)
    with pytest.raises(InputError, match="per_class: needs the classes of the reference"):
        world.evaluate(tmp_path, world.samples, per_class=True)


def test_a_class_with_too_few_samples_is_named_and_the_others_shown(world: World, tmp_path: Path) -> None:
    for index, image in enumerate(pictures(7, 21)):
        save_png(Image.fromarray(image), tmp_path / f"{index:02d}.png", {"class": int(index == 20)})
    found = world.evaluate(tmp_path, per_class=True)
    assert found["per_class"]["count"] == [20, 1]
    assert found["per_class"]["fd"][0] > 0
    assert found["per_class"]["fd"][1] is None
    assert "intra_fd" not in found["metrics"]
    assert any("class light has no distance (25 real and 1 generated" in line for line in found["protocol"]["warnings"])
    with pytest.raises(InputError, match="no mean over classes: class 1 has 25 real and 1 generated"):
        world.evaluate(tmp_path, metrics="intra-fd")


def test_the_reference_s_own_classes_serve_where_the_network_has_none_of_them(world: World, tmp_path: Path) -> None:
    for side, seed in (("ours", 8), ("theirs", 9)):
        for index, image in enumerate(pictures(seed, 20)):
            path = tmp_path / side / ("cat", "owl")[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    found = world.evaluate(tmp_path / "ours", tmp_path / "theirs", per_class=True)
    assert found["per_class"]["classes"] == ["cat", "owl"]
    assert found["per_class"]["count"] == [10, 10]


def test_the_record_is_whole_and_safe_for_json(world: World) -> None:
    result = world.evaluate(metrics=ALL_BUT_CLASSES, bootstrap=10, count=28, seed=4)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    protocol = result["protocol"]
    assert (protocol["count"], protocol["available"]) == (28, 30)
    assert protocol["seed"] == protocol["draw_seed"] == 4
    assert protocol["resize"] == "none"
    assert protocol["dtype"] == "float32"
    assert protocol["features"] == "net"
    assert (
        len(protocol["features_sha256"]) == len(protocol["content_sha256"]) == len(protocol["reference_sha256"]) == 64
    )
    assert protocol["bootstrap"]["draws"] == 10
    assert (protocol["k"], protocol["density_k"], protocol["balls"]) == (3, 5, "closed")
    for name in ("genflow", "torch", "numpy", "pillow", "python"):
        assert protocol[name]
    assert protocol["labels"]["fd"] == "FD (net)"
    assert set(result["spreads"]) == {"kid", "is"}
    assert set(result["intervals"]) == set(result["metrics"])
    assert protocol["reference_images"]["contrast"] == pytest.approx(
        float(world.real_features.images["contrast"].mean())
    )


def test_too_few_samples_come_with_what_they_add(world: World) -> None:
    few = world.evaluate(metrics="fd")["protocol"]["warnings"]
    assert "30 samples: below 2048" in few[0]
    assert "by about" in few[0]
    recalled = world.evaluate(metrics="recall")["protocol"]["warnings"]
    assert "recall too small" in recalled[0]
    assert "this one" not in recalled[0]
    assert not world.evaluate(metrics="contrast,precision")["protocol"]["warnings"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"metrics": "fdd"}, "metrics: 'fdd' is not known"),
        ({"k": 0}, "k: got 0"),
        ({"density_k": 1.5}, "density_k"),
        ({"seed": -1}, "seed"),
        ({"bootstrap": 1}, "bootstrap: got 1"),
        ({"bootstrap": -5}, "bootstrap"),
        ({"level": 1.0}, "level"),
        ({"count": 0}, "count"),
        ({"count": 31}, "count: got 31; there are 30"),
        ({"workers": -1}, "workers"),
        ({"batch_size": 0}, "batch_size"),
        ({"dtype": "int8"}, "dtype: 'int8' is not known"),
        ({"resize": "cubic"}, "resize"),
        ({"strict": 1}, "strict"),
        ({"per_class": "yes"}, "per_class"),
        ({"features": "incepton"}, "did you mean 'inception'"),
        ({"metrics": "memorization"}, "needs --train"),
        ({"metrics": "accuracy"}, "accuracy needs the classes"),
        ({"k": 30}, "at least 31 are needed"),
        ({"density_k": 50, "metrics": "density"}, "reference: 50 of .* at least 51 are needed"),
        ({"metrics": "fd-infinity", "count": 26}, "at least 27 are needed"),
        ({"train": "nowhere"}, "train: 'nowhere' is no file"),
        ({"model": "m"}, "model: got 'm' and samples"),
        ({"num": 3}, "num: how many images of a model"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    world: World, options: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        pytest.fail("work was begun")

    monkeypatch.setattr("genflow.evaluate.sides.extract", never)
    with pytest.raises(InputError, match=match):
        world.evaluate(**options)


def test_images_are_seen_by_inception_unless_the_reference_says_otherwise(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def create(features: Any, **_: Any) -> Any:
        asked.append(str(features))
        raise InputError("enough")

    monkeypatch.setattr("genflow.evaluate.sides.create_extractor", create)
    monkeypatch.chdir(tmp_path)
    np.save("clip.npy", pictures(1, 8))
    Path("fashion-mnist").mkdir()
    Image.fromarray(pictures(1, 1)[0]).save("fashion-mnist/a.png")
    for reference in (world.real, "clip.npy", "fashion-mnist:test", "./fashion-mnist"):
        with pytest.raises(InputError, match="enough"):
            evaluate(world.samples, reference)
    assert asked == ["inception", "inception", "fashion-mnist", "inception"]


def test_other_networks_and_other_sizes_are_refused_by_name(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resize mode clean.*resize mode none"):
        world.evaluate(reference=world.features, resize="clean")
    from genflow.metrics import ClassifierConfig, ImageClassifier, save_classifier

    torch.manual_seed(1)
    save_classifier(ImageClassifier(ClassifierConfig(sample_size=8, stages=((6, 1), (8, 1)))), tmp_path / "other")
    with pytest.raises(InputError, match=r"features by other .*features by net"):
        world.evaluate(reference=world.features, features=tmp_path / "other")
    with pytest.raises(InputError, match="'net', which does not ship with genflow"):
        evaluate(world.samples, world.features)
    save_classifier(ImageClassifier(ClassifierConfig(sample_size=8, stages=((6, 1), (12, 1)))), tmp_path / "wide")
    with pytest.raises(InputError, match="12.*8|8.*12"):
        world.evaluate(reference=world.foreign, features=tmp_path / "wide")
    with pytest.raises(InputError, match="resize: got 'clean', but there are no images"):
        evaluate(world.features, world.statistics, resize="clean")


def test_statistics_allow_a_distance_alone(world: World) -> None:
    with pytest.raises(InputError, match="metrics: precision needs the features of both sides"):
        world.evaluate(reference=world.statistics, metrics="fd,precision")
    with pytest.raises(InputError, match="metrics: saturation needs the pictures"):
        evaluate(world.statistics, world.statistics, metrics="saturation")


def test_statistics_are_not_resampled_and_that_is_said(world: World) -> None:
    found = evaluate(world.statistics, world.features, bootstrap=20)
    assert found["intervals"] == {}
    assert found["protocol"]["bootstrap"] is None
    assert "cannot be resampled" in found["protocol"]["warnings"][-1]
    result = compare_sets([world.statistics, world.features], world.features, bootstrap=20)
    assert result["protocol"]["bootstrap"] is None
    assert "cannot be resampled" in result["protocol"]["warnings"][0]
    assert "p" not in result["comparisons"]["fd"]["pairs"][0]


def test_features_that_are_not_numbers_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FeatureExtractor.__call__

    def broken(self: FeatureExtractor, images: torch.Tensor, progress: Any = None) -> Any:
        found = whole(self, images, progress)
        found.values[-1, 0] = torch.nan
        return found

    monkeypatch.setattr(FeatureExtractor, "__call__", broken)
    with pytest.raises(InputError, match="NaN or infinite"):
        world.evaluate(cache=False)


SCRIPT = """
import contextlib, io, json, sys
import torch.distributed as dist
from genflow.cli import main

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
words = ["--features", sys.argv[5], "--device", "cpu", "--metrics", sys.argv[6], "--json", f"{folder}/{rank}.json"]
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    status = main.run(["evaluate", sys.argv[3], "--reference", sys.argv[4], "--train", sys.argv[4], *words])
print(json.dumps({"status": status, "printed": printed.getvalue()}))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_one_result_and_print_it_once(
    world: World, two_processes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = f"{ALL_BUT_CLASSES},memorization"
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    found = two_processes(SCRIPT, str(world.samples), str(world.real), str(world.network), metrics)
    assert [one["status"] for one in found] == [0, 0]
    assert "FD (net)" in found[0]["printed"]
    assert not found[1]["printed"]
    assert not (tmp_path / "1.json").exists()
    result = json.loads((tmp_path / "0.json").read_text())
    alone = world.evaluate(metrics=metrics, train=world.real)
    assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-6, abs=1e-9)
    for key in ("precision", "recall", "density", "coverage", "authenticity", "memorization"):
        assert result["metrics"][key] == alone["metrics"][key]


@pytest.mark.slow
def test_inception_by_its_weights_file_through_the_whole_path(tmp_path: Path) -> None:
    """Weights that are not the published ones: FD by default, FID where asked for by name, and it says which."""
    from genflow.metrics.inception import random_inception, save_inception

    weights = tmp_path / "weights.pth"
    save_inception(random_inception(0), weights)
    for name, seed in (("ours", 1), ("theirs", 2)):
        np.savez(tmp_path / f"{name}.npz", arr_0=np.random.default_rng(seed).integers(0, 256, (6, 16, 16, 3), np.uint8))
    options = {"features": "inception", "weights": weights, "resize": "clean", "batch_size": 6}
    found = evaluate(tmp_path / "ours.npz", tmp_path / "theirs.npz", **options, metrics="fid,kid,is,precision")
    assert list(found["metrics"]) == ["fid", "kid", "is", "precision"]
    assert found["protocol"]["labels"]["fid"] == "FID"
    assert found["protocol"]["resize"] == "clean"
    assert found["protocol"]["dimensions"] == 2048
    assert "not known here as the published ones" in found["protocol"]["notes"][0]
    assert found["protocol"]["kid_subset_size"] == 6
    assert any(
        "rank 5 of the samples and 5 of the reference, 2048 dimensions" in line
        for line in found["protocol"]["warnings"]
    )
    plain = evaluate(tmp_path / "ours.npz", tmp_path / "theirs.npz", **options)
    assert plain["metrics"]["fd"] == found["metrics"]["fid"]
    assert plain["protocol"]["labels"]["fd"] == "FD (inception)"
    with pytest.raises(InputError, match="accuracy needs"):
        evaluate(tmp_path / "ours.npz", tmp_path / "theirs.npz", **options, metrics="accuracy")


def test_the_fewest_samples_that_can_be_extrapolated_from() -> None:
    for dimensions in (2, 2048):
        generator = torch.Generator().manual_seed(0)
        real, made = (torch.randn(count, dimensions, generator=generator) for count in (30, 27))
        fd_infinity(real, made)
    with pytest.raises(InputError, match="need"):
        fd_infinity(real, made[:26])
