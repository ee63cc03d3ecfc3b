"""Optimizers of published papers as ``torch.optim`` classes; this package needs torch alone."""

from genflow.lazy import lazy_exports

_HOMES = {
    "AdaBelief": "adabelief",
    "AdaGradNorm": "adagrad_norm",
    "AdamP": "adamp",
    "Adan": "adan",
    "BORep": "bo_rep",
    "BatchSizeController": "batch_size",
    "DiffGrad": "diffgrad",
    "FRUGAL": "frugal",
    "Flags": "options",
    "GradientStatistics": "gradient_moments",
    "KAPPAS": "kappas",
    "Kappa": "kappas",
    "Lion": "lion",
    "LionK": "lion_k",
    "MKOR": "mkor",
    "MKORH": "mkor_h",
    "MicroBatchGradients": "gradient_moments",
    "OPTIMIZERS": "registry",
    "OptimizerBase": "base",
    "ResizableBatchSampler": "batch_size",
    "SGDP": "sgdp",
    "StableSPAM": "stable_spam",
    "create_kappa": "kappas",
    "create_optimizer": "factory",
    "gradient_statistics": "gradient_moments",
    "optimizer_class": "registry",
    "parameter_groups": "groups",
    "per_sample_gradients": "gradient_moments",
    "required_batch_size": "batch_size",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
