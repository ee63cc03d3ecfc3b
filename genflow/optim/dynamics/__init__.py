"""Training dynamics: curvature of the loss, stability of the step, learning rates over batch sizes, GradSign.

This package needs torch alone (and scipy for one fit); ``genflow train --dynamics`` is built on it.
"""

from genflow.lazy import lazy_exports

_HOMES = {
    "BatchSharpness": "batch_scaling",
    "Eigenvalue": "krylov",
    "Estimate": "hutchinson",
    "Hessian": "hessian",
    "LinearStep": "linear_step",
    "Operator": "operators",
    "STEP_RULES": "linear_step",
    "Spectrum": "spectrum",
    "StabilityMonitor": "stability",
    "StabilityRecord": "stability",
    "Tridiagonal": "krylov",
    "as_operator": "operators",
    "batch_sharpness": "stability",
    "flatten": "operators",
    "gradient_chunks": "chunks",
    "gradsign": "sign_agreement",
    "lanczos": "krylov",
    "largest_eigenvalue": "krylov",
    "linear_steps": "linear_step",
    "measure_batches": "batch_scaling",
    "rank_networks": "sign_agreement",
    "scale_lr": "batch_scaling",
    "scaled": "operators",
    "slq": "spectrum",
    "stability_ratio": "stability",
    "stability_threshold": "stability",
    "suggest_lr_momentum": "batch_scaling",
    "trace": "hutchinson",
    "unflatten": "operators",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
