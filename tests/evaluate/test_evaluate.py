"""evaluate() on small folders and arrays with a small reference made here, and on what is wrong with them."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from genflow.errors import InputError
from genflow.evaluate import evaluate, load_reference, print_table, save_reference
from genflow.evaluate.extraction import extract
from genflow.evaluate.sources import open_source
from genflow.images import save_png
from genflow.metrics import ClassifierConfig, FeatureExtractor, ImageClassifier, save_classifier

SIZE = 8
NAMES = ("dark", "light")
ROOT = Path(__file__).parents[2]


def images(seed: int, count: int, low: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("assets")
    network = ImageClassifier(
        ClassifierConfig(sample_size=SIZE, num_classes=2, stages=((6, 1), (8, 1)), class_names=NAMES)
    )
    save_classifier(network, home / "net")
    extractor = FeatureExtractor.from_folder(home / "net")
    data = images(0, 60)
    np.savez(home / "data.npz", arr_0=data.permute(0, 2, 3, 1).numpy(), labels=np.zeros(60, np.int64))
    save_reference(home / "ref", extract(open_source(home / "data.npz"), extractor, cache=False))
    return home / "ref"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve grey PNGs in two sub-folders, with what else such a folder holds."""
    for index, image in enumerate(images(0, 12)):
        path = tmp_path / "out" / f"{index // 6}" / f"{index:06d}.png"
        save_png(Image.fromarray(image[0].numpy()), path, {"class": index % 2, "class_name": NAMES[index % 2]})
    Image.new("L", (90, 90)).save(tmp_path / "out" / "grid.png")
    (tmp_path / "out" / ".000001.77.tmp.png").write_bytes(b"half a file")
    (tmp_path / "out" / "notes.txt").write_text("notes")
    return tmp_path / "out"


def test_a_folder_gives_every_measure(folder, reference):
    result = evaluate(folder, reference)
    assert set(result) == {"metrics", "spreads", "intervals", "per_class", "protocol"}
    metrics, protocol = result["metrics"], result["protocol"]
    assert set(metrics) == {"fd", "precision", "recall", "density", "coverage", "accuracy"}
    assert metrics["precision"] == 1.0  # they are the reference's own images
    assert 0 < metrics["fd"] < 1
    assert protocol["count"] == protocol["available"] == protocol["labelled"] == 12
    assert protocol["reference_count"] == 60
    assert len(protocol["features_sha256"]) == 64
    assert "12 samples" in protocol["warnings"][0]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_reference_itself_is_at_distance_zero(tmp_path, reference):
    np.save(tmp_path / "same.npy", images(0, 60)[:, 0].numpy())
    metrics = evaluate(tmp_path / "same.npy", reference)["metrics"]
    assert metrics["fd"] < 1e-9
    assert metrics["precision"] == metrics["recall"] == metrics["coverage"] == 1.0
    assert "accuracy" not in metrics


def test_folder_npz_npy_and_idx_agree(folder, tmp_path, reference):
    array = images(0, 12)[:, 0].numpy()
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", arr_0=array[..., None])
    header = bytes([0, 0, 8, 3]) + np.array([12, SIZE, SIZE], ">u4").tobytes()
    (tmp_path / "a-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    expected = evaluate(folder, reference)["metrics"]
    del expected["accuracy"]
    for name in ("a.npy", "a.npz", "a-images-idx3-ubyte.gz"):
        assert evaluate(tmp_path / name, reference)["metrics"] == pytest.approx(expected, rel=1e-9), name


def test_accuracy_goes_by_the_class_name_before_the_number(tmp_path, reference):
    network = load_reference(reference).extractor
    data = images(3, 10)
    predicted = network(data).predicted.tolist()
    records = [{"class": 7, "class_name": NAMES[p]} for p in predicted[:4]]  # another model's numbers: right by name
    records += [{"class": p} for p in predicted[4:6]]
    records += [{"class": 1 - p, "class_name": NAMES[1 - p]} for p in predicted[6:8]]  # wrong
    records += [{"class": 0, "class_name": "cat"}, None]  # unknown
    for index, (image, record) in enumerate(zip(data, records, strict=True)):
        save_png(Image.fromarray(image[0].numpy()), tmp_path / f"{index}.png", record)
    result = evaluate(tmp_path, reference)
    assert result["metrics"]["accuracy"] == pytest.approx(6 / 8)
    assert result["protocol"]["labelled"] == 8
    assert any("class of 2 samples is not known" in warning for warning in result["protocol"]["warnings"])


def test_colour_and_palette_files_are_read_as_grey(tmp_path, reference):
    for mode in ("L", "RGB", "RGBA", "P", "1"):
        for index, image in enumerate(images(4, 5)):
            (tmp_path / mode).mkdir(exist_ok=True)
            Image.fromarray(image[0].numpy()).convert(mode).save(tmp_path / mode / f"{index}.png")
    grey = evaluate(tmp_path / "L", reference)["metrics"]
    assert evaluate(tmp_path / "RGB", reference)["metrics"] == grey
    assert evaluate(tmp_path / "RGBA", reference)["metrics"] == grey
    assert evaluate(tmp_path, reference)["protocol"]["count"] == 25


def test_count_draws_by_seed(tmp_path, reference):
    np.save(tmp_path / "a.npy", images(5, 40)[:, 0].numpy())
    one, again, other = (evaluate(tmp_path / "a.npy", reference, count=20, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one["metrics"]["fd"] != other["metrics"]["fd"]
    assert one["protocol"]["count"] == 20
    assert one["protocol"]["available"] == 40


def test_the_table_shows_figures_and_warnings(folder, reference):
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    print_table(evaluate(folder, reference), console)
    text = console.export_text()
    for word in ("FD (net)", "precision", "recall", "accuracy", "12 samples", "warning:"):
        assert word in text
    assert "FID" not in text


@pytest.mark.parametrize("content", [b"", b"not an image", b"truncated"])
def test_a_bad_image_is_named_then_skipped_by_flag(folder, reference, content):
    bad = folder / "1" / "bad.png"
    if content == b"truncated":
        content = (folder / "0" / "000000.png").read_bytes()[:-30]
    bad.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png.*--skip-bad"):
        evaluate(folder, reference)
    protocol = evaluate(folder, reference, skip_bad=True)["protocol"]
    assert protocol["skipped"] == [str(bad)]
    assert protocol["count"] == 12
    assert "1 unreadable" in protocol["warnings"][-1]


def test_what_cannot_be_judged_is_one_clear_error(folder, tmp_path, reference):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        evaluate(tmp_path / "empty", reference)
    with pytest.raises(InputError, match="neither a folder nor a file"):
        evaluate(tmp_path / "absent", reference)
    with pytest.raises(InputError, match="there are 12"):
        evaluate(folder, reference, count=13)
    with pytest.raises(InputError, match="at least 4"):
        evaluate(folder, reference, count=3)
    with pytest.raises(InputError, match="split"):
        evaluate("fashion-mnist:validation", reference)
    np.save(tmp_path / "large.npy", np.zeros((9, 9, 9), np.uint8))
    with pytest.raises(InputError, match=r"large\.npy.*got 9x9; net takes 8x8"):
        evaluate(tmp_path / "large.npy", reference)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"objects\.npy"):
        evaluate(tmp_path / "objects.npy", reference)
    Image.new("L", (9, 8)).save(folder / "wide.png")
    with pytest.raises(InputError, match=r"wide\.png.*got 9x8; net takes 8x8"):
        evaluate(folder, reference)


def test_a_bad_reference_is_one_clear_error(folder, tmp_path, reference):
    with pytest.raises(InputError, match=r"fashion-mnits.*did you mean 'fashion-mnist'"):
        evaluate(folder, "fashion-mnits")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="reference: .*empty holds no image"):
        evaluate(folder, tmp_path / "empty")
    ref = load_reference(reference)
    copy = tmp_path / "copy"
    save_reference(copy, ref.feature_set)
    with pytest.raises(InputError, match="neither beside it nor shipped"):
        load_reference(copy)
    torch.manual_seed(1)
    save_classifier(ImageClassifier(ref.extractor.network.config), tmp_path / "net")
    with pytest.raises(InputError, match="is not the classifier that made"):
        load_reference(copy)
    file = copy / "features.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"cannot read .*features\.safetensors"):
        load_reference(copy)


@pytest.mark.slow
def test_the_script_runs_and_fails_with_status_two(folder, tmp_path, reference):
    script = [sys.executable, str(ROOT / "evaluate" / "run.py")]
    done = subprocess.run(
        [*script, str(folder), "--reference", str(reference), "--json", str(tmp_path / "r.json")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "precision" in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["metrics"]["precision"] == 1.0
    failed = subprocess.run([*script, str(tmp_path / "none")], capture_output=True, text=True, timeout=120)
    assert failed.returncode == 2
    assert failed.stderr.startswith("genflow: error: ")
    assert failed.stderr.count("\n") == 1
