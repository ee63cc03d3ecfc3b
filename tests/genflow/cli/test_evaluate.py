"""``genflow evaluate`` and its sub-commands: words, files, exit status; through the whole command on tiny images."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.evaluate.command import evaluate as command
from genflow.images import save_png

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of 8x8 grey images with random weights."""
    from genflow.metrics import ClassifierConfig, ImageClassifier, save_classifier

    torch.manual_seed(0)
    config = ClassifierConfig(sample_size=8, num_classes=3, stages=((6, 1), (8, 1)), class_names=("cat", "dog", "owl"))
    folder = tmp_path_factory.mktemp("networks") / "net"
    save_classifier(ImageClassifier(config), folder)
    return folder


@pytest.fixture
def score(genflow: Run, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``score(*words)``: ``genflow evaluate`` in a folder with ``out/``, ``real.npz`` and ``collapsed/``."""
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    real = generator.integers(0, 256, (60, 8, 8), np.uint8)
    np.savez("real.npz", arr_0=real[..., None], labels=np.arange(60) % 3)
    for index, image in enumerate(generator.integers(0, 256, (40, 8, 8), np.uint8)):
        save_png(Image.fromarray(image), Path("out") / f"{index:06d}.png", {"class": index % 3})
    near = np.clip(real[0] + generator.integers(-1, 2, (40, 8, 8)), 0, 255).astype(np.uint8)
    Path("collapsed").mkdir()
    for index, image in enumerate(near):
        Image.fromarray(image).save(f"collapsed/{index}.png")

    def run(*words: str) -> tuple[int, str, str]:
        own = () if "--features" in words else ("--features", network)
        return genflow("evaluate", *words, "--device", "cpu", *own)

    return run


def metrics_of(path: str | Path) -> dict[str, float]:
    return json.loads(Path(path).read_text())["metrics"]


def test_a_table_json_and_a_page(score: Run) -> None:
    words = ("--reference", "real.npz", "--per-class", "--bootstrap", "10", "--metrics", "fd,recall,is,fd-infinity")
    status, out, err = score("out", *words, "--json", "deep/scores.json", "--report", "page.html")
    assert status == 0, err
    for word in ("FD (net)", "recall", "by class", "owl", "[", "warning: "):
        assert word in out
    result = json.loads(Path("deep/scores.json").read_text())
    assert set(result["metrics"]) == {"fd", "recall", "is", "fd_infinity", "intra_fd"} == set(result["intervals"])
    assert result["per_class"]["classes"] == ["cat", "dog", "owl"]
    assert result["protocol"]["samples"] == "out"
    page = Path("page.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "FD (net)" in page


def test_a_collapsed_set_shows_high_precision_and_low_recall(score: Run) -> None:
    for name in ("out", "collapsed"):
        assert score(name, "--reference", "real.npz", "--json", f"{name}.json")[0] == 0
    good, collapsed = metrics_of("out.json"), metrics_of("collapsed.json")
    assert collapsed["precision"] == 1 >= good["precision"]
    assert collapsed["recall"] < 0.05 < good["recall"]
    assert collapsed["fd"] > good["fd"]


def test_features_are_kept_and_taken_as_reference(score: Run) -> None:
    assert score("features", "real.npz", "--out", "ref.safetensors")[0] == 0
    assert score("features", "real.npz", "--out", "ref.npz")[0] == 0
    found = {}
    for reference in ("real.npz", "ref.safetensors", "ref.npz"):
        status, _, err = score("out", "--reference", reference, "--json", "r.json")
        assert status == 0, err
        found[reference] = metrics_of("r.json")
    assert found["ref.safetensors"] == found["real.npz"]
    assert found["ref.npz"] == {
        "fd": pytest.approx(found["real.npz"]["fd"], rel=1e-9),
        "accuracy": found["real.npz"]["accuracy"],
    }
    status, _, err = score("out", "--reference", "ref.npz", "--metrics", "precision")
    assert status == 2
    assert "precision needs the features" in err


def test_sets_side_by_side(score: Run) -> None:
    words = ("--reference", "real.npz", "--bootstrap", "30", "--json", "c.json", "--report", "c.html")
    status, out, err = score("compare", "out", "collapsed", *words, "--metrics", "fd,precision,recall")
    assert status == 0, err
    assert "side by side" in out
    assert "p-values" in out
    result = json.loads(Path("c.json").read_text())
    assert result["comparisons"]["fd"]["best"] == 0
    assert result["comparisons"]["recall"]["pairs"][0]["p"] < 0.05
    assert Path("c.html").read_text().startswith("<!DOCTYPE html>")


def test_a_model_is_sampled_on_the_fly(score: Run, class_model: Path) -> None:
    status, out, err = score("--model", class_model, "--num", "12", "--reference", "real.npz", "--json", "r.json")
    assert status == 0, err
    assert "12 samples of model" in out
    result = json.loads(Path("r.json").read_text())
    assert result["protocol"]["count"] == result["protocol"]["labelled"] == 12
    assert result["protocol"]["sampling"]["steps"] == 4
    assert {path.name for path in Path().iterdir()} == {"out", "real.npz", "collapsed", "cache", "r.json"}
    again = score("--model", class_model, "--num", "12", "--reference", "real.npz", "--json", "again.json")
    assert again[0] == 0
    assert metrics_of("again.json") == result["metrics"]


def test_a_folder_may_be_called_as_a_sub_command(score: Run) -> None:
    Path("out").rename("compare")
    status, out, err = score("./compare", "--reference", "real.npz", "--metrics", "fd")
    assert status == 0, err
    assert "40 samples of ./compare" in out
    status, out, err = score("--reference", "real.npz", "./compare", "--metrics", "fd")  # options may come first
    assert status == 0, err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("out", "--reference", "fashion-mnits"), "fashion-mnits"),
        (("nothing",), "nothing"),
        (("out", "--metrics", "presicion"), "did you mean 'precision'"),
        (("out", "--features", "incepton"), "did you mean 'inception'"),
        (("out", "--features", "inception", "--weights", "none.pth"), "none.pth"),
        (("out", "--reference", "real.npz", "--resize", "bicubik"), "resize"),
        (("collapsed", "--reference", "real.npz", "--per-class"), "per_class: needs the classes"),
        (("out", "--reference", "real.npz", "--k", "40"), "at least 41"),
        (("out", "--reference", "real.npz", "--count", "2"), "at least 4"),
        (("empty",), "holds no image"),
        (("out", "--model", "m", "--num", "4"), "model: got 'm' and samples"),
        (("--model", "m"), "num: missing"),
        (("out", "--num", "4"), "num:"),
        ((), "samples: none given"),
        (("out", "--json", "out"), "--json: 'out' is a folder"),
        (("out", "--json", "real.npz/r.json"), "--json: 'real.npz' is a file"),
        (("out", "--report", "real.npz/r.html"), "--report: 'real.npz' is a file"),
        (("compare", "out"), "at least two"),
        (("compare", "out", "nothing"), "nothing"),
        (("features", "out"), "--out"),
        (("out", "collapsed"), "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_line_and_status_two(score: Run, words: tuple[str, ...], match: str) -> None:
    Path("empty").mkdir()
    before = sorted(path for path in Path().rglob("*") if "cache" not in path.parts)
    status, out, err = score(*words)
    assert (status, out) == (2, "")
    assert match in err
    assert err.startswith("genflow: error: ")
    assert err.count("\n") == 1
    assert sorted(path for path in Path().rglob("*") if "cache" not in path.parts) == before


def test_one_corrupt_image_among_many_is_named_and_skipped_by_flag(score: Run) -> None:
    bad = Path("out/000007.png")
    bad.write_bytes(bad.read_bytes()[:-30])
    status, _, err = score("out", "--reference", "real.npz", "--json", "r.json")
    assert status == 2
    assert "000007.png" in err
    assert "--skip-bad" in err
    assert err.count("\n") == 1
    assert not Path("r.json").exists()
    status, out, err = score("out", "--reference", "real.npz", "--json", "r.json", "--skip-bad")
    assert status == 0, err
    assert "1 unreadable images left out" in " ".join(out.split())
    protocol = json.loads(Path("r.json").read_text())["protocol"]
    assert (protocol["count"], protocol["available"]) == (39, 40)
    assert [Path(name).name for name in protocol["skipped"]] == ["000007.png"]


def test_mixed_sizes_and_modes_are_judged_in_one_go(score: Run) -> None:
    """Every mode has one rule; sizes are the network's own or are resized as asked."""
    pixels = np.random.default_rng(1).integers(0, 256, (12, 8, 8), np.uint8)
    for index, mode in enumerate(("L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16")):
        image = Image.fromarray(pixels[index])
        if mode == "I;16":
            image = Image.fromarray(pixels[index].astype(np.uint16) * 257)
        suffix = "tif" if mode == "CMYK" else "png"
        (image if mode == "I;16" else image.convert(mode)).save(f"out/mixed{index}.{suffix}")
    status, _, err = score("out", "--reference", "real.npz", "--json", "r.json")
    assert status == 0, err
    protocol = json.loads(Path("r.json").read_text())["protocol"]
    assert protocol["count"] == 48
    assert protocol["notes"]
    Image.new("L", (11, 9)).save("out/wide.png")
    status, _, err = score("out", "--reference", "real.npz")
    assert status == 2
    assert "wide.png" in err
    assert score("out", "--reference", "real.npz", "--resize", "clean")[0] == 0


def test_a_reference_of_another_network_or_resize_mode_is_refused(
    score: Run, genflow: Run, network: Path, tmp_path: Path
) -> None:
    assert score("features", "real.npz", "--out", "ref.safetensors")[0] == 0
    status, _, err = score("out", "--reference", "ref.safetensors", "--resize", "clean")
    assert status == 2
    assert "resize mode clean" in err
    status, _, err = genflow("evaluate", "out", "--reference", "ref.safetensors", "--features", "fashion-mnist")
    assert status == 2
    assert "dimensions" in err


def test_help_names_the_sub_commands_and_every_option(genflow: Run) -> None:
    status, out, _ = genflow("evaluate", "--help")
    assert status == 0
    for word in ("genflow evaluate features", "genflow evaluate compare", "./features", "--bootstrap", "--per-class"):
        assert word in " ".join(out.split())
    for name in ("features", "compare"):
        status, out, _ = genflow("evaluate", name, "--help")
        assert status == 0
        assert f"genflow evaluate {name}" in out


def test_help_names_every_metric() -> None:
    from genflow.evaluate.measures import MEASURES

    said = " ".join(command.__doc__.partition("Metrics:")[2].partition(".")[0].split())
    known = {name.strip() for part in said.split(",") for name in part.split(" or ")}
    # the other two of FID's names are said by those of FD, and the other way round
    assert {key.replace("_", "-") for key in MEASURES} - known == {"fd-infinity", "intra-fd"}
    assert known <= {key.replace("_", "-") for key in MEASURES}


def test_the_script_takes_the_command_s_options() -> None:
    """Both are one function; evaluate_in_detail has an argument for each of them."""
    from genflow.evaluate import run

    assert run.command is command
    options = set(inspect.signature(command).parameters) - {"json_file", "report"}
    assert options <= set(inspect.signature(run.evaluate_in_detail).parameters)


def test_all_options_reach_the_evaluation(genflow: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fake(*arguments: Any, **options: Any) -> Any:
        seen.update(arguments=arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("genflow.evaluate.run.evaluate_in_detail", fake)
    words = (
        "here --reference r --features clip --weights w --resize clean --dtype bfloat16 --metrics fd,kid --k 4 "
        "--density-k 6 --strict --per-class --train t --bootstrap 50 --count 3 --seed 5 --skip-bad --device cpu "
        "--batch-size 7 --workers 2 --no-cache"
    )
    assert genflow("evaluate", *words.split())[0] == 130
    assert str(seen.pop("device")) == "cpu"
    assert seen == {
        "arguments": ("here", "r"),
        "features": "clip",
        "weights": Path("w"),
        "resize": "clean",
        "dtype": "bfloat16",
        "metrics": "fd,kid",
        "k": 4,
        "density_k": 6,
        "strict": True,
        "per_class": True,
        "train": "t",
        "bootstrap": 50,
        "count": 3,
        "seed": 5,
        "skip_bad": True,
        "batch_size": 7,
        "workers": 2,
        "cache": False,
        "model": None,
        "num": None,
        "progress": True,
    }
