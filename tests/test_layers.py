"""Imports point downwards only: the floors of the building, and what a few of its rooms may not know."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"genflow": "genflow", "genflow.assets": "assets", "genflow.evaluate": "evaluate"}
SOURCES["genflow.pipelines"] = "pipelines"

# From the ground up; a module may import from its own part and from the floors below its own.
FLOORS = [
    ["errors", "lazy", "__init__"],
    ["files", "options", "registry"],
    ["arrays", "images", "assets", "precision", "processes", "paths", "transport", "optim"],
    ["data", "prediction", "interpolants", "metrics"],
    ["solvers", "models"],
    ["schedulers"],
    ["guidance"],
    ["sampling"],
    ["bridges", "likelihood", "trajectory"],
    ["pipelines"],
    ["training"],
    ["distillation"],
    ["evaluate"],
    ["cli"],
    ["__main__"],
]
LEVEL = {part: level for level, floor in enumerate(FLOORS) for part in floor}
TORCH_ONLY = ("optim", "paths", "solvers", "transport")


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *parts])
            found[name.removesuffix(".__init__") if name != "genflow.__init__" else name] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """The dotted names that a module imports, inside functions too; of genflow's, as deep as they are modules."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            deeper = inner & MODULES.keys()
            names |= deeper | ({node.module} if len(deeper) < len(inner) else set())
    return names


def part_of(module: str) -> str:
    """``genflow.solvers.heun`` belongs to ``solvers``; ``genflow`` itself is ``__init__``."""
    return [*module.split("."), "__init__"][1]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_downwards(name: str) -> None:
    part = part_of(name)
    assert part in LEVEL, f"{name}: give {part!r} a floor in tests/test_layers.py and in the design"
    for other in imports(name):
        if other.split(".")[0] == "genflow" and part_of(other) != part:
            assert LEVEL[part_of(other)] < LEVEL[part], f"{name} imports {other} from its own floor or above"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if part_of(name) in TORCH_ONLY))
def test_the_ground_floor_knows_torch_alone(name: str) -> None:
    unwanted = {"diffusers", "accelerate", "transformers", "torchmetrics", "matplotlib"}
    assert not {other.split(".")[0] for other in imports(name)} & unwanted


def test_no_two_modules_import_each_other() -> None:
    graph = {name: {other for other in imports(name) if other in MODULES and other != name} for name in MODULES}
    pairs = {(a, b) for a in graph for b in graph[a] if a < b and a in graph[b]}
    assert not pairs


def test_no_pickle_is_opened() -> None:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                pytest.fail(f"{name}:{node.lineno} opens a pickle")
            for keyword in getattr(node, "keywords", []):
                if keyword.arg in ("allow_pickle", "trust_remote_code") and ast.unparse(keyword.value) != "False":
                    pytest.fail(f"{name}:{node.lineno} sets {keyword.arg}")
