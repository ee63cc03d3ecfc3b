"""The smaller parts of training: networks and optimizers by name, precision, checkpoints, records."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from genflow.errors import InputError
from genflow.precision import probe, resolve
from genflow.training.checkpoints import (
    flatten_optimizer,
    latest_checkpoint,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from genflow.training.networks import create_network
from genflow.training.optimizers import OPTIMIZERS, create_optimizer
from genflow.training.records import MetricsLog, plot_loss, save_grid

UNET2D = {
    "block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"],
}  # fmt: skip
DIT = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4, "patch_size": 2, "norm_num_groups": 4}


@pytest.mark.parametrize(
    ("name", "options"), [("lean-unet", {"block_out_channels": [16, 64]}), ("unet2d", UNET2D), ("dit", DIT)]
)
def test_networks_take_every_label_and_the_null_one(name, options):
    network = create_network(name, size=(8, 8), channels=1, num_classes=3, options=options).train()
    output = network(torch.randn(4, 1, 8, 8), torch.full((4,), 500.0), class_labels=torch.arange(4)).sample
    assert output.shape == (4, 1, 8, 8)


def test_dit_leaves_label_dropout_to_the_objective():
    network = create_network("dit", size=(8, 8), channels=1, num_classes=3, options=DIT).train()
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.1)
    x, t, labels = torch.randn(1, 1, 8, 8).expand(64, -1, -1, -1), torch.full((64,), 500), torch.ones(64).long()
    output = network(x, t, class_labels=labels).sample
    torch.testing.assert_close(output, output[:1].expand_as(output))


def test_faults_of_networks():
    make = {"size": (8, 8), "channels": 1, "num_classes": None, "options": {}}
    with pytest.raises(InputError, match="'dit' needs class labels"):
        create_network("dit", **make)
    with pytest.raises(InputError, match="wants square images, and these are 9x8"):
        create_network("unet2d", **{**make, "size": (8, 9)})
    with pytest.raises(InputError, match=r"unknown key 'patchsize' \(did you mean 'patch_size'"):
        create_network("lean-unet", **{**make, "options": {"patchsize": 2}})
    with pytest.raises(InputError, match="network.options: .* refused by UNet2DModel"):
        create_network("unet2d", **{**make, "options": {"down_block_types": ["None"]}})


def test_every_optimizer_by_name():
    network = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    decayed, plain = create_optimizer("adamw", network, 0.1, 0.1, {}).param_groups
    assert decayed["param_names"] == ["1.weight"]
    assert plain["param_names"] == ["0.weight", "1.bias", "2.weight", "2.bias"]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    for name in OPTIMIZERS:
        options = {"unsupported": "base"} if name.startswith("mkor") else {}  # it has no factors for embeddings
        optimizer = create_optimizer(name, network, 0.1, 0.0, options)
        loss = network(torch.tensor([0, 1])).sum()
        loss.backward()
        optimizer.step(lambda loss=loss: loss.detach())  # mkor-h wants to know the loss
    with pytest.raises(InputError, match="optimizer.options: unknown key 'beta'.*'betas'"):
        create_optimizer("adamw", network, 0.1, 0.0, {"beta": 1})
    with pytest.raises(InputError, match="optimizer: Invalid beta"):
        create_optimizer("adamw", network, 0.1, 0.0, {"betas": [2.0, 0.9]})
    with pytest.raises(InputError, match="optimizer.options: unknown key 'lr'.*beside it"):
        create_optimizer("adamw", network, 0.1, 0.0, {"lr": 1})


def test_precision():
    assert resolve("fp32").accelerate_name == "no"
    assert resolve("bf16").accelerate_name == "bf16"
    assert probe() is probe()
    assert resolve("auto") is probe("cpu")
    assert probe().name in {"fp32", "bf16"}
    assert "ms in bf16" in probe().reason
    with pytest.raises(InputError, match="precision: 'fp8'"):
        resolve("fp8")


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_optimizer_state_round_trip_is_exact(tmp_path, name):
    torch.manual_seed(0)
    x = torch.randn(8, 3)

    def start():
        network = nn.Linear(3, 2)
        with torch.no_grad():
            network.weight.copy_(torch.arange(6).view(2, 3) / 6)
            network.bias.zero_()
        options = {"momentum": 0.9} if name == "sgd" else {}
        decay = 0.0 if name == "rprop" else 0.01
        return network, create_optimizer(name, network, 0.1, decay, options)

    def step(network, optimizer):
        optimizer.zero_grad()
        loss = network(x).square().sum()
        loss.backward()
        optimizer.step(lambda: loss.detach())

    network, optimizer = start()
    step(network, optimizer)
    tensors, rest = flatten_optimizer(optimizer.state_dict())
    save_checkpoint(tmp_path, 1, {"network": network.state_dict(), "optimizer": tensors}, {"optimizer": rest}, keep=2)
    step(network, optimizer)

    loaded, state = load_checkpoint(latest_checkpoint(tmp_path), ("network", "optimizer"))
    network_again, optimizer_again = start()
    network_again.load_state_dict(loaded["network"])
    optimizer_again.load_state_dict(restore_optimizer(loaded["optimizer"], state["optimizer"]))
    step(network_again, optimizer_again)
    assert torch.equal(network.weight, network_again.weight)


def test_checkpoints_keep_the_newest_and_ignore_the_unfinished(tmp_path):
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, step, {"a": {"x": torch.tensor([float(step)])}}, {"note": step}, keep=2)
    (tmp_path / "step-00000099").mkdir()  # no state.json
    (tmp_path / ".step-00000100.tmp").mkdir()
    assert latest_checkpoint(tmp_path).name == "step-00000010"
    assert not (tmp_path / "step-00000002").exists()
    tensors, state = load_checkpoint(latest_checkpoint(tmp_path), ("a",))
    assert tensors["a"]["x"].item() == 10
    assert state == {"step": 10, "note": 10}
    damaged = tmp_path / "step-00000010" / "a.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-2])
    with pytest.raises(InputError, match="step-00000010: damaged checkpoint"):
        load_checkpoint(latest_checkpoint(tmp_path), ("a",))
    assert latest_checkpoint(tmp_path / "none") is None


def test_metrics_log_repeats_no_step(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        log.append({"step": step, "images": step * 8, "loss": 1 / step})
    with (tmp_path / "m.jsonl").open("a") as stream:
        stream.write('{"step": 4, "ima')  # what a kill leaves
    again = MetricsLog(tmp_path / "m.jsonl", resume_at=2)
    again.append({"step": 3, "images": 24, "loss": 0.3})
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [1, 2, 3]
    plot_loss(again.rows, tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").size == (840, 480)
    plot_loss([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_grid_is_enlarged(tmp_path):
    save_grid([Image.new("L", (8, 8), 255)] * 4, tmp_path / "grid.png", columns=2)
    assert Image.open(tmp_path / "grid.png").size == (2 * 66 + 2, 2 * 66 + 2)
