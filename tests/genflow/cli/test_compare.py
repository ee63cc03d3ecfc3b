"""``genflow compare`` from the outside: the picture, the figures, what is kept and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from genflow.cli import comparison
from genflow.cli.sheet import SheetRow, draw_sheet
from genflow.errors import NonFiniteError

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--seeds", "0-2", "--reference-steps", "8")


def figures(folder: str = "compare") -> dict:
    return json.loads(Path(folder, "comparison.json").read_text())


def cells(folder: str = "compare") -> dict[tuple[str, str, int], dict]:
    return {(cell["scheduler"], cell["label"], cell["steps"]): cell for cell in figures(folder)["cells"]}


def test_one_picture_and_one_table(genflow: Run, class_model: Path) -> None:
    schedulers = "euler,heun:shift=2,DPMSolverMultistepScheduler"
    status, out, err = genflow("compare", "--model", class_model, "--schedulers", schedulers, "--steps", "2,4", *QUICK)
    assert (status, err) == (0, "")
    for words in ("heun:shift=2", "DPMSolverMultistep ", "distance: from ab:order=4 in 8 steps", "0 everywhere:"):
        assert words in out
    assert max(map(len, out.splitlines())) <= 80
    found = cells()
    assert list(found) == [(name, "cfg 1.5", steps) for name in schedulers.split(",") for steps in (2, 4)]
    assert found["heun:shift=2", "cfg 1.5", 4]["evaluations"] == 7
    for cell in found.values():
        assert cell["distance"] > 0
        assert cell["saturation"] == 0  # a grey model
        assert 0 < cell["contrast"] <= 0.5
        assert cell["magnitude"] >= 0
        assert cell["ms_per_step"] > 0
        assert "fd" not in cell
    with Image.open("compare/comparison.png") as picture:
        assert picture.mode == "RGB"
        assert picture.width > 2 * 3 * 56
        assert picture.height > 4 * 56
    assert figures()["protocol"]["seeds"] == "0-2"


def test_the_reference_is_at_no_distance_from_itself_and_is_kept(
    genflow: Run, class_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (
        "compare",
        "--model",
        class_model,
        "--schedulers",
        "heun,euler",
        "--steps",
        "8,5",
        "--reference",
        "heun",
        *QUICK,
    )
    assert genflow(*arguments)[0] == 0
    found = cells()
    assert found["heun", "cfg 1.5", 8]["distance"] < 1e-6 < found["euler", "cfg 1.5", 8]["distance"]
    assert found["euler", "cfg 1.5", 8]["distance"] < found["euler", "cfg 1.5", 5]["distance"]
    (kept,) = Path("compare").glob("reference-*.safetensors")
    before = kept.stat().st_mtime_ns
    made = []
    solution = comparison._Sampler.__call__

    def counted(self: object, cell: comparison.Cell, todo: list) -> object:
        made.append(cell.settings.steps)
        return solution(self, cell, todo)

    monkeypatch.setattr(comparison._Sampler, "__call__", counted)
    assert genflow(*arguments)[0] == 0
    assert kept.stat().st_mtime_ns == before
    assert sorted(made) == [5, 5, 5, 8, 8]  # four cells and the first look; no reference run
    for key, cell in cells().items():
        assert cell["distance"] == pytest.approx(found[key]["distance"], abs=1e-7)
    genflow(*arguments[:-3], "0-1", *arguments[-2:])
    assert len(list(Path("compare").glob("reference-*.safetensors"))) == 2


def test_columns_by_evaluations(genflow: Run, class_model: Path) -> None:
    arguments = ("--schedulers", "euler,heun", "--evaluations", "4,7", "--reference", "none", "--json")
    status, out, _ = genflow("compare", "--model", class_model, "--seeds", "0-1", *arguments)
    assert status == 0
    assert json.loads(out) == figures()
    assert [(cell["scheduler"], cell["steps"], cell["evaluations"]) for cell in json.loads(out)["cells"]] == [
        ("euler", 4, 4),
        ("euler", 7, 7),
        ("heun", 2, 3),
        ("heun", 4, 7),
    ]
    assert all(cell["distance"] is None and cell["magnitude"] is None for cell in json.loads(out)["cells"])
    assert not list(Path("compare").glob("reference-*"))


def test_guidances_and_their_scales(genflow: Run, class_model: Path) -> None:
    guidances = "cfg,cfg:scale=1,cfg:interval=[0.5, 2]"
    arguments = ("--schedulers", "euler", "--steps", "4", "--guidance", guidances, "--guidance-scale", "3")
    assert genflow("compare", "--model", class_model, *arguments, *QUICK)[0] == 0
    found = cells()
    assert [label for _, label, _ in found] == ["cfg 3", "cfg:scale=1", "cfg:interval=[0.5, 2] 3"]
    assert [cell["guidance_scale"] for cell in found.values()] == [3, 1, 3]
    assert found["euler", "cfg:interval=[0.5, 2] 3", 4]["guidance_options"]["interval"] == [0.5, 2.0]
    assert len({cell["contrast"] for cell in found.values()}) == 3
    assert len(list(Path("compare").glob("reference-*.safetensors"))) == 3


def test_every_cell_starts_from_the_model_s_own_scheduler(genflow: Run, class_model: Path) -> None:
    """Options of one cell do not reach the next; the order of the cells does not matter."""
    for out, schedulers in (("a", "euler:shift=3,euler"), ("b", "euler,euler:shift=3")):
        genflow("compare", "--model", class_model, "--schedulers", schedulers, "--steps", "3", *QUICK, "--out", out)
    drop = {"ms_per_step": 0}
    assert {key: {**cell, **drop} for key, cell in cells("a").items()} == {
        key: {**cell, **drop} for key, cell in cells("b").items()
    }


@pytest.mark.parametrize("kind", ["plain_model", "dit_model", "text_model"])
def test_other_pipelines(genflow: Run, kind: str, request: pytest.FixtureRequest) -> None:
    """In pixels with three channels, in latents with classes, in latents with a prompt."""
    prompt = ("--prompt", "a fox") if kind == "text_model" else ()
    guidance = ("--guidance", "cfg:scale=2,apg:scale=4:eta=0") if kind != "plain_model" else ()
    arguments = ("--schedulers", "euler,DDIMScheduler", "--steps", "3,5", "--batch-size", "2", *prompt, *guidance)
    status, out, err = genflow("compare", "--model", request.getfixturevalue(kind), *arguments, *QUICK)
    assert (status, err) == (0, "")
    assert "distance" in out
    assert len(figures()["cells"]) == (8 if guidance else 4)
    for cell in figures()["cells"]:
        assert cell["distance"] > 0
        assert 0 < cell["saturation"] <= 1
        assert cell["magnitude"] is not None
    normal = figures()["protocol"]["magnitude"]
    assert ("Stable Diffusion" in normal) is (kind != "plain_model")


def test_frechet_distance_where_features_exist(genflow: Run, class_model: Path) -> None:
    arguments = ("--schedulers", "euler,dpm++", "--steps", "2", "--fd", "4", "--reference", "none", "--seeds", "0-1")
    assert genflow("compare", *arguments)[0] == 0
    found = figures()
    assert all(cell["fd"] > 0 for cell in found["cells"])
    assert found["protocol"]["fd_samples"] == 4
    assert genflow("compare", "--model", class_model, *arguments, "--out", "other")[0] == 2
    assert not Path("other/comparison.json").exists()


def test_nan_in_a_cell_leaves_the_others(genflow: Run, class_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = comparison._Sampler.__call__

    def fails(self: object, cell: comparison.Cell, todo: list) -> object:
        if cell.scheduler == "euler":
            raise NonFiniteError("the network gave NaN or infinity at step 1")
        return run(self, cell, todo)

    monkeypatch.setattr(comparison._Sampler, "__call__", fails)
    arguments = ("--schedulers", "euler,heun", "--steps", "2", "--seeds", "0-1", "--reference", "none")
    status, out, _ = genflow("compare", "--model", class_model, *arguments)
    assert status == 0
    assert "NaN" in out
    first, second = figures()["cells"]
    assert "step 1" in first["error"]
    assert second["contrast"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--schedulers", "euler,oiler"), "oiler: scheduler: 'oiler' is not known"),
        (("--schedulers", "euler:order=2"), "euler:order=2: scheduler 'euler': option 'order' is not known"),
        (("--schedulers", "euler,"), "--schedulers: 'euler,' has an empty name"),
        (("--steps", "5,x"), "--steps: '5,x'; allowed: integers"),
        (("--steps", "0"), "--steps: got 0"),
        (("--steps", "5,5"), "--steps: '5,5' says a number twice"),
        (("--steps", "5", "--evaluations", "5"), "--steps and --evaluations: give one of them"),
        (("--evaluations", "-1"), "--evaluations: got -1"),
        (("--guidance", "xyz"), "'xyz' is not known"),
        (("--reference", "oiler"), "oiler: scheduler: 'oiler' is not known"),
        (("--reference-steps", "0"), "--reference-steps: got 0"),
        (("--fd", "1"), "--fd: got 1"),
        (("--fd", "4", "--fd-reference", "cifar"), "reference: 'cifar' is not known"),
        (("--fd", "4"), "--fd: the model makes 1x8x8 images; the reference fashion-mnist-reference judges 1x28x28"),
        (("--seeds", "x"), "--seeds: 'x'"),
        (("--batch-size", "0"), "--batch-size: got 0"),
        (("--prompt", "a fox"), "--prompt: this model takes no text"),
        (("--classes", "fox"), "--classes: 'fox' is not known"),
    ],
)
def test_bad_input_is_one_line(genflow: Run, class_model: Path, arguments: tuple[str, ...], says: str) -> None:
    status, out, err = genflow("compare", "--model", class_model, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("genflow: error: ")
    assert says in err
    assert len(err.splitlines()) == 1
    assert not list(Path("compare").glob("comparison.*"))


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (4, (4, 1)), (6, (3, 2)), (7, (3, 3)), (8, (4, 2)), (40, (4, 4))]
)
def test_cells_of_the_sheet(count: int, shape: tuple[int, int]) -> None:
    """The cell's lines and columns, by the sheet's size and by where the last image stands."""
    images = [Image.new("L", (28, 28), 255) for _ in range(count)]
    sheet = draw_sheet(["5 steps", "a long title of a column that is wider"], [SheetRow("one", [images, []])])
    across, down = shape
    empty = draw_sheet(["5 steps", "a long title of a column that is wider"], [SheetRow("one", [images[:1], []])])
    assert sheet.height == max(empty.height, 30 + 8 + down * 58 + 2)
    assert sheet.width >= across * 58


def test_large_images_are_reduced_and_rows_keep_their_order() -> None:
    red, blue = Image.new("RGB", (1024, 512), "red"), Image.new("RGB", (1024, 512), "blue")
    sheet = draw_sheet(["a"], [SheetRow("first", [[red]]), SheetRow("second\nrow", [[blue]])])
    assert sheet.width < 400
    colours = [sheet.getpixel((sheet.width - 60, y)) for y in range(sheet.height)]
    assert colours.count((255, 0, 0)) == colours.count((0, 0, 255)) == 96
    assert colours.index((255, 0, 0)) < colours.index((0, 0, 255))
