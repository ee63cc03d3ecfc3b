"""Checkpoints of torch are read as data: tensors come out bit for bit, and nothing that a file asks for is run."""

import functools
import io
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from genflow.errors import InputError
from genflow.metrics.checkpoints import read_checkpoint

LAYOUTS = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "stream": {"_use_new_zipfile_serialization": False},
    "stream, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {name: (10 * torch.randn(3, 4, generator=generator)).to(getattr(torch, name)) for name in DTYPES}
    base = torch.arange(24.0).reshape(4, 6)
    return {**found, "scalar": torch.tensor(3), "empty": torch.zeros(0, 5), "turned": base.T, "part": base[1:, 2:4]}


@LAYOUT
def test_tensors_come_out_as_they_were(layout, tmp_path):
    wanted = tensors()
    torch.save(wanted, tmp_path / "a.pth", **LAYOUTS[layout])
    got = read_checkpoint(tmp_path / "a.pth")
    assert list(got) == list(wanted)
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)


@LAYOUT
def test_state_dicts_of_networks_are_read_parameters_and_metadata_included(layout, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2))
    for index, value in enumerate((network.state_dict(), OrderedDict(network.named_parameters()))):
        torch.save(value, tmp_path / f"{index}.pth", **LAYOUTS[layout])
        got = read_checkpoint(tmp_path / f"{index}.pth")
        assert list(got) == list(value)
        assert all(torch.equal(got[name], value[name]) for name in value)
    torch.save({"epoch": 3, "rate": 0.1, "state_dict": network.state_dict()}, tmp_path / "c.pth", **LAYOUTS[layout])
    assert list(read_checkpoint(tmp_path / "c.pth")) == list(network.state_dict())


@LAYOUT
def test_tensors_that_share_their_numbers_are_read(layout, tmp_path):
    base = torch.arange(12.0)
    torch.save({"a": base[:6].reshape(2, 3), "b": base[3:]}, tmp_path / "a.pth", **LAYOUTS[layout])
    got = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(got["a"], base[:6].reshape(2, 3))
    assert torch.equal(got["b"], base[3:])


@given(st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=5), st.sampled_from(sorted(LAYOUTS)))
def test_any_shapes_go_round(tmp_path_factory, shapes, layout):
    file = tmp_path_factory.mktemp("shapes") / "a.pth"
    wanted = {f"t{index}": torch.randn(shape) for index, shape in enumerate(shapes)}
    torch.save(wanted, file, **LAYOUTS[layout])
    got = read_checkpoint(file)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_safetensors_are_read(tmp_path):
    save_file({"x": torch.arange(6.0)}, tmp_path / "a.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")["x"], torch.arange(6.0))


class _Call:
    """Pickles as a call of ``function``: what an attacker writes."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class _State(_Call):
    def __reduce__(self):
        return *self.call, {"x": 1}


def attacks(target: Path) -> dict[str, object]:
    """What must be refused, by the end of the name that it goes under in the pickle."""
    return {
        "system": _Call(os.system, f"touch {target}"),
        "exec": _Call(exec, f"open({str(target)!r}, 'w')"),
        "open": _Call(open, str(target), "w"),
        "getattr": _Call(getattr, "x", "upper"),
        "bytearray": _State(bytearray, b"x"),
        "PosixPath": target,
        "partial": _Call(functools.partial, os.system),
        "Linear": nn.Linear(2, 2),
        "_load_from_bytes": _Call(torch.storage._load_from_bytes, b"x"),
    }


@LAYOUT
@pytest.mark.parametrize("name", sorted(attacks(Path("x"))))
def test_calls_are_refused_by_name_and_not_run(name, layout, tmp_path):
    target, file = tmp_path / "made", tmp_path / "bad.pth"
    for value in (attacks(target)[name], {"a": torch.ones(2), "b": attacks(target)[name]}):
        torch.save(value, file, **LAYOUTS[layout])
        with pytest.raises(InputError, match=rf"bad\.pth holds [\w.]+\.{name}; only tensors .* nothing is run$"):
            read_checkpoint(file)
        assert not target.exists()


def test_the_attack_is_a_real_one(tmp_path):
    """The file that is refused above would have been made by an ordinary reader of pickles."""
    torch.save({"b": attacks(tmp_path / "made")["system"]}, tmp_path / "bad.pth")
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert (tmp_path / "made").exists()


def write_zip(path: Path, program: bytes, numbers: bytes = b"", **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", numbers)
        for name, data in more.items():
            archive.writestr(f"archive/{name}", data)
    return path


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


def tensor_program(offset: int, size: tuple, stride: tuple, storage: bytes = STORAGE) -> bytes:
    """A pickle by hand: {"x": _rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())}."""

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def numbers(values: tuple) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size) + numbers(stride)
    return b"\x80\x02}X\x01\x00\x00\x00x" + rebuild + b"\x89ccollections\nOrderedDict\n)RtRs."


def test_the_program_by_hand_is_a_good_one(tmp_path):
    numbers = struct.pack("<4f", 1, 2, 3, 4)
    file = write_zip(tmp_path / "a.pth", tensor_program(1, (3,), (1,)), numbers)
    assert read_checkpoint(file)["x"].tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("program", "what"),
    [
        (tensor_program(2, (3,), (1,)), "reaches beyond storage"),
        (tensor_program(0, (2,), (9,)), "reaches beyond storage"),
        (tensor_program(-1, (2,), (1,)), "offset"),
        (tensor_program(0, (2,), (-1,)), "stride"),
        (tensor_program(0, (2, 2), (1,)), "damaged"),
        (tensor_program(0, (4,), (1,), STORAGE.replace(b"K\x04", b"K\x05")), "16 bytes for 5"),
        (tensor_program(0, (4,), (1,), STORAGE.replace(b"FloatStorage", b"QInt8Storage")), "torch.QInt8Storage"),
        (tensor_program(0, (4,), (1,), STORAGE.replace(b"ctorch\nFloatStorage\n", b"K\x01")), "an unknown kind"),
        (tensor_program(0, (4,), (1,), STORAGE.replace(b"storage", b"module_")), "no storage"),
        (tensor_program(0, (4,), (1,), STORAGE.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009")), "data/9"),
        (b"\x80\x02(S'touch made'\niposix\nsystem\n.", "opcode INST"),
        (b"\x80\x02(cposix\nsystem\nX\x01\x00\x00\x00xo.", "posix.system"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02Pthing\n.", "opcode PERSID"),
        (b"\x80\x02]ccollections\nOrderedDict\nb.", "state of a list"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "call of torch FloatStorage"),
        (b"\x80\x02}.", "no dictionary of tensors"),
        (b"\x80\x02}K\x01K\x02s.", "no dictionary of tensors"),
        (b"\x80\x02K\x07.", "no dictionary of tensors"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02}K\x01", "damaged"),
        (b"\x80\x02}]K\x01s.", "keys"),
        (b"\x80\x02})\x85\x85K\x01s.", "keys"),
        (b"\x80\x04K\x01K\x02\x93.", "damaged"),
        (b"not a pickle", "damaged"),
        (b"", "damaged"),
    ],
)
def test_odd_programs_are_refused_in_one_line(program, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_zip(tmp_path / "a.pth", program, bytes(16))
    with pytest.raises(InputError, match=what) as caught:
        read_checkpoint(file)
    assert str(caught.value).startswith(f"weights: {file} ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


@LAYOUT
def test_files_cut_short_anywhere_are_named(layout, tmp_path):
    file = tmp_path / "a.pth"
    torch.save({"x": torch.arange(100.0), "y": torch.ones(3)}, file, **LAYOUTS[layout])
    whole = file.read_bytes()
    for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.pth (is|holds|cannot)") as caught:
            read_checkpoint(file)
        assert "\n" not in str(caught.value)


def test_other_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth cannot be read: No such file"):
        read_checkpoint(tmp_path / "none.pth")
    (tmp_path / "text").write_text("hello, this is text")
    with pytest.raises(InputError, match="neither a safetensors file nor one of torch.save's"):
        read_checkpoint(tmp_path / "text")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="no file of torch"):
        read_checkpoint(tmp_path / "pickle")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a.png", b"x")
    with pytest.raises(InputError, match=r"without data\.pkl"):
        read_checkpoint(tmp_path / "zip")
    program = tensor_program(0, (4,), (1,))
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(InputError, match="compressed"):
        read_checkpoint(tmp_path / "bomb")
    with pytest.raises(InputError, match="big-endian"):
        read_checkpoint(write_zip(tmp_path / "big", program, bytes(16), byteorder=b"big"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(InputError, match="TorchScript"):
        read_checkpoint(tmp_path / "script.pt")


def test_a_pickle_that_doubles_itself_costs_nothing(tmp_path):
    """Sixty tuples, each of the last one twice: reading, comparing or printing the whole would never end."""
    doubling = b"q\x01" + b"h\x01h\x01\x86q\x01" * 60
    for program in (
        b"\x80\x02)" + doubling + b".",
        b"\x80\x02})" + doubling + b"K\x01s.",
        b"\x80\x02)" + doubling + b"Q.",
    ):
        with pytest.raises(InputError, match="holds"):
            read_checkpoint(write_zip(tmp_path / "a.pth", program))
    inside = tensor_program(0, (4,), (1,)).replace(b"(J\x04\x00\x00\x00t", b")" + doubling)
    with pytest.raises(InputError, match="holds a tensor whose"):
        read_checkpoint(write_zip(tmp_path / "a.pth", inside, bytes(16)))


@pytest.fixture(scope="module")
def programs() -> dict[str, bytes]:
    """A good file of each layout; of a zip the pickle alone, since a zip's own checksums see most damage before."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    found = {}
    for layout, options in LAYOUTS.items():
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer, **options)
        found[layout] = buffer.getvalue()
        if layout.startswith("zip"):
            with zipfile.ZipFile(buffer) as archive:
                found[layout] = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    return found


@settings(max_examples=150)
@given(st.sampled_from(sorted(LAYOUTS)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1))
def test_damage_anywhere_is_one_line_or_harmless(tmp_path_factory, programs, layout, damage):
    data = bytearray(programs[layout])
    for place, value in damage:
        data[min(int(place * len(data)), len(data) - 1)] = value
    file = tmp_path_factory.mktemp("damage") / "a.pth"
    if layout.startswith("zip"):
        write_zip(file, bytes(data), bytes(72), **{f"data/{index}": bytes(8) for index in range(1, 7)})
    else:
        file.write_bytes(data)
    message, found = "", {}
    try:
        found = read_checkpoint(file)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert bool(found) != bool(message)
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
