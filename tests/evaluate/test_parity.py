"""The comparison with the reference tools, on fakes: what it measures, what it keeps, what it refuses. The tools
themselves are not here: ``python -m genflow.evaluate.parity`` runs them."""

import json
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import nn

from genflow.errors import InputError
from genflow.evaluate import parity, parity_files, parity_inputs, parity_run, parity_speed, parity_tools
from genflow.evaluate.parity_inputs import SETS, ImageSet
from genflow.evaluate.parity_table import Row, difference, feature_difference, print_rows
from genflow.evaluate.parity_tools import ToolRun
from genflow.metrics import create_extractor, frechet_distance_from_features
from genflow.metrics.resize import resize_legacy


def run_of(seed: int = 0, count: int = 20, width: int = 6, **figures: float) -> ToolRun:
    random = np.random.default_rng(seed)
    real, generated = random.normal(1, 1, (count, width)), random.normal(1.5, 1, (count, width))
    return ToolRun(figures, real.astype(np.float32), generated.astype(np.float32))


# --- the table


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [(2.0, 2.0, 0.0), (2.0, 2.0002, 1e-4), (-2.0, -2.0002, 1e-4), (0.0, 0.0, 0.0), (0.0, 1e-9, float("inf"))],
)
def test_difference_is_relative_to_theirs(theirs, ours, expected):
    assert difference(theirs, ours) == pytest.approx(expected, rel=1e-6)


def test_a_row_passes_up_to_its_limit_and_never_with_nan():
    assert Row.of("a", "tool", "fid", 100.0, 100.009).passed
    assert not Row.of("a", "tool", "fid", 100.0, 100.011).passed
    assert not Row.of("a", "tool", "fid", 100.0, 100.009, limit=1e-6).passed
    assert not Row.of("a", "tool", "fid", 100.0, float("nan")).passed
    assert not Row.of("a", "tool", "fid", float("nan"), 100.0).passed


def test_features_are_compared_image_by_image():
    features = run_of().real
    assert feature_difference(features, features) == 0
    one = features.astype(np.float64)
    one[7] *= 1 + 3e-4  # one image of twenty; a mean over all would hide it
    assert feature_difference(features, one) == pytest.approx(3e-4, rel=1e-3)
    assert feature_difference(features, features[::-1]) > 0.1  # another order of files
    assert feature_difference(features, features[:, :5]) == float("inf")


def test_figures_that_both_have_are_compared():
    theirs, ours = run_of(fid=10.0, kid=1.0), run_of(fid=10.002, recall=0.5)
    ours.generated[3] += 0.01
    rows = {row.figure: row for row in parity_run.figure_rows("set", "tool", theirs, ours)}
    assert set(rows) == {"features, real", "features, generated", "fid"}
    assert rows["features, real"].passed
    assert not rows["features, generated"].passed
    assert rows["fid"].difference == pytest.approx(2e-4)


def test_a_kernel_distance_in_float32_has_its_rounding_and_in_float64_none():
    theirs = run_of(**{"kid": 1e-3, "kid, float64": 1e-3})
    for ours, passes in ((1.0008e-3, [True, False]), (1.00009e-3, [True, True]), (1.002e-3, [False, False])):
        rows = list(parity_run.figure_rows("set", "tool", theirs, run_of(kid=ours)))
        assert [row.passed for row in rows if row.figure.startswith("kid")] == passes


def test_the_table_marks_what_is_over(capsys):
    print_rows([Row.of("set", "good", "fid", 1.0, 1.0), Row.of("set", "bad", "fid", 1.0, 1.1)])
    lines = capsys.readouterr().out.splitlines()
    assert ["OVER" in line for line in lines if " fid " in line] == [False, True]


def test_ours_is_what_a_user_gets(folders, tmp_path, monkeypatch):
    asked = {}

    def classifier(features, *, weights, **options):  # in Inception's place: small, and with logits
        asked.update(features=features, weights=weights, resize=options["resize"])
        return create_extractor("fashion-mnist", **{**options, "batch_size": 12})

    monkeypatch.setattr("genflow.evaluate.sides.create_extractor", classifier)
    run = parity_run.ours(*folders, tmp_path, resize="legacy")
    assert run.real.shape == run.generated.shape
    first, second = (np.cov(side.astype(float), rowvar=False) for side in (run.real, run.generated))
    cross = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    shift = run.real.mean(0) - run.generated.mean(0)
    assert run.figures["fid"] == pytest.approx(shift @ shift + np.trace(first + second) - 2 * cross, rel=1e-4)
    x, y = run.real.astype(np.float64), run.generated.astype(np.float64)
    width, count = x.shape[1], len(x)
    kernel = [(a @ b.T / width + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    own = sum((block.sum() - np.trace(block)) / (count * (count - 1)) for block in kernel[:2])
    assert run.figures["kid"] == pytest.approx(own - 2 * kernel[2].mean(), rel=1e-6)
    assert set(run.figures) == {"fid", "kid", "precision", "recall", "is", "is_std"}
    weights = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    assert asked == {"features": "inception", "weights": weights, "resize": "legacy"}


# --- images and weights


@pytest.mark.parametrize(
    "kind", [replace(kind, count=5) for kind in SETS if kind.width < 100], ids=lambda kind: kind.key
)
def test_folders_of_images_are_made_once_and_the_same(tmp_path, kind: ImageSet):
    folder = parity_inputs.make_folder(tmp_path / "a", kind, shifted=False)
    again = parity_inputs.make_folder(tmp_path / "b", kind, shifted=False)
    other = parity_inputs.make_folder(tmp_path / "c", kind, shifted=True)
    files = sorted(path.name for path in folder.iterdir())
    assert len(files) == 5
    for index, name in enumerate(files):
        assert (folder / name).read_bytes() == (again / name).read_bytes() != (other / name).read_bytes()
        with Image.open(folder / name) as picture:
            assert picture.size == (kind.width, kind.height)
            assert picture.mode == kind.modes[index % len(kind.modes)]
    before = [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]
    parity_inputs.make_folder(folder, kind, shifted=False)
    assert [path.stat().st_mtime_ns for path in sorted(folder.iterdir())] == before


def test_the_sets_hold_both_directions_of_resizing_and_both_formats():
    assert {images.suffix for images in SETS} == {".png", ".jpg"}
    assert min(images.width for images in SETS) < 299 < max(images.width for images in SETS)


class Small(nn.Module):
    """What :func:`calibrate` asks of a network, in small."""

    features_list = ("2048", "logits_unbiased")

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8, eps=1e-3)
        self.fc = nn.Linear(8, 5)

    def forward(self, images):
        features = self.bn(self.conv(images.float())).relu().mean((2, 3))
        return features, features @ self.fc.weight.T


def test_random_weights_are_calibrated_by_the_images_that_pass():
    network = Small().eval()
    network.load_state_dict(parity_inputs.random_state(network, seed=3))
    again = parity_inputs.random_state(Small(), seed=3)
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())
    images = torch.from_numpy(np.stack(parity_inputs.pictures(12, 20, 20, seed=1, shifted=False))).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert network(images)[0].std() > 5  # nothing of order one yet
        parity_inputs.calibrate(network, images)
        normed = (network.bn(network.conv(images.float())) - network.bn.bias[:, None, None]) / network.bn.weight[
            :, None, None
        ]
        assert normed.mean((0, 2, 3)).abs().max() < 1e-3
        assert (normed.std((0, 2, 3)) - 1).abs().max() < 1e-2
        features, logits = network(images)
        assert float(logits.std()) == pytest.approx(2, rel=1e-4)
        assert (network.fc.weight @ features.mean(0)).abs().max() < 1e-3  # no class is the same in all images
    assert not network.training
    assert not network.bn.training


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize(("height", "width"), [(16, 24), (299, 299), (400, 310)])
def test_the_torchscript_file_has_the_face_that_clean_fid_uses(tmp_path, height, width):
    torch.manual_seed(0)
    blocks = [nn.Conv2d(3, 4, 3, stride=7), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    parity_inputs.save_torchscript(blocks, tmp_path / "inception.pt")
    loaded = torch.jit.load(tmp_path / "inception.pt")
    images = torch.randint(0, 256, (2, 3, height, width)).float()
    resized = resize_legacy(images, 299)
    expected = loaded.layers((resized - 128) / 128).flatten(1)
    torch.testing.assert_close(loaded(images, return_features=True), expected, rtol=1e-4, atol=1e-5)


# --- the tools, faked


def test_what_a_tool_computes_on_the_way_is_recorded():
    module = types.SimpleNamespace(work=lambda value: 2 * value)
    original = module.work
    with parity_tools.recorded(module, "work") as found:
        assert module.work(3) == 6
        module.work(value=4)
    assert found == [6, 8]
    with pytest.raises(ZeroDivisionError), parity_tools.recorded(module, "work"):
        raise ZeroDivisionError
    assert module.work is original


def test_what_a_tool_said_is_kept(tmp_path):
    run = run_of(fid=1.5)
    run.extra["logits"] = np.ones((3, 2), np.float32)
    calls = []

    def tool(*positional, **named):
        calls.append((positional, named))
        return run

    for _ in range(2):
        found = parity_tools.kept(tmp_path / "runs" / "a.npz", tool, 1, mode="clean")
        assert found.figures == {"fid": 1.5}
        assert np.array_equal(found.real, run.real)
        assert np.array_equal(found.extra["logits"], run.extra["logits"])
    assert calls == [((1,), {"mode": "clean"})]


@pytest.fixture
def fake_pytorch_fid(monkeypatch):
    """A pytorch-fid that takes pixels' means for features and eigenvalues for its square root."""

    def get_activations(files, *_, **__):
        return np.stack([np.asarray(Image.open(file).convert("RGB"), float).mean((0, 1)) for file in files])

    def statistics(path):
        if str(path).endswith(".npz"):
            with np.load(path) as file:
                return file["mu"], file["sigma"]
        values = module.get_activations(sorted(Path(path).iterdir()))
        return values.mean(0), np.cov(values, rowvar=False)

    def calculate(paths, batch_size, device, dims, num_workers=1):
        (mean1, cov1), (mean2, cov2) = (statistics(path) for path in paths)
        cross = np.sqrt(np.linalg.eigvals(cov1 @ cov2).astype(complex)).real.sum()
        return (mean1 - mean2) @ (mean1 - mean2) + np.trace(cov1 + cov2) - 2 * cross

    def save(paths, *_, **__):
        mean, covariance = statistics(paths[0])
        np.savez_compressed(paths[1], mu=mean, sigma=covariance)

    module = types.ModuleType("pytorch_fid.fid_score")
    module.get_activations, module.calculate_fid_given_paths, module.save_fid_stats = get_activations, calculate, save
    package = types.ModuleType("pytorch_fid")
    package.fid_score = module
    monkeypatch.setitem(sys.modules, "pytorch_fid", package)
    monkeypatch.setitem(sys.modules, "pytorch_fid.fid_score", module)
    return module


@pytest.fixture
def folders(tmp_path):
    kind = replace(SETS[0], count=12)
    return tuple(parity_inputs.make_folder(tmp_path / "images" / name, kind, shifted=name == "b") for name in "ab")


def test_pytorch_fid_is_asked_for_two_folders(fake_pytorch_fid, folders, tmp_path):
    run = parity_tools.pytorch_fid(*folders, tmp_path)
    assert run.real.shape == run.generated.shape == (12, 3)
    expected = frechet_distance_from_features(*(torch.from_numpy(side) for side in (run.real, run.generated)))
    assert run.figures["fid"] == pytest.approx(expected, rel=1e-9)


def test_statistics_files_go_both_ways(fake_pytorch_fid, folders, tmp_path, monkeypatch):
    ours = parity_tools.pytorch_fid(*folders, tmp_path)
    rows = list(parity_files.pytorch_fid_rows("set", folders, ours, 3, tmp_path / "files"))
    assert [row.figure for row in rows] == ["fid of its files, 3", "fid of our files, 3"]
    assert all(row.passed and row.theirs > 0 for row in rows)
    honest = fake_pytorch_fid.calculate_fid_given_paths
    monkeypatch.setattr(fake_pytorch_fid, "calculate_fid_given_paths", lambda *a, **k: honest(*a, **k) * (1 + 1e-5))
    rows = list(parity_files.pytorch_fid_rows("set", folders, ours, 3, tmp_path / "files"))
    assert not any(row.passed for row in rows)


def test_a_run_compares_every_case_and_asks_the_tools_once(tmp_path, monkeypatch, capsys):
    calls = []

    def tool(real, generated, weights, factor):
        assert len(list(real.iterdir())) == len(list(generated.iterdir()))
        calls.append(factor)
        run = run_of(count=8, fid=3.0)
        run.real *= factor
        return run

    def fake_weights(folder):
        path = folder / parity_inputs.WEIGHTS
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
        return folder

    monkeypatch.setattr(parity_run, "make_weights", fake_weights)
    monkeypatch.setattr(parity_run, "ours", lambda *paths, resize, layer: run_of(count=8, fid=3.0))
    monkeypatch.setattr(parity_run, "pytorch_fid_rows", lambda *_: [])
    monkeypatch.setattr(parity_run, "clean_fid_rows", lambda *_: [])
    cases = [
        parity_run.Case("same", tool, "legacy-pytorch", options={"factor": 1.0}),
        parity_run.Case("other layer", tool, "legacy-pytorch", "64", options={"factor": 1.0}, main_only=True),
        parity_run.Case("wrong", tool, "legacy-pytorch", options={"factor": 1.001}),
    ]
    sets = [replace(images, count=8) for images in SETS[:2]]
    rows = parity_run.compare(tmp_path, sets, cases)
    assert len(rows) == 3 * (3 + 2)  # three figures; three cases on the main set, two on the other
    assert {(row.images, row.tool, row.figure) for row in rows if not row.passed} == {
        (images.name, "wrong", "features, real") for images in sets
    }
    parity_run.compare(tmp_path, sets, cases)
    assert len(calls) == 5  # the second run takes what the tools said from the first
    assert "worst 1.0e-03" in capsys.readouterr().out
    monkeypatch.setattr(parity_run, "PACKAGES", ("numpy", "torch"))
    result = json.loads(json.dumps(parity_run.report(rows, sets), allow_nan=False))
    assert result["passed"] is False
    assert sum(row["passed"] for row in result["rows"]) == 13
    assert result["versions"]["numpy"] == np.__version__


def test_speed_is_images_a_second_of_both_folders(tmp_path, monkeypatch, capsys):
    calls = []
    for module, name in ((parity_speed, "our_run"), (parity_tools, "clean_fid"), (parity_tools, "pytorch_fid")):
        monkeypatch.setattr(
            module, name, lambda *paths, name=name, **_: calls.append((name, len(list(paths[0].iterdir()))))
        )
    monkeypatch.setattr(parity_speed, "make_weights", lambda folder: folder)

    def timed(works, repeats):
        for work in works:
            work()
        return [2.0, 4.0, 1.0, 5.0]

    monkeypatch.setattr(parity_speed, "best_times", timed)
    rows = parity_speed.measure(tmp_path, count=2, repeats=1)
    assert calls == [("our_run", 2), ("clean_fid", 2), ("our_run", 2), ("pytorch_fid", 2)]
    assert [(row["ours"], row["peer"], row["ratio"]) for row in rows] == [(2.0, 1.0, 2.0), (4.0, 0.8, 5.0)]
    parity_speed.print_speed(rows)
    assert "4 images/s" in capsys.readouterr().out


# --- the environment


def fake_environment(folder: Path, exit_status: int = 0) -> Path:
    """An environment whose Python writes down how it is called."""
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").touch()
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\necho a reason\nexit {exit_status}\n')
    python.chmod(0o755)
    return folder


def test_the_environment_is_installed_once_for_each_list_of_packages(tmp_path):
    folder = fake_environment(tmp_path / "env")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("torch==2.14.1\n")
    install = ["--requirement", str(requirements)]
    for _ in range(2):
        assert parity.build_environment(folder, install=install) == folder / "bin" / "python"
    assert (folder / "calls").read_text().splitlines() == [f"-m pip --no-input install --requirement {requirements}"]
    requirements.write_text("torch==2.15.0\n")
    parity.build_environment(folder, install=install)
    assert len((folder / "calls").read_text().splitlines()) == 2


def test_a_failed_installation_is_one_line_and_leaves_no_stamp(tmp_path):
    folder = fake_environment(tmp_path / "env", exit_status=3)
    with pytest.raises(InputError, match=r"environment: -m pip --no-input failed: a reason \(all of it in .*env.log\)"):
        parity.build_environment(folder, install=["x"])
    assert not (folder / parity.STAMP).exists()


def test_folders_that_are_no_environment_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        parity.build_environment(tmp_path / "file", install=[])
    with pytest.raises(InputError, match="not empty and is no virtual environment"):
        parity.build_environment(tmp_path, install=[])


def test_the_command_runs_in_the_environment_and_gives_its_status(tmp_path, monkeypatch):
    folder = fake_environment(tmp_path / "env", exit_status=1)
    monkeypatch.setattr(parity, "build_environment", lambda path: path / "bin" / "python")
    with pytest.raises(typer.Exit) as exit_status:
        parity.main(folder, images=64, threads=2, no_speed=True, json_file=tmp_path / "r.json")
    assert exit_status.value.exit_code == 1
    expected = f"-m genflow.evaluate.parity_run {folder}/parity --images 64 --no-speed --json {tmp_path}/r.json"
    assert (folder / "calls").read_text().strip() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 3}, "images: got 3"),
        ({"threads": 0}, "threads: got 0"),
        ({"speed_only": True, "no_speed": True}, "nothing to do"),
    ],
)
def test_bad_options_are_refused_before_anything_is_installed(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(parity, "build_environment", lambda path: pytest.fail("installs"))
    with pytest.raises(InputError, match=message):
        parity.main(tmp_path / "env", **{"images": 300, "threads": 1, **options})


def test_everything_that_is_installed_is_pinned_and_torch_has_its_torchvision():
    lines = [line for line in parity.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert {"torch", "torchvision", "pytorch-fid", "clean-fid", "torch-fidelity", "prdc", "scipy"} <= set(pins)
    torch_minor, torchvision_minor = (int(pins[name].split(".")[1]) for name in ("torch", "torchvision"))
    assert torchvision_minor == torch_minor + 15  # torch 2.n goes with torchvision 0.(n + 15)
    assert parity.checkout() == Path(parity.__file__).resolve().parents[1]


def test_help_needs_none_of_the_tools():
    result = subprocess.run(
        [sys.executable, "-m", "genflow.evaluate.parity", "--help"], capture_output=True, text=True, check=True
    )
    assert "--speed-only" in result.stdout
