"""A torchvision that breaks everything is found, and the mend is said; one that works or is absent is left in peace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genflow.cli import doctor, info


def fake_package(folder: Path, name: str, version: str, code: str) -> None:
    """A package that claims to be installed, and runs ``code`` when it is imported."""
    module = folder / name.replace("-", "_")
    module.mkdir()
    (module / "__init__.py").write_text(code)
    record = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def report(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "genflow", "info", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("torch", "vision"), [("2.13.0+cpu", "0.28"), ("2.6.0", "0.21"), ("1.13.1", None)])
def test_matching_torchvision(torch: str, vision: str | None) -> None:
    assert doctor.matching_torchvision(torch) == vision


def test_a_broken_torchvision_is_found_with_its_mend(tmp_path: Path) -> None:
    code = "raise RuntimeError('operator torchvision::nms does not exist')"
    fake_package(tmp_path, "torchvision", "0.28.0+cu130", code)
    text = report(tmp_path)
    assert "operator torchvision::nms does not exist" in text
    assert "The mend: pip uninstall torchvision" in text
    assert "schedulers" in text  # what diffusers' failure hides is said, the rest is still reported


def test_a_torchvision_that_works_is_left_in_peace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, "torchvision", "0.28.0", "class ops:\n    nms = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor.check_torchvision()
    assert (finding.status, finding.detail, finding.mend) == ("works", "0.28.0", None)


def test_torch_fidelity_without_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", {"torch-fidelity": "0.4.0", "torch": "2.13.0"}.get)
    assert doctor.check_torchvision().mend == "pip uninstall torch-fidelity"
    monkeypatch.setattr(doctor, "installed", {"torch": "2.13.0"}.get)
    assert doctor.check_torchvision().status == "absent"


def test_info_reports_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "check_torchvision", lambda: doctor.Finding("absent", "not installed"))
    report = info.gather()
    assert json.loads(json.dumps(report)) == report
    assert not [key for key, value in report.items() if isinstance(value, dict) and "error" in value]
    assert {"euler", "heun"} <= set(report["schedulers"]) & set(report["solvers"])
    assert "cfg" in report["guidances"]
    assert report["schedulers"]["euler"]["sets"] == {"solver": "euler"}
    assert "order" in report["schedulers"]["ghvb"]["options"]
    assert "prediction_type" not in report["schedulers"]["ghvb"]["options"]  # of every scheduler
    assert "scale" in report["guidances"]["cfg"]
    assert "adamw" in report["optimizers"]
    assert "fashion-mnist" in report["recipes"]
    assert report["dtype"]["generate"] == "float32"
    assert report["dtype"]["train"] in ("fp32", "bf16", "fp16")
    assert len(info._lines(report)) == len(report)
