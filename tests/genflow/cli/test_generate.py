"""``genflow generate`` from the outside: what it makes, keeps, makes again, and prints."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.images import read_metadata

Run = Callable[..., tuple[int, str, str]]


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_makes_one_image_a_seed_and_a_grid(genflow: Run, class_model: Path) -> None:
    status, out, err = genflow("generate", "--model", class_model, "--seeds", "0-3,9")
    assert (status, out) == (0, "")
    assert names("out") == [*(f"{seed:06d}.png" for seed in (0, 1, 2, 3, 9)), "grid.png"]
    assert "making 5 images" in err
    assert "out/" in err
    record = read_metadata("out/000009.png")
    assert record == {
        "model": str(class_model),
        "model_hash": record["model_hash"],
        "seed": 9,
        "class": 0,
        "class_name": "cat",
        "scheduler": "euler",
        "scheduler_options": {},
        "steps": 4,
        "guidance": "cfg",
        "guidance_scale": 1.5,
        "guidance_options": {"interval": [0.0, None]},
        "pipeline_options": {},
        "dtype": "float32",
        "exact": False,
        "version": record["version"],
    }
    assert pixels("out/grid.png").shape == (2 * 66 + 2, 3 * 66 + 2)  # eight times as large; a column a class
    first, last = pixels("out/000000.png"), pixels("out/000009.png")
    assert first.shape == (8, 8)
    assert not np.array_equal(first, last)


def test_json_is_a_line_an_image_on_stdout(genflow: Run, class_model: Path) -> None:
    arguments = ("generate", "--model", class_model, "--json", "--classes", "owl,dog", "--out", "here")
    _, out, _ = genflow(*arguments, "--seeds", "0-1")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["file"], line["status"], line["class_name"]) for line in lines] == [
        ("here/000000.png", "made", "owl"),
        ("here/000001.png", "made", "dog"),
    ]
    _, out, _ = genflow(*arguments, "--seeds", "0-2")
    assert {line["seed"]: line["status"] for line in map(json.loads, out.splitlines())} == {
        0: "kept",
        1: "kept",
        2: "made",
    }


def test_an_image_depends_on_its_seed_alone(genflow: Run, class_model: Path) -> None:
    genflow("generate", "--model", class_model, "--seeds", "0-6", "--out", "together")
    genflow("generate", "--model", class_model, "--seeds", "0-6", "--out", "by-twos", "--batch-size", 2)
    genflow("generate", "--model", class_model, "--seeds", "5", "--out", "alone")
    assert names("alone") == ["000005.png"]  # one image needs no grid
    for seed in range(7):
        difference = pixels(f"together/{seed:06d}.png") - pixels(f"by-twos/{seed:06d}.png")
        assert abs(difference).max() <= 1
    assert abs(pixels("together/000005.png") - pixels("alone/000005.png")).max() <= 1


def test_exact_bytes_do_not_depend_on_what_else_is_made(genflow: Run, class_model: Path) -> None:
    common = ("generate", "--model", class_model, "--exact", "--no-grid")
    genflow(*common, "--seeds", "0-19", "--out", "a")
    genflow(*common, "--seeds", "19,3,7,35", "--out", "b", "--batch-size", 3)
    genflow(*common, "--seeds", "7", "--out", "c")
    for name in ("000003.png", "000007.png", "000019.png"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    assert Path("a", "000007.png").read_bytes() == Path("c", "000007.png").read_bytes()
    assert names("a") == [f"{seed:06d}.png" for seed in range(20)]


def test_run_again_keeps_what_is_there_and_makes_what_is_missing(genflow: Run, class_model: Path) -> None:
    common = ("generate", "--model", class_model, "--seeds", "0-3")
    genflow(*common)
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("0*.png")}
    Path("out/000002.png").unlink()
    status, _, err = genflow(*common)
    assert status == 0
    assert "3 of 4 images are there already, kept" in err
    after = {path: path.stat().st_mtime_ns for path in Path("out").glob("0*.png")}
    assert [path.name for path in after if after[path] != before[path]] == ["000002.png"]


def test_other_settings_are_never_kept_silently(genflow: Run, class_model: Path) -> None:
    genflow("generate", "--model", class_model, "--seeds", "0-3")
    old = pixels("out/000001.png")
    _, _, err = genflow("generate", "--model", class_model, "--seeds", "1", "--steps", 2)
    assert "steps 4 -> 2 (1)" in err
    assert "3 PNG files that this command did not ask for" in err
    assert read_metadata("out/000001.png")["steps"] == 2
    assert not np.array_equal(old, pixels("out/000001.png"))


def test_like_makes_an_image_again(genflow: Run, class_model: Path) -> None:
    genflow(
        "generate", "--model", class_model, "--seeds", "11", "--classes", "owl", "--scheduler", "heun", "--steps", 3,
        "--guidance-scale", 2, "--guidance-option", "interval=[0.1, 5]", "--scheduler-option", "shift=2", "--out", "a",
    )  # fmt: skip
    status, _, err = genflow("generate", "--like", "a/000011.png")
    assert status == 0, err
    assert Path("a/000011.png").read_bytes() == Path("again/000011.png").read_bytes()
    _, _, err = genflow("generate", "--like", "a/000011.png", "--steps", 5, "--seeds", "11-12", "--out", "b")
    changed = read_metadata("b/000012.png")
    assert (changed["steps"], changed["scheduler"], changed["class_name"]) == (5, "heun", "owl")


def test_apg_and_its_options_are_recorded_and_made_again(genflow: Run, class_model: Path) -> None:
    status, _, err = genflow(
        "generate", "--model", class_model, "--seeds", "3-4", "--guidance", "apg", "--guidance-scale", 4,
        "--guidance-option", "eta=0", "--guidance-option", "norm_threshold=2.5", "--guidance-option", "stop=0.5",
        "--out", "a",
    )  # fmt: skip
    assert status == 0, err
    record = read_metadata("a/000003.png")
    assert (record["guidance"], record["guidance_scale"]) == ("apg", 4)
    assert record["guidance_options"] == {
        "eta": 0.0, "norm_threshold": 2.5, "momentum": -0.5, "interval": [0.0, None], "stop": 0.5,
    }  # fmt: skip
    status, _, err = genflow("generate", "--like", "a/000003.png")
    assert status == 0, err
    assert Path("a/000003.png").read_bytes() == Path("again/000003.png").read_bytes()
    genflow("generate", "--like", "a/000003.png", "--guidance", "cfg", "--out", "b")  # without the options of apg
    assert read_metadata("b/000003.png")["guidance_options"] == {"interval": [0.0, None]}
    assert not np.array_equal(pixels("a/000003.png"), pixels("b/000003.png"))


def test_like_notices_another_model_under_the_same_name(genflow: Run, class_model: Path, plain_model: Path) -> None:
    link = Path("model")
    link.symlink_to(class_model)
    genflow("generate", "--model", link, "--seeds", "1", "--out", "a")
    link.unlink()
    link.symlink_to(plain_model)
    status, _, err = genflow("generate", "--like", "a/000001.png")
    assert status == 2
    assert "is not the one that made the image" in err


def test_the_models_own_scheduler_by_name_changes_nothing(genflow: Run, class_model: Path) -> None:
    genflow("generate", "--model", class_model, "--seeds", "1", "--out", "a")
    _, _, err = genflow("generate", "--model", class_model, "--seeds", "1", "--out", "a", "--scheduler", "euler")
    assert "kept" in err
    genflow("generate", "--model", class_model, "--seeds", "1", "--out", "b", "--scheduler", "RectifiedFlowScheduler")
    assert np.array_equal(pixels("a/000001.png"), pixels("b/000001.png"))


def test_any_diffusers_scheduler_by_class_name(genflow: Run, class_model: Path, plain_model: Path) -> None:
    for model, scheduler in ((class_model, "FlowMatchEulerDiscreteScheduler"), (plain_model, "DDIMScheduler")):
        status, _, err = genflow(
            "generate", "--model", model, "--seeds", "0-1", "--steps", 3, "--scheduler", scheduler, "--out", scheduler
        )
        assert status == 0, err
        assert read_metadata(f"{scheduler}/000001.png")["scheduler"] == scheduler


def test_unconditional_pipeline_of_diffusers(genflow: Run, plain_model: Path) -> None:
    status, _, err = genflow("generate", "--model", plain_model, "--seeds", "0-2", "--steps", 3)
    assert status == 0, err
    record = read_metadata("out/000002.png")
    assert (record["class"], record["guidance"], record["scheduler"]) == (None, None, "DDPMScheduler")
    assert pixels("out/000002.png").shape == (8, 8, 3)
    # a scheduler that draws noise at every step draws each image's from its own generator
    genflow("generate", "--model", plain_model, "--seeds", "2", "--steps", 3, "--out", "alone")
    assert abs(pixels("out/000002.png") - pixels("alone/000002.png")).max() <= 1


def test_dit_takes_classes(genflow: Run, dit_model: Path) -> None:
    status, _, err = genflow("generate", "--model", dit_model, "--seeds", "0-1", "--steps", 2, "--classes", "7,999")
    assert status == 0, err
    assert read_metadata("out/000001.png")["class"] == 999


def test_text_to_image_takes_prompts(genflow: Run, text_model: Path) -> None:
    common = ("generate", "--model", text_model, "--steps", 2, "--no-grid")
    status, _, err = genflow(*common, "--seeds", "0-2", "--prompt", "a red boat", "--prompt", "a cat", "--out", "a")
    assert status == 0, err
    assert [read_metadata(f"a/{seed:06d}.png")["prompt"] for seed in range(3)] == ["a red boat", "a cat", "a red boat"]
    genflow("generate", "--like", "a/000001.png")
    assert Path("again/000001.png").read_bytes() == Path("a/000001.png").read_bytes()
    genflow(*common, "--seeds", "0", "--prompt", "a cat", "--out", "b", "--guidance-scale", 1)
    assert read_metadata("b/000000.png")["guidance_scale"] == 1
    size = ("--pipeline-option", "height=16", "--pipeline-option", "width=24")
    genflow(*common, "--seeds", "0", "--prompt", "a", "--out", "c", "--scheduler", "heun", *size)
    assert pixels("c/000000.png").shape == (16, 24, 3)


def test_dtype_and_device_are_recorded_or_refused(genflow: Run, class_model: Path) -> None:
    common = ("generate", "--model", class_model, "--seeds", "0")
    status, _, err = genflow(*common, "--dtype", "bfloat16", "--device", "cpu")
    assert status == 0, err
    assert read_metadata("out/000000.png")["dtype"] == "bfloat16"


@pytest.mark.slow
def test_accelerate_launch_splits_the_seeds(
    class_model: Path, accelerate_launch: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    out, errors = accelerate_launch("-m", "genflow", "generate", "--model", class_model, "--seeds", "0-4", "--json")
    assert sorted(json.loads(line)["seed"] for line in out.splitlines()) == [0, 1, 2, 3, 4]
    assert names(str(tmp_path / "out")) == [*(f"{seed:06d}.png" for seed in range(5)), "grid.png"]
    assert errors.count("making") == 1  # one process speaks


def test_apg_in_the_place_of_a_pipelines_own_cfg(genflow: Run, text_model: Path) -> None:
    common = ("generate", "--model", text_model, "--steps", 2, "--no-grid", "--seeds", "0-1", "--prompt", "a red boat")
    status, _, err = genflow(
        *common, "--guidance", "apg", "--guidance-scale", 10, "--guidance-option", "eta=0", "--out", "apg"
    )
    assert status == 0, err
    record = read_metadata("apg/000001.png")
    assert (record["guidance"], record["guidance_scale"], record["guidance_options"]["eta"]) == ("apg", 10, 0)
    status, _, err = genflow("generate", "--like", "apg/000001.png")
    assert status == 0, err
    assert Path("again/000001.png").read_bytes() == Path("apg/000001.png").read_bytes()
    # cfg is the pipeline's own; with an option it is genflow's, and the same where the option does nothing
    genflow(*common, "--guidance", "cfg", "--guidance-scale", 10, "--out", "own")
    assert read_metadata("own/000001.png")["guidance_options"] == {}
    genflow(
        *common, "--guidance", "cfg", "--guidance-scale", 10, "--guidance-option", "interval=[0,1000]", "--out", "ours"
    )
    assert read_metadata("ours/000001.png")["guidance_options"] == {"interval": [0.0, 1000.0]}
    assert abs(pixels("own/000001.png") - pixels("ours/000001.png")).max() <= 1
    assert abs(pixels("own/000001.png") - pixels("apg/000001.png")).max() > 1


def test_bad_options_of_attached_guidance(genflow: Run, text_model: Path) -> None:
    common = ("generate", "--prompt", "a", "--seeds", "0", "--model", text_model, "--guidance", "apg")
    for words, says in (
        (("--guidance-option", "ete=0"), "did you mean 'eta'"),
        (("--guidance-option", "eta=nan"), "eta"),
    ):
        status, _, err = genflow(*common, *words)
        assert (status, says in err) == (2, True), err
