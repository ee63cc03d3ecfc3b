"""Training dynamics: curvature of the loss, stability of the step, learning rates over batch sizes, GradSign.

This package needs torch alone (and scipy for one fit); ``genflow train --dynamics`` is built on it.
"""

from genflow.lazy import lazy_exports

_HOMES = {
    "Eigenvalue": "krylov",
    "Estimate": "hutchinson",
    "Hessian": "hessian",
    "Operator": "operators",
    "Spectrum": "spectrum",
    "Tridiagonal": "krylov",
    "flatten": "operators",
    "lanczos": "krylov",
    "largest_eigenvalue": "krylov",
    "scaled": "operators",
    "slq": "spectrum",
    "trace": "hutchinson",
    "unflatten": "operators",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
