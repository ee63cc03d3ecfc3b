"""A pipeline as a source: the images that ``genflow generate`` makes, and a record of how."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.cli.engine import generate
from genflow.cli.plan import Job, Pending
from genflow.errors import InputError
from genflow.evaluate.sources import PipelineSource, decode, open_source
from genflow.models import LeanUNet2DModel
from genflow.pipelines import ImagePipeline
from genflow.pipelines.request import Request
from genflow.schedulers import create_scheduler


def prepare(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def save_model(folder, classes: int | None = 3, names=("ant", "bee", "cat")) -> str:
    torch.manual_seed(0)
    network = LeanUNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        attention_levels=(),
        num_classes=classes,
    )
    for parameter in network.parameters():  # at its start the network gives zeros
        torch.nn.init.normal_(parameter, std=0.1)
    options = {"class_names": list(names)} if names and classes else {}
    ImagePipeline(network, create_scheduler("euler"), default_steps=3, **options).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


class Silent:
    def planned(self, state: Pending, rows: int) -> None: ...
    def progress(self, images: float) -> None: ...
    def image(self, job: Job, made: bool) -> None: ...


def images_of(source, indices=None, **options) -> torch.Tensor:
    indices = range(len(source)) if indices is None else indices
    return torch.cat([batch.images for batch in decode(source, indices, prepare, **options)])


def test_the_images_are_those_of_generate_with_their_classes(model, tmp_path) -> None:
    generate(Request(model, scheduler="heun", steps=2), range(5, 12), tmp_path / "out", Silent(), device="cpu")
    files = open_source(tmp_path / "out")
    made = PipelineSource(model, 7, seed=5, scheduler="heun", steps=2)
    assert torch.equal(images_of(files), images_of(made))
    assert made.labels.tolist() == files.labels.tolist() == [2, 0, 1, 2, 0, 1, 2]
    assert made.class_names == files.class_names == ("ant", "bee", "cat")
    assert made.names[0] == "seed 5"


def test_an_image_depends_on_its_seed_alone(model) -> None:
    whole = images_of(PipelineSource(model, 9))
    parts = images_of(PipelineSource(model, 9, batch_size=2), batch_size=4)
    chosen = images_of(PipelineSource(model, 6, seed=3), [4, 0])
    assert (whole.int() - parts.int()).abs().max() <= 1  # sums in another order
    assert (whole[[7, 3]].int() - chosen.int()).abs().max() <= 1
    assert (whole[7].int() - prepare(PipelineSource(model, 9).read(7)).int()).abs().max() <= 1
    assert whole.float().std() > 1
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 9


def test_labels_among_given_names(model) -> None:
    source = PipelineSource(model, 4, class_names=("cat", "ant"))
    assert (source.labels.tolist(), source.class_names) == ([1, -1, 0, 1], ("cat", "ant"))


def test_the_hash_says_what_decides_the_images(model, tmp_path) -> None:
    source = PipelineSource(model, 6)
    assert source.content_hash() == PipelineSource(model, 6, batch_size=1).content_hash()
    assert source.content_hash([0, 1]) == PipelineSource(model, 2).content_hash() != source.content_hash([1, 0])
    others = [
        PipelineSource(model, 6, seed=1),
        PipelineSource(model, 5),
        PipelineSource(model, 6, steps=4),
        PipelineSource(model, 6, guidance_scale=2.0),
        PipelineSource(model, 6, scheduler="heun"),
        PipelineSource(save_model(tmp_path, classes=None), 6),
    ]
    assert len({source.content_hash(), *[other.content_hash() for other in others]}) == 7


def test_the_protocol_says_how_it_samples(model) -> None:
    said = PipelineSource(model, 6, seed=2, guidance="apg", guidance_scale=3, guidance_options={"eta": 0.5}).describe()
    assert said == json.loads(json.dumps(said))
    sampling = said["sampling"]
    assert sampling["model"] == model
    assert len(sampling["model_hash"]) == 16
    assert (sampling["scheduler"], sampling["steps"], sampling["seeds"]) == ("euler", 3, "2-7")
    assert (sampling["guidance"], sampling["guidance_scale"]) == ("apg", 3)
    assert sampling["guidance_options"]["eta"] == 0.5
    assert sampling["dtype"] == "float32"


def test_nothing_is_written_and_figures_come_with_the_images(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    batches = list(decode(PipelineSource(model, 5), range(5), prepare, batch_size=2))
    assert [batch.positions for batch in batches] == [[0, 1], [2, 3], [4]]
    assert batches[0].statistics["contrast"].shape == (2,)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 0}, "num: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 2**63 - 1}, "seed: got"),
        ({"steps": 0}, "steps: got 0"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"prompts": ["a boat"]}, "takes no text"),
        ({"scheduler": "oiler"}, "oiler"),
        ({"guidance": "cgf"}, "cgf"),
        ({"dtype": "int8"}, "int8"),
        ({"model": "nothing-here"}, "model: nothing-here is not there"),
    ],
)
def test_what_cannot_be_is_said_at_once(model, options, message) -> None:
    with pytest.raises(InputError, match=message):
        PipelineSource(**{"model": model, "num": 2, **options})


def test_a_size_that_the_features_do_not_take_names_the_seed(model) -> None:
    def fixed(array: np.ndarray) -> torch.Tensor:
        raise InputError("images: got 8x8; the network takes 9x9")

    with pytest.raises(InputError, match=r", seed 0: images: got 8x8"):
        list(decode(PipelineSource(model, 2), range(2), fixed))


def test_a_picture_is_of_one_or_three_channels(model) -> None:
    assert PipelineSource(model, 1).read(0).shape == (8, 8, 1)
    assert Image.fromarray(PipelineSource(model, 1).read(0)[:, :, 0]).size == (8, 8)
