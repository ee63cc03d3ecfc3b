"""Recipes: the shipped ones are valid; overrides; every fault names its key."""

from pathlib import Path

import pytest
import yaml

from genflow import assets
from genflow.errors import InputError
from genflow.training.recipe import Recipe, load_recipe


def minimal(**more):
    return {"data": {"source": "x"}, "budget": {"images": 10}, **more}


def write(folder: Path, values) -> Path:
    path = folder / "mine.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", assets.recipes())
def test_shipped_recipes(name):
    recipe = load_recipe(name)
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


def test_overrides(tmp_path):
    recipe = load_recipe(
        write(tmp_path, minimal()),
        ["optimizer.lr=3e-4", "data.flip=true", "network.options.patch_size=4", "clip_norm=null", "seed=7"],
    )
    assert recipe.optimizer.lr == 3e-4
    assert recipe.data.flip is True
    assert recipe.network.options == {"patch_size": 4}
    assert recipe.clip_norm is None
    assert recipe.seed == 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimiser.lr=1"], r"unknown key 'optimiser' \(did you mean 'optimizer'\?\)"),
        (["optimizer.learning_rate=1"], "unknown key 'optimizer.learning_rate'.*known here: name, lr"),
        (["optimizer.lr=-1"], "optimizer.lr: got -1"),
        (["optimizer.lr=fast"], "optimizer.lr: got 'fast'"),
        (["optimizer.name=adamx"], "optimizer.name: got 'adamx'"),
        (["objective.label_dropout=1"], "objective.label_dropout"),
        (["batch_size=0"], "batch_size: got 0"),
        (["batch_size=10", "accumulate=3"], "accumulate: 3 does not divide batch_size 10"),
        (["budget.images=null"], "budget: got neither"),
        (["path.type=edm"], "objective.type: 'velocity' on the 'edm' path"),
        (["path.type=edm", "objective.type=edm"], "objective.times: 'logit-normal' on the 'edm' path"),
        (["path.type=pfgm++"], "objective.type: 'velocity' on the 'pfgm\\+\\+' path"),
        (["path.type=edm", "objective.type=pfgm++"], "objective.type: 'pfgm\\+\\+' on the 'edm' path"),
        (["path.type=pfgm++", "objective.type=pfgm++"], "objective.times: 'logit-normal' on the 'pfgm\\+\\+' path"),
        (["optimizer.lr"], "--set: got 'optimizer.lr'; allowed: KEY=VALUE"),
        (["seed.x=1", "seed=0"], "--set seed.x: 'seed' is a value"),
        (["seed=[1"], "--set seed"),
    ],
)
def test_faults(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        load_recipe(write(tmp_path, minimal(seed=0)), overrides)


def test_faults_of_the_file(tmp_path):
    with pytest.raises(InputError, match="'budget' is missing"):
        load_recipe(write(tmp_path, {"data": {"source": "x"}}))
    with pytest.raises(InputError, match="is not YAML"):
        load_recipe(write(tmp_path, "a: [1"))
    with pytest.raises(InputError, match="holds no keys"):
        load_recipe(write(tmp_path, "- 1"))
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="recipe: 'fashion-mnits' is not known.*did you mean 'fashion-mnist'"):
        load_recipe("fashion-mnits")


def test_a_folder_of_the_same_name_hides_no_shipped_recipe(tmp_path, monkeypatch):
    (tmp_path / "fashion-mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("fashion-mnist").data.source == "fashion-mnist"
