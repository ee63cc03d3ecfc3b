"""Optimizers by name, import path and file; parameter groups of a module."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from genflow.errors import InputError
from genflow.optim import OPTIMIZERS, Adan, Lion, LionK, create_optimizer, optimizer_class, parameter_groups


def network() -> nn.Module:
    return nn.ModuleDict(
        {
            "token": nn.Embedding(5, 4),
            "body": nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 4), nn.LayerNorm((2, 4))),
            "head": nn.Linear(4, 2),
        }
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_name_makes_an_optimizer_that_steps(name: str) -> None:
    module = network()
    options = {"unsupported": "base"} if name.startswith("mkor") else {}  # it has no factors for embeddings
    optimizer = create_optimizer(name, module, lr=0.1, **options)
    assert type(optimizer) is optimizer_class(name)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    before = module["head"].weight.detach().clone()
    optimizer.step(lambda: torch.ones(()))  # mkor-h wants to know the loss
    assert not torch.equal(before, module["head"].weight)


def test_names_can_be_checked_without_torch() -> None:
    code = (
        "import sys; from genflow.optim.registry import check_name; check_name('adan'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_matrices_and_kernels_decay_and_the_rest_does_not() -> None:
    decayed, spared = parameter_groups(network(), 0.1)
    assert [name for name, _ in decayed["params"]] == ["body.0.weight", "body.2.weight", "head.weight"]
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    assert {name for name, _ in spared["params"]} >= {"token.weight", "body.3.weight", "body.3.bias", "head.bias"}
    (everything,) = parameter_groups(network(), 0.1, exempt=False)
    assert len(everything["params"]) == len(decayed["params"]) + len(spared["params"])


def test_shared_and_frozen_parameters() -> None:
    module = network()
    module["again"] = module["head"]
    module["token"].requires_grad_(False)
    names = [name for group in parameter_groups(module) for name, _ in group["params"]]
    assert sorted(set(names)) == sorted(names)
    assert "token.weight" not in names
    module.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        parameter_groups(module)


def test_overrides_by_module_pattern_and_parameter() -> None:
    optimizer = create_optimizer(
        "lion-k",
        network(),
        lr=1e-3,
        weight_decay=0.1,
        overrides={"body": {"kappa": "l2"}, "*.weight": {"lr": 1e-2}, "head": {"weight_decay": 0.5, "lr": 1e-4}},
    )
    groups = {name: g for g in optimizer.param_groups for name in g["param_names"]}
    assert groups["body.0.weight"]["kappa"] == {"name": "l2", "dim": None}
    assert groups["body.0.weight"]["lr"] == 1e-2
    assert groups["body.0.bias"]["lr"] == 1e-3
    assert (groups["head.weight"]["weight_decay"], groups["head.weight"]["lr"]) == (0.5, 1e-4)
    assert groups["head.bias"]["weight_decay"] == 0  # exempt, whatever the module's decay
    assert groups["head.weight"]["initial_lr"] == 1e-4
    assert "initial_lr" not in groups["body.0.bias"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5)
    assert (groups["head.weight"]["lr"], groups["body.0.bias"]["lr"]) == (5e-5, 5e-4)
    assert scheduler.get_last_lr()


def test_lists_become_tuples_and_torchs_are_fused() -> None:
    optimizer = create_optimizer("adan", network(), betas=[0.9, 0.8, 0.95])
    assert isinstance(optimizer, Adan)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.8, 0.95)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert create_optimizer("adamw", network()).param_groups[0]["fused"]
    assert not create_optimizer("adamw", network(), foreach=True).param_groups[0]["fused"]


def test_plain_parameters_and_groups_pass_as_torch_takes_them() -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 2))
    optimizer = create_optimizer("lion", [{"params": [p], "lr": 0.5}, {"params": [q]}], weight_decay=0.1)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 1e-4]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.1]
    assert create_optimizer("adamw", [p]).param_groups[0]["weight_decay"] == 0.01
    with pytest.raises(InputError, match="only with a module"):
        create_optimizer("lion", [p], overrides={"head": {"lr": 1}})


def test_import_paths() -> None:
    module = nn.Linear(3, 3, bias=False)
    assert type(create_optimizer("torch.optim:Muon", module)) is torch.optim.Muon
    assert type(create_optimizer("genflow.optim.Lion", module)) is Lion
    for path, message in (
        ("torch.optim:Nothing", "cannot be imported"),
        ("no_such_package.module:Class", "cannot be imported"),
        ("torch.nn:Linear", "not a class of optimizers"),
        (".Lion", "cannot be imported"),
    ):
        with pytest.raises(InputError, match=message):
            create_optimizer(path, module)


def test_files(tmp_path: Path) -> None:
    section = {"name": "lion-k", "lr": 0.01, "weight_decay": 0.2, "options": {"kappa": "l2", "betas": [0.8, 0.9]}}
    section["overrides"] = {"head": {"lr": 0.5}}
    (tmp_path / "own.json").write_text(json.dumps(section))
    (tmp_path / "recipe.yaml").write_text("data: {source: x}\noptimizer: " + json.dumps(section))
    for file in ("own.json", "recipe.yaml"):
        optimizer = create_optimizer(tmp_path / file, network(), weight_decay=0.3)
        assert isinstance(optimizer, LionK)
        assert {g["lr"] for g in optimizer.param_groups} == {0.01, 0.5}
        assert {g["weight_decay"] for g in optimizer.param_groups} == {0.3, 0}
        assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    for text, message in (
        ("{", "is not json"),
        ("[]", "holds no 'name'"),
        ('{"name": "lion", "rate": 1}', "own.json: unknown key 'rate'"),
        ('{"name": "lion", "options": 3}', "options: got 3"),
        ('{"name": 3}', "optimizer.name: got 3"),
    ):
        (tmp_path / "own.json").write_text(text)
        with pytest.raises(InputError, match=message):
            create_optimizer(tmp_path / "own.json", network())
    with pytest.raises(InputError, match="cannot be read"):
        create_optimizer(tmp_path / "none.json", network())
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is not yaml"):
        create_optimizer(tmp_path / "bad.yaml", network())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adann", {}, r"optimizer.name: 'adann' is not known \(did you mean 'adan'"),
        ("lion", {"beta": 1}, r"optimizer.options: unknown key 'beta' \(did you mean 'betas'"),
        ("adamw", {"momentum": 1}, "optimizer.options: unknown key 'momentum'"),
        ("lion", {"betas": [1.5, 0.9]}, r"optimizer: betas\[0\]: got 1.5"),
        ("adamw", {"betas": [1.5, 0.9]}, "optimizer: Invalid beta"),
        ("lion", {"lr": -1}, "optimizer: lr: got -1"),
        ("rprop", {"weight_decay": 0.1}, "optimizer.weight_decay: got 0.1; 'rprop' has none"),
        ("lion", {"overrides": {"hed": {"lr": 1}}}, r"'hed' matches no parameter \(did you mean 'head'"),
        ("lion", {"overrides": {"head": {"rl": 1}}}, r"optimizer.overrides\['head'\]: unknown key 'rl'"),
        ("lion", {"overrides": {"head": {"lr": -1}}}, "optimizer: lr: got -1"),
    ],
)
def test_bad_input_is_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_optimizer(name, network(), **options)
