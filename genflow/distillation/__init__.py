"""Distillation: from a model of many steps to one of few."""

from genflow.lazy import lazy_exports

_HOMES = {
    "DIVERGENCES": "divergences",
    "Divergence": "divergences",
    "UserDivergence": "divergences",
    "create_divergence": "divergences",
    "DensityRatio": "density_ratio",
    "Discriminator": "discriminator",
    "FDistillRecipe": "f_distill_recipe",
    "FDistiller": "f_distill_run",
    "FeatureTap": "features",
    "FeatureTeacher": "features",
    "approximate_r1": "f_distill_losses",
    "discriminator_loss": "f_distill_losses",
    "exact_weight": "f_distill_losses",
    "fake_score_loss": "f_distill_losses",
    "fake_score_objective": "f_distill_losses",
    "generator_loss": "f_distill_losses",
    "perturb_for_r1": "f_distill_losses",
    "student_loss": "f_distill_losses",
    "Pairs": "pairs",
    "load_pairs": "pairs",
    "make_pairs": "pairs",
    "ReflowRecipe": "reflow_recipe",
    "ReflowTask": "reflow_task",
    # a module of a function's own name would hide it once imported
    "f_distill": "f_distill_run",
    "reflow": "reflow_run",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
