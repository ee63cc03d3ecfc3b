"""What ships with genflow: trained pipelines, the evaluation classifier, reference features, training recipes.

Every asset is a folder with a ``card.md`` (data, licence, recipe, seed, measured figures, the command that
makes it again); a pipeline is a folder that holds ``model_index.json``. Recipes are ``recipes/*.yaml``, those of
distillation ``recipes/distill/*.yaml``.
"""

from pathlib import Path

from genflow.errors import check_choice

__all__ = ["ROOT", "models", "names", "path", "recipe_path", "recipes"]

ROOT = Path(__file__).resolve().parent
"""The folder that holds them all."""

_RECIPES = {"train": ROOT / "recipes", "distill": ROOT / "recipes" / "distill"}


def names() -> list[str]:
    """The names of all asset folders, sorted."""
    return sorted(card.parent.name for card in ROOT.glob("[!.]*/card.md"))


def models() -> list[str]:
    """The names of the assets that are pipelines, for ``ImagePipeline.from_pretrained(name)``."""
    return sorted(index.parent.name for index in ROOT.glob("[!.]*/model_index.json"))


def path(name: str) -> Path:
    """The folder of the asset called ``name``.

    Raises:
        InputError: no asset has this name; the message lists those there are.
    """
    return ROOT / check_choice("asset", name, sorted({*names(), *models()}))


def recipes(kind: str = "train") -> list[str]:
    """The names of the recipes for ``genflow train NAME``, or of kind ``distill``, for ``genflow distill``."""
    check_choice("kind", kind, _RECIPES)
    return sorted(recipe.stem for recipe in _RECIPES[kind].glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The YAML file of the recipe called ``name``, of whatever kind.

    Raises:
        InputError: no recipe has this name; the message lists those there are.
    """
    found = {recipe: folder for kind, folder in _RECIPES.items() for recipe in recipes(kind)}
    return found[check_choice("recipe", name, found)] / f"{name}.yaml"
