"""The package as a newcomer gets it: light to import, whole in a wheel, nothing where it should not be."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPED = {"genflow.assets": "assets", "genflow.evaluate": "evaluate", "genflow.pipelines": "pipelines"}
TOP_LEVEL = {
    *("pyproject.toml", "genflow", "pipelines", "tests", "evaluate", "assets", "README.md"),
    *("Makefile", "constraints.txt", "LICENSE", ".ci", ".gitignore"),
}


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run to success and return stdout; a failure shows both streams."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COVERAGE"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def normal(requirement: str) -> str:
    """The bare name of a requirement, as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()


def test_import_is_lazy_and_costs_at_most_a_second_more_than_torch(tmp_path: Path) -> None:
    code = (
        "import json, sys, time\n"
        "start = time.perf_counter(); import genflow; alone = time.perf_counter() - start\n"
        "eager = [name for name in ('torch', 'diffusers', 'numpy', 'scipy') if name in sys.modules]\n"
        "start = time.perf_counter(); import torch; torch_time = time.perf_counter() - start\n"
        "print(json.dumps([alone, torch_time, eager]))"
    )
    alone, torch_time, eager = json.loads(run(sys.executable, "-c", code, cwd=tmp_path))
    assert eager == []
    assert alone < 1.0
    assert alone < torch_time  # a thousandth of it, in fact


def test_every_lazy_name_can_be_imported() -> None:
    import genflow

    for name in genflow.__all__:
        assert getattr(genflow, name) is not None
    assert set(genflow.__all__) <= set(dir(genflow))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        genflow.nothing  # noqa: B018


def test_version_is_said_once() -> None:
    import genflow

    assert genflow.__version__ == PROJECT["project"]["version"]


def test_every_package_folder_is_listed() -> None:
    folders = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "genflow").rglob("__init__.py")}
    found = {folder.replace("/", ".") for folder in folders}
    for package, folder in MAPPED.items():
        inner = (ROOT / folder).rglob("__init__.py")
        found |= {".".join([package, *path.parent.relative_to(ROOT / folder).parts]) for path in inner}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_top_level_holds_what_it_should_and_no_more() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = run("git", "ls-files", cwd=ROOT).splitlines()
    assert {path.split("/")[0] for path in tracked} == TOP_LEVEL


def test_torchvision_stays_out_of_what_is_installed_by_default() -> None:
    hard = {normal(requirement) for requirement in PROJECT["project"]["dependencies"]}
    extras = PROJECT["project"]["optional-dependencies"]
    unwanted = {"torchvision", "torch-fidelity"}
    assert not hard & unwanted
    for name, requirements in extras.items():
        assert (name == "lpips") == bool({normal(requirement) for requirement in requirements} & unwanted)


def test_constraints_pin_every_dependency_once_and_for_any_build() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)  # no +cpu
    pinned = [normal(line) for line in lines]
    assert len(set(pinned)) == len(pinned)
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["test"]
    assert {normal(requirement) for requirement in wanted} <= set(pinned)
    assert "torchvision" not in pinned


def test_make_without_a_target_prints_the_targets() -> None:
    text = run("make", "--no-print-directory", cwd=ROOT)
    for target in ("demo", "test", "lint", "format", "clean"):
        assert f"make {target} " in text


def test_ci_runs_the_readme_test_command() -> None:
    assert "make test" in (ROOT / "README.md").read_text()
    script = ROOT / ".ci" / "run"
    assert "\nmake test\n" in script.read_text()
    assert os.access(script, os.X_OK)


def copy_of_the_sources(target: Path) -> Path:
    """The tree without what was built or generated in it: setuptools writes beside the sources it builds from."""
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "out", "runs", "tests")
    return Path(shutil.copytree(ROOT, target, ignore=unwanted))


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    sources = copy_of_the_sources(tmp_path / "sources")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, sources)
    (wheel,) = tmp_path.glob("genflow-*.whl")

    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"genflow", f"genflow-{PROJECT['project']['version']}.dist-info"}
    assets = {path.relative_to(ROOT) for path in (ROOT / "assets").rglob("*") if path.is_file()}
    for path in assets:
        if path.suffix in {".json", ".md", ".png", ".safetensors", ".yaml"}:
            assert f"genflow/{path.as_posix()}" in names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)

    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = venv.glob("lib/python3*/site-packages")
    assert not {"pipelines", "evaluate", "assets", "tests"} & {path.name for path in site.iterdir()}
    # The dependencies come from this test's environment; path files in there (an editable install's) are not read.
    (site / "parent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = run(python, "-c", "import genflow.assets as a; print(a.path('fashion-mnist'))", cwd=elsewhere).strip()
    assert Path(place).is_relative_to(site)
    lines = run(venv / "bin" / "genflow", "generate", "--seeds", "0-1", "--json", cwd=elsewhere).splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["made", "made"]
    assert sorted(path.name for path in (elsewhere / "out").iterdir()) == ["000000.png", "000001.png", "grid.png"]
