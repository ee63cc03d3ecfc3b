"""Bad input of ``genflow generate`` and ``genflow train``: status 2, one clear line, nothing written."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Run = Callable[..., tuple[int, str, str]]


def refused(result: tuple[int, str, str], *says: str, status: int = 2) -> None:
    """The command failed with one line on stderr that says all of ``says``."""
    code, out, err = result
    lines = [line for line in err.splitlines() if line.startswith("genflow: error: ")]
    assert (code, out, len(lines)) == (status, "", 1), err
    for text in says:
        assert text in lines[0]
    assert "Traceback" not in err


def images_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).glob("*")) if Path(folder).exists() else []


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all"])
def test_missing_model_folder(genflow: Run, name: str) -> None:
    refused(genflow("generate", "--model", name), name, "not there")
    assert images_in("out") == []


def test_folder_without_a_pipeline(genflow: Run) -> None:
    Path("empty").mkdir()
    refused(genflow("generate", "--model", "empty"), "empty has no model_index.json")
    Path("file").write_text("")
    refused(genflow("generate", "--model", "file"), "file is a file")


def test_truncated_safetensors(genflow: Run, class_model: Path) -> None:
    shutil.copytree(class_model, "model")
    weights = Path("model/unet/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(genflow("generate", "--model", "model"), "diffusion_pytorch_model.safetensors is not whole")
    weights.write_bytes(b"")
    refused(genflow("generate", "--model", "model"), "diffusion_pytorch_model.safetensors is not a whole")
    weights.unlink()
    refused(genflow("generate", "--model", "model"), "model cannot be loaded")
    assert images_in("out") == []


def test_broken_or_misspelt_configurations(genflow: Run, class_model: Path) -> None:
    shutil.copytree(class_model, "model")
    Path("model/model_index.json").write_text("{")
    refused(genflow("generate", "--model", "model"), "model_index.json cannot be read")
    Path("model/model_index.json").write_text(json.dumps({"_class_name": "NoSuchPipeline"}))
    refused(genflow("generate", "--model", "model"), "cannot be loaded")


@pytest.mark.parametrize(
    ("part", "key"), [("scheduler/scheduler_config.json", "shift"), ("unet/config.json", "num_classes")]
)
def test_misspelt_key_in_a_models_config(genflow: Run, class_model: Path, part: str, key: str) -> None:
    shutil.copytree(class_model, "model")
    config = json.loads(Path("model", part).read_text())
    config[key[1:]] = config.pop(key)
    Path("model", part).write_text(json.dumps(config))
    refused(genflow("generate", "--model", "model"), part, f"no {key[1:]!r} (did you mean {key!r}?)")


def test_pickled_weights_are_not_opened(genflow: Run, class_model: Path) -> None:
    shutil.copytree(class_model, "model")
    Path("model/unet/diffusion_pytorch_model.safetensors").rename("model/unet/diffusion_pytorch_model.bin")
    refused(genflow("generate", "--model", "model"), "model cannot be loaded")


def test_code_in_a_model_folder_is_not_run(genflow: Run, class_model: Path) -> None:
    shutil.copytree(class_model, "model")
    Path("model/pipeline.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    index = json.loads(Path("model/model_index.json").read_text())
    Path("model/model_index.json").write_text(json.dumps(index | {"_class_name": ["pipeline", "Pipeline"]}))
    refused(genflow("generate", "--model", "model"), "cannot be loaded")
    assert not Path("ran").exists()


def test_unknown_class_lists_the_known_ones(genflow: Run, class_model: Path, plain_model: Path) -> None:
    result = genflow("generate", "--model", class_model, "--classes", "cat,dgo")
    refused(result, "'dgo' is not known (did you mean 'dog'?); allowed: cat, dog, owl, numbers 0 to 2")
    refused(genflow("generate", "--model", plain_model, "--classes", "cat"), "knows no classes")


@pytest.mark.parametrize("steps", ["0", "-1"])
def test_steps_below_one(genflow: Run, class_model: Path, steps: str) -> None:
    refused(genflow("generate", "--model", class_model, "--steps", steps), f"--steps: got {steps}; allowed:")


def test_batch_size_below_one(genflow: Run, class_model: Path) -> None:
    refused(genflow("generate", "--model", class_model, "--batch-size", "0"), "--batch-size: got 0")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--scheduler", "huen", "did you mean 'heun'"),
        ("--scheduler-option", "shfit=2", "did you mean 'shift'"),
        ("--guidance", "cgf", "did you mean 'cfg'"),
        ("--guidance-option", "intervall=[0,1]", "did you mean 'interval'"),
        ("--guidance-option", "scale=2", "--guidance-option: unknown key 'scale'"),
        ("--guidance-option", "stop=2", "stop: got 2"),
        ("--guidance-scale", "nan", "--guidance-scale: got nan"),
        ("--pipeline-option", "hieght=8", "did you mean 'height'"),
        ("--pipeline-option", "generator=8", "'generator' is set by"),
        ("--dtype", "float8", "allowed: auto, float32, bfloat16, float16"),
        ("--device", "abacus", "--device: 'abacus' cannot be used here"),
        ("--device", "cuda:77", "--device: 'cuda:77' cannot be used here"),
        ("--prompt", "a cat", "takes no text"),
    ],
)
def test_bad_options(genflow: Run, class_model: Path, option: str, value: str, says: str) -> None:
    refused(genflow("generate", "--model", class_model, "--seeds", "0", option, value), says)
    assert images_in("out") == []


def test_text_model_without_a_prompt(genflow: Run, text_model: Path) -> None:
    refused(genflow("generate", "--model", text_model), "--prompt: this model makes images from text")
    result = genflow("generate", "--model", text_model, "--prompt", "a", "--guidance-option", "intervall=[0,1]")
    refused(result, "did you mean 'interval'")


def test_guiding_what_has_no_classes(genflow: Run, plain_model: Path) -> None:
    refused(genflow("generate", "--model", plain_model, "--guidance-scale", "2"), "no unconditional half")


def test_output_folder_is_a_file(genflow: Run, class_model: Path) -> None:
    Path("out").write_text("mine")
    refused(genflow("generate", "--model", class_model), "--out: 'out' is a file; a folder is needed")
    refused(genflow("generate", "--model", class_model, "--out", "out/deeper"), "'out' is a file")
    assert Path("out").read_text() == "mine"


def test_a_picture_of_ones_own_is_not_written_over(genflow: Run, class_model: Path) -> None:
    Path("out").mkdir()
    Image.new("L", (8, 8), 77).save("out/000001.png")
    refused(genflow("generate", "--model", class_model, "--seeds", "0-1"), "was not made by genflow")
    assert images_in("out") == ["000001.png"]


def test_like_without_a_record(genflow: Run) -> None:
    Image.new("L", (8, 8)).save("a.png")
    refused(genflow("generate", "--like", "a.png"), "a.png carries no genflow record")
    refused(genflow("generate", "--like", "b.png"), "b.png: there is no such file")


def test_nan_from_the_network_names_the_step(genflow: Run, class_model: Path, text_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    for source, part, options in ((class_model, "unet", ()), (text_model, "unet", ("--prompt", "a"))):
        shutil.copytree(source, "model")
        (weights,) = Path("model", part).glob("*.safetensors")
        tensors = load_file(weights)
        name = next(name for name in tensors if name.endswith("bias"))
        tensors[name].fill_(float("nan"))
        save_file(tensors, weights, metadata={"format": "pt"})
        result = genflow("generate", "--model", "model", "--seeds", "0-1", "--steps", "3", *options)
        refused(result, "NaN or infinity at step 1 of 3", status=1)
        assert images_in("out") == []
        shutil.rmtree("model")


def full_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the disk be full once ``after`` pictures are written, in the middle of the next."""
    save, count = Image.Image.save, 0

    def limited(image: Image.Image, path: Path, *rest: object, **options: object) -> None:
        nonlocal count
        count += 1
        if count > after:
            Path(path).write_bytes(b"\x89PNG half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(image, path, *rest, **options)

    monkeypatch.setattr(Image.Image, "save", limited)


@pytest.mark.parametrize("after", [0, 2, 4])
def test_full_disk_leaves_nothing_half_written(
    genflow: Run, class_model: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    command = ("generate", "--model", class_model, "--seeds", "0-3")
    with monkeypatch.context() as patch:
        full_disk(patch, after)
        result = genflow(*command)
    refused(result, "No space left on device", "free some space", status=1)
    assert images_in("out") == [f"{seed:06d}.png" for seed in range(after)]  # the fifth would be the grid
    assert genflow(*command)[0] == 0
    assert images_in("out") == [*(f"{seed:06d}.png" for seed in range(4)), "grid.png"]


def test_ctrl_c_keeps_what_is_whole(genflow: Run, class_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, count = Image.Image.save, 0

    def interrupted(image: Image.Image, path: Path, *rest: object, **options: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        save(image, path, *rest, **options)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    code, _, err = genflow("generate", "--model", class_model, "--seeds", "0-3")
    assert code == 130
    assert err.endswith("genflow: stopped\n")
    assert images_in("out") == ["000000.png", "000001.png"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fashion-mnits"], "did you mean 'fashion-mnist'"),
        (["nothing.yaml"], "nothing.yaml cannot be read"),
        (["fashion-mnist", "--set", "optimizer.lrr=1"], "did you mean 'lr'"),
        (["fashion-mnist", "--set", "optimizer.lr"], "KEY=VALUE"),
        (["fashion-mnist", "--set", "optimizer.lr=-1"], "optimizer.lr"),
        (["fashion-mnist", "--set", "network.type=unt"], "network.type"),
        (["misspelt.yaml"], "did you mean 'budget'"),
    ],
)
def test_bad_recipes(genflow: Run, words: list[str], says: str) -> None:
    Path("misspelt.yaml").write_text("data: {source: fashion-mnist}\nbudgt: {images: 10}\nbudget: {images: 10}\n")
    refused(genflow("train", *words), says)
    assert not Path("runs").exists()
