"""``genflow translate``: from training to pictures, what is kept and what is made again, and what is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.cli.translation import TranslationRequest, translate
from genflow.images import read_metadata

Run = Callable[..., tuple[int, str, str]]

RECIPE = """
data: {source: zeros}
interpolant: {source: ones, learns: [velocity, denoiser]}
network: {options: {block_out_channels: [16], layers_per_block: 1, attention_levels: [], time_embed_dim: 16}}
schedule: {warmup_steps: 0}
budget: {images: 32}
batch_size: 8
log: {sample_every_steps: 0}
sampling: {scheduler: euler, steps: 2}
"""


def picture(number: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, size[::-1], np.uint8)).convert(mode)


@pytest.fixture(scope="session")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from genflow.models import LeanUNet2DModel
    from genflow.pipelines import TranslationPipeline

    torch.manual_seed(0)
    network = LeanUNet2DModel(
        sample_size=8, out_channels=2, block_out_channels=(16,), layers_per_block=1, attention_levels=(),
        num_classes=2, time_embed_dim=16,
    )  # fmt: skip
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("models") / "translator"
    TranslationPipeline(
        network,
        class_names=["boot", "coat"],
        source_class_names=["shoe", "shirt"],
        sides=["winter", "summer"],
        default_steps=3,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Two classes of two images each, in the working folder of a command."""
    for kind, numbers in (("shoe", (0, 1)), ("shirt", (2, 3))):
        for number in numbers:
            path = tmp_path / "shop" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(path)
    return tmp_path / "shop"


def bytes_of(folder: str) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(Path(folder).rglob("*.png"))}


def test_train_then_translate_there_and_back(genflow: Run) -> None:
    for folder, start in (("zeros", 0), ("ones", 50)):
        Path(folder).mkdir()
        for number in range(10):
            picture(start + number).save(f"{folder}/{number}.png")
    Path("mine.yaml").write_text(RECIPE)
    status, _, err = genflow("train", "mine.yaml", "--out", "run")
    assert status == 0, err
    assert err.splitlines()[-1].endswith("genflow translate SOURCE --model run/pipeline")
    status, _, err = genflow("translate", "ones", "--model", "run/pipeline", "--out", "there")
    assert status == 0, err
    assert sorted(path.name for path in Path("there").iterdir()) == [*(f"{n}.png" for n in range(10)), "grid.png"]
    record = read_metadata("there/3.png")
    wanted = {"direction": "forward", "steps": 2, "epsilon": 0.0, "solver": "euler", "image": "3.png", "seed": None}
    assert {key: record[key] for key in wanted} == wanted
    assert read_metadata("there/grid.png") == {"kind": "grid", "from": "ones", "to": "zeros"}
    status, _, err = genflow(
        "translate", "there", "--direction", "backward", "--model", "run/pipeline", "--out", "back"
    )
    assert status == 0, err
    assert len(list(Path("back").glob("[0-9].png"))) == 10  # the grid is no image to be translated


def test_the_files_are_the_pipelines_images(genflow: Run, translator: Path, shop: Path) -> None:
    from genflow.pipelines import TranslationPipeline

    status, _, err = genflow(
        "translate", shop, "--model", translator, "--out", "out", "--steps", "4", "--solver", "euler"
    )
    assert status == 0, err
    pipeline = TranslationPipeline.from_pretrained(translator)
    pipeline.set_progress_bar_config(disable=True)
    for kind, number in (("shoe", 0), ("shirt", 3)):
        wanted = pipeline(picture(number), class_labels=kind, num_inference_steps=4, solver="euler").images[0]
        with Image.open(f"out/{kind}/{number}.png") as found:
            difference = np.asarray(found, int) - np.asarray(wanted, int)
        assert abs(difference).max() <= 1
    with Image.open("out/grid.png") as sheet:
        assert sheet.size == (4 * 66 + 2, 2 * 66 + 2)
        before = sheet.crop((2, 2, 66, 66)).resize((8, 8), Image.Resampling.NEAREST)
        first = picture(2)  # shirts come first
        assert np.array_equal(np.asarray(before), np.asarray(first))


def test_what_is_there_is_kept_unless_it_would_differ(genflow: Run, translator: Path, shop: Path) -> None:
    words = ("translate", shop, "--model", translator, "--out", "out", "--sde", "0.4", "--json")
    status, out, err = genflow(*words)
    assert status == 0, err
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["made"] * 4
    whole = bytes_of("out")
    os.unlink("out/shoe/1.png")
    Path("out/shirt/2.png").write_bytes(b"cut short")
    status, out, _ = genflow(*words)
    assert sorted(json.loads(line)["status"] for line in out.splitlines()) == ["kept", "kept", "made", "made"]
    assert bytes_of("out").keys() == whole.keys()
    picture(9).save(shop / "shoe" / "0.png")  # another image of the same name
    _, out, err = genflow(*words)
    assert sum(json.loads(line)["status"] == "made" for line in out.splitlines()) == 1
    assert "image_hash" in err
    _, out, err = genflow(*words, "--seeds", "1")
    assert sum(json.loads(line)["status"] == "made" for line in out.splitlines()) == 4
    assert "seed 0 -> 1" in err
    Path("out/shoe/1.png").unlink()
    picture(1).save("out/shoe/1.png")
    status, _, err = genflow(*words)
    assert status == 2
    assert "was not made by genflow" in err


def test_seeds_and_neighbours(genflow: Run, translator: Path, shop: Path) -> None:
    """Each seed is another image; what stands beside an image in its batch, or before it in the folder, is not seen."""
    base = ("translate", shop, "--model", translator, "--sde", "1", "--batch-size")
    assert genflow(*base, "3", "--seeds", "0-1", "--out", "a")[0] == 0
    assert sorted(path.name for path in Path("a/shoe").iterdir()) == ["0-0.png", "0-1.png", "1-0.png", "1-1.png"]
    assert genflow(*base, "1", "--classes", "shoe", "--seeds", "1", "--out", "b")[0] == 0
    with Image.open("a/shoe/1-1.png") as a, Image.open("b/shoe/1.png") as b, Image.open("a/shoe/1-0.png") as c:
        a, b, c = (np.asarray(image, int) for image in (a, b, c))
    assert abs(a - b).max() <= 1
    assert abs(a - c).max() > 3
    with Image.open("a/grid.png") as sheet:
        assert sheet.size == (4 * 66 + 2, 3 * 66 + 2)  # before, and two seeds below


def test_several_processes_share_the_work(translator: Path, shop: Path, tmp_path: Path) -> None:
    class Silent:
        def planned(self, state, rows) -> None: ...
        def progress(self, images) -> None: ...
        def image(self, job, made) -> None: ...

    request = TranslationRequest(str(translator), str(shop))
    made = [
        translate(request, tmp_path / "two", Silent(), process=(index, 2), with_grid=False, device="cpu").made
        for index in (1, 0)
    ]
    assert made == [2, 2]
    translate(request, tmp_path / "one", Silent(), with_grid=False, device="cpu", batch_size=2)
    two, one = (bytes_of(str(tmp_path / name)) for name in ("two", "one"))
    assert two.keys() == one.keys()
    assert len(two) == 4


def test_resize_and_arrays(genflow: Run, translator: Path) -> None:
    Path("photos").mkdir()
    picture(0, (12, 10), "RGB").save("photos/a.png")
    words = ("translate", "photos", "--model", translator, "--classes", "shoe", "--out", "out")
    status, _, err = genflow(*words)
    assert status == 2
    assert "without labels" in err
    np.savez("data.npz", images=np.asarray(picture(0, (12, 10), "RGB"))[None], labels=np.array([1]))
    status, _, err = genflow("translate", "data.npz", "--model", translator, "--out", "out")
    assert status == 2
    assert "3 channels of 12x10 pixels; allowed: 1 of 8x8" in err
    assert not list(Path("out").glob("*.png"))
    status, _, err = genflow("translate", "data.npz", "--model", translator, "--out", "out", "--resize")
    assert status == 0, err
    with Image.open("out/000000.png") as image:
        assert (image.size, image.mode) == ((8, 8), "L")
    assert read_metadata("out/000000.png")["class"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--direction", "up"), "direction: 'up' is not known"),
        (("--steps", "0"), "--steps: got 0"),
        (("--solver", "rk4"), "solver: 'rk4' is not known"),
        (("--sde", "-1"), "epsilon: got -1.0"),
        (("--seeds", "0-3"), "--seeds: 4, and the ODE makes one image of each"),
        (("--count", "0"), "--count: got 0"),
        (("--classes", "shoo"), "'shoo' is not known (did you mean 'shoe'?)"),
        (("--model", "fashion-mnist"), "makes images from noise"),
        (("--model", "nowhere"), "model: nowhere is not there"),
        (("--device", "gpu"), "--device: 'gpu'"),
    ],
)
def test_refuses_in_one_line(genflow: Run, translator: Path, shop: Path, words: tuple[str, ...], message: str) -> None:
    model = () if words[0] == "--model" else ("--model", translator)
    status, out, err = genflow("translate", shop, *model, *words, "--out", "out")
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(Path().glob("out/**/*.png"))


def test_a_class_that_the_model_does_not_know(genflow: Run, translator: Path, shop: Path) -> None:
    (shop / "shirt").rename(shop / "scarf")
    status, _, err = genflow("translate", shop, "--model", translator, "--out", "out")
    assert status == 2
    assert "class_labels: 'scarf' is not known" in err
    assert genflow("translate", shop, "--classes", "shoe", "--model", translator, "--out", "out")[0] == 0


def test_two_images_of_one_name_are_refused(genflow: Run, translator: Path, shop: Path) -> None:
    picture(5).save(shop / "shoe" / "1.bmp")
    status, _, err = genflow("translate", shop, "--model", translator, "--out", "out")
    assert status == 2
    assert "shoe/1.png and shoe/1.bmp would both become" in err


def test_generate_refuses_a_translator(genflow: Run, translator: Path) -> None:
    status, _, err = genflow("generate", "--model", translator)
    assert status == 2
    assert "translates images" in err
