"""What ships with genflow: trained pipelines, the evaluation classifier, reference features, training recipes.

Every asset is a folder with a ``card.md`` (data, licence, recipe, seed, measured figures, the command that
makes it again); a pipeline is a folder that holds ``model_index.json``. Recipes are ``recipes/*.yaml``.
"""

from pathlib import Path

from genflow.errors import check_choice

__all__ = ["ROOT", "models", "names", "path", "recipe_path", "recipes"]

ROOT = Path(__file__).resolve().parent
"""The folder that holds them all."""


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


def recipes() -> list[str]:
    """The names of the training recipes, for ``genflow train NAME``."""
    return sorted(recipe.stem for recipe in (ROOT / "recipes").glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The YAML file of the recipe called ``name``.

    Raises:
        InputError: no recipe has this name; the message lists those there are.
    """
    return ROOT / "recipes" / f"{check_choice('recipe', name, recipes())}.yaml"
