"""Features that were kept: by content, in shards when stopped, by several processes; never other than fresh ones."""

import contextlib
import os
import time
from pathlib import Path

import pytest
import torch
from genflow_tiny_extraction import TinyExtractor, kept_files, same, stop_after, tiny_images, tiny_source
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import genflow
from genflow.errors import InputError
from genflow.evaluate import extraction, feature_cache
from genflow.evaluate.extraction import extract
from genflow.evaluate.feature_set import load_feature_set
from genflow.evaluate.sources import open_source
from genflow.metrics import ClassifierConfig, FeatureExtractor, FeatureStatistics, ImageClassifier

HERE = Path(__file__).parent


def test_the_second_time_the_network_is_not_asked(tmp_path) -> None:
    network, told = TinyExtractor(), []
    first = extract(tiny_source(20), network, cache=tmp_path, begins=told.append)
    assert network.seen == 20
    assert [Path(name).suffix for name in kept_files(tmp_path)] == [".safetensors"]
    again = extract(tiny_source(20), network, cache=tmp_path, begins=told.append)
    assert network.seen == 20
    assert told == [20, 0]
    assert same(first, again)
    assert same(first, extract(tiny_source(20), TinyExtractor(), cache=False))


def test_the_cache_goes_by_content_and_takes_names_and_labels_from_the_source(tmp_path) -> None:
    for folder, prefix in (("a", "x"), ("b", "y")):
        (tmp_path / folder).mkdir()
        for index, image in enumerate(tiny_images(6)):
            Image.fromarray(image[:, :, 0]).save(tmp_path / folder / f"{prefix}{index}.png")
    network = TinyExtractor()
    first = extract(open_source(tmp_path / "a"), network, cache=tmp_path / "c")
    second = extract(open_source(tmp_path / "b"), network, cache=tmp_path / "c")
    assert network.seen == 6
    assert torch.equal(first.features, second.features)
    assert second.names == tuple(f"y{index}.png" for index in range(6))
    assert second.protocol["source"] == str(tmp_path / "b")
    Image.fromarray(tiny_images(1, seed=9)[0, :, :, 0]).save(tmp_path / "b" / "y0.png")
    third = extract(open_source(tmp_path / "b"), network, cache=tmp_path / "c")
    assert network.seen == 12
    assert not torch.equal(first.features[0], third.features[0])
    assert torch.equal(first.features[1:], third.features[1:])


def test_another_network_resize_mode_or_release_has_another_entry(tmp_path, monkeypatch) -> None:
    networks = [TinyExtractor(), TinyExtractor(resize="clean"), TinyExtractor()]
    networks[2].sha256 = "1" * 64
    for network in networks:
        extract(tiny_source(9), network, cache=tmp_path)
    assert [network.seen for network in networks] == [9, 9, 9]
    assert len(kept_files(tmp_path)) == 3
    monkeypatch.setattr(genflow, "__version__", "another")
    other = TinyExtractor()
    extract(tiny_source(9), other, cache=tmp_path)
    assert other.seen == 9
    monkeypatch.undo()
    other = TinyExtractor(batch_size=3)  # speed alone
    extract(tiny_source(9), other, cache=tmp_path)
    assert other.seen == 0


def test_where_features_are_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "own"))
    extract(tiny_source(4), TinyExtractor(), cache=False)
    assert kept_files(tmp_path) == []
    extract(tiny_source(4), TinyExtractor())
    (name,) = kept_files(tmp_path)
    assert name.startswith("own/features/")
    assert feature_cache.cache_size(tmp_path / "own" / "features") == (tmp_path / name).stat().st_size
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="'.*file' is a file; a folder is needed"):
        extract(tiny_source(4), TinyExtractor(), cache=tmp_path / "file")


def test_a_home_that_cannot_be_written_to_costs_the_cache_alone(tmp_path, monkeypatch) -> None:
    (tmp_path / "home").touch()
    monkeypatch.delenv("GENFLOW_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.warns(UserWarning, match="features are not kept"):
        assert extract(tiny_source(4), TinyExtractor()).statistics.count == 4


def test_a_full_disk_costs_the_cache_alone(tmp_path, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "write_tensors", full)
    with pytest.warns(UserWarning, match=r"not kept: .*No space left"):
        found = extract(tiny_source(20), TinyExtractor(), cache=tmp_path)
    assert same(found, extract(tiny_source(20), TinyExtractor(), cache=False))


@pytest.mark.parametrize("damage", ["cut", "bit", "foreign", "other record"])
def test_a_damaged_or_foreign_entry_is_replaced(tmp_path, damage) -> None:
    first = extract(tiny_source(12), TinyExtractor(), cache=tmp_path)
    path = tmp_path / kept_files(tmp_path)[0]
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-7])
    elif damage == "bit":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "foreign":
        path.write_bytes(b"something else")
    else:
        extract(tiny_source(12, seed=4), TinyExtractor(), cache=tmp_path / "other")
        os.replace(tmp_path / "other" / kept_files(tmp_path / "other")[0], path)
    network = TinyExtractor()
    assert same(first, extract(tiny_source(12), network, cache=tmp_path))
    assert network.seen == 12
    extract(tiny_source(12), network, cache=tmp_path)
    assert network.seen == 12


def test_what_was_done_before_ctrl_c_is_not_done_again(tmp_path) -> None:
    whole = extract(tiny_source(40), TinyExtractor(), cache=False)
    with pytest.raises(KeyboardInterrupt):
        extract(tiny_source(40), TinyExtractor(after=stop_after(24)), cache=tmp_path)
    (shard,) = kept_files(tmp_path)
    assert ".partial/" in shard
    with pytest.raises(KeyboardInterrupt):
        extract(tiny_source(40), TinyExtractor(after=stop_after(8)), cache=tmp_path)
    assert len(kept_files(tmp_path)) == 2
    network = TinyExtractor(batch_size=5)
    assert same(whole, extract(tiny_source(40), network, cache=tmp_path))
    assert network.seen == 8
    (name,) = kept_files(tmp_path)
    assert "partial" not in name
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_shards_are_written_on_the_way_and_by_the_clock(tmp_path, monkeypatch) -> None:
    def shards(seen: int) -> None:
        held.append(len(kept_files(tmp_path)))

    held: list[int] = []
    monkeypatch.setattr(extraction, "_SHARD_ROWS", 10)
    extract(tiny_source(40), TinyExtractor(batch_size=4, after=shards), cache=tmp_path)
    assert held == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    held.clear()
    monkeypatch.setattr(extraction, "_SHARD_ROWS", 10**9)
    monkeypatch.setattr(extraction, "_SHARD_SECONDS", 0.0)
    extract(tiny_source(12, seed=1), TinyExtractor(batch_size=4, after=shards), cache=tmp_path)
    assert held == [1, 2, 3]  # one is the entry of the first run


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_shard_is_made_again(tmp_path, monkeypatch, damage) -> None:
    monkeypatch.setattr(extraction, "_SHARD_ROWS", 8)
    with pytest.raises(KeyboardInterrupt):
        extract(tiny_source(40), TinyExtractor(after=stop_after(24)), cache=tmp_path)
    names = kept_files(tmp_path)
    assert len(names) == 3
    path = tmp_path / names[1]
    path.write_bytes(path.read_bytes()[:-3] if damage == "cut" else b"")
    network = TinyExtractor()
    found = extract(tiny_source(40), network, cache=tmp_path)
    assert network.seen == 24
    assert same(found, extract(tiny_source(40), TinyExtractor(), cache=False))
    assert len(kept_files(tmp_path)) == 1


def test_a_real_networks_features_do_not_depend_on_where_it_stopped(tmp_path) -> None:
    class Stopped(FeatureExtractor):
        batches_left = 1_000

        def __call__(self, images, progress=None):
            if self.batches_left == 0:
                raise KeyboardInterrupt
            self.batches_left -= 1
            return super().__call__(images, progress)

    torch.manual_seed(0)
    network = ImageClassifier(ClassifierConfig(sample_size=6, num_classes=3, stages=((8, 1), (16, 1))))
    extractor = Stopped(network, "net", batch_size=8)
    whole = extract(tiny_source(45), extractor, cache=False)
    for batches in (1, 2):
        extractor.batches_left = batches
        with pytest.raises(KeyboardInterrupt):
            extract(tiny_source(45), extractor, batch_size=7, cache=tmp_path)
    extractor.batches_left = 5  # of 5 images: 20 are left but for the 21 that are kept
    assert same(whole, extract(tiny_source(45), extractor, batch_size=5, cache=tmp_path))
    assert extractor.batches_left == 0


def test_the_oldest_entries_leave_when_there_is_too_much(tmp_path, monkeypatch) -> None:
    keys = []
    for seed in range(3):
        extract(tiny_source(10, seed), TinyExtractor(), cache=tmp_path)
        (keys_now,) = [set(kept_files(tmp_path)) - set(keys)]
        keys += sorted(keys_now)
        os.utime(tmp_path / keys[-1], (time.time() - 1000 + seed,) * 2)
    size = (tmp_path / keys[0]).stat().st_size
    extract(tiny_source(10, 0), TinyExtractor(), cache=tmp_path)  # used just now: no longer the oldest
    (tmp_path / "notes.safetensors").write_bytes(b"x" * 5 * size)  # not an entry
    monkeypatch.setattr(feature_cache, "LIMIT", int(3.5 * size))
    with pytest.raises(KeyboardInterrupt):
        extract(tiny_source(10, 5), TinyExtractor(batch_size=2, after=stop_after(4)), cache=tmp_path)
    extract(tiny_source(10, 4), TinyExtractor(), cache=tmp_path)
    left = kept_files(tmp_path)
    assert keys[0] in left
    assert keys[1] not in left
    assert "notes.safetensors" in left
    monkeypatch.setattr(feature_cache, "LIMIT", 0)
    extract(tiny_source(10, 6), TinyExtractor(), cache=tmp_path)
    assert len(kept_files(tmp_path)) == 2  # the last entry alone, and what is not one


@settings(deadline=None, max_examples=15)
@given(
    count=st.integers(2, 40),
    batch=st.integers(1, 9),
    own=st.integers(1, 9),
    stops=st.lists(st.integers(0, 40), max_size=3),
    rows=st.integers(1, 20),
    workers=st.sampled_from([0, 1, 3]),
    kept=st.booleans(),
)
def test_batches_stops_and_shards_change_nothing(
    tmp_path_factory, count, batch, own, stops, rows, workers, kept
) -> None:
    folder = tmp_path_factory.mktemp("c") if kept else False
    options = {"cache": folder, "batch_size": batch, "workers": workers, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "_SHARD_ROWS", rows)
        for stop in stops:
            network = TinyExtractor(batch_size=own, after=stop_after(stop))
            with contextlib.suppress(KeyboardInterrupt):
                extract(tiny_source(count), network, **options)
        found = extract(tiny_source(count), TinyExtractor(batch_size=own), **options)
    plain = extract(tiny_source(count), TinyExtractor(), cache=False)
    assert same(found, plain)
    assert plain.statistics.mean.equal(FeatureStatistics.from_features(plain.features).mean)


SCRIPT = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from tiny_extraction import TinyExtractor, kept_files, tiny_images, tiny_source
from genflow.errors import InputError
from genflow.evaluate.extraction import extract
from genflow.evaluate.feature_set import save_feature_set

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
network = TinyExtractor(batch_size=4)
for name, count in (("first", 21), ("few", 2)):
    save_feature_set(folder / f"{name}-{rank}.safetensors", extract(tiny_source(count), network, cache=folder / "c"))
seen = [network.seen]
save_feature_set(folder / f"again-{rank}.safetensors", extract(tiny_source(21), network, cache=folder / "c"))
seen.append(network.seen)
broken = TinyExtractor(batch_size=4, broken=2 if rank else -1)
messages = []


class Vanished(type(tiny_source(2))):
    def content_hash(self, indices=None):  # the first process's alone to ask for
        raise InputError("the disk is gone")


for source, extractor in ((tiny_source(30, seed=1), broken), (Vanished(tiny_images(9), "gone"), network)):
    try:
        extract(source, extractor, cache=folder / "c")
    except InputError as error:
        messages.append(str(error))
dist.barrier()
save_feature_set(folder / f"rest-{rank}.safetensors", extract(tiny_source(30, seed=1), network, cache=folder / "c"))
seen.append(network.seen)
dist.barrier()
print(json.dumps({"seen": seen, "messages": messages, "files": kept_files(folder / "c")}))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one(two_processes, tmp_path) -> None:
    first, second = two_processes(SCRIPT, str(HERE))
    # 21 and 2 images in two shares, none of them the second time; of 30 the first process's 15 were kept
    assert first["seen"][0] + second["seen"][0] == 23
    assert first["seen"][1] == first["seen"][0]
    assert second["seen"][1] == second["seen"][0]
    assert first["messages"] == second["messages"]
    assert first["messages"] == ["features: those of tiny[17] by tiny are NaN or infinite", "the disk is gone"]
    assert first["seen"][2] - first["seen"][1] + second["seen"][2] - second["seen"][1] == 15
    assert len(first["files"]) == 3
    assert not [name for name in first["files"] if "partial" in name]
    for name, count, seed in (("first", 21, 0), ("again", 21, 0), ("few", 2, 0), ("rest", 30, 1)):
        alone = extract(tiny_source(count, seed), TinyExtractor(), cache=False)
        for rank in range(2):
            assert same(alone, load_feature_set(tmp_path / f"{name}-{rank}.safetensors")), (name, rank)
