"""Optimizers of published papers as ``torch.optim`` classes; this package needs torch alone."""

from genflow.lazy import lazy_exports

_HOMES = {
    "AdaBelief": "adabelief",
    "AdaGradNorm": "adagrad_norm",
    "AdamP": "adamp",
    "Adan": "adan",
    "DiffGrad": "diffgrad",
    "FRUGAL": "frugal",
    "Flags": "options",
    "KAPPAS": "kappas",
    "Kappa": "kappas",
    "Lion": "lion",
    "LionK": "lion_k",
    "MKOR": "mkor",
    "MKORH": "mkor_h",
    "OPTIMIZERS": "registry",
    "OptimizerBase": "base",
    "SGDP": "sgdp",
    "StableSPAM": "stable_spam",
    "create_kappa": "kappas",
    "create_optimizer": "factory",
    "optimizer_class": "registry",
    "parameter_groups": "groups",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
