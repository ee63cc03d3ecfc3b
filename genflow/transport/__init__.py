"""Optimal transport between two sets of weighted points; this package needs torch and scipy alone."""

from genflow.lazy import lazy_exports

_HOMES = {
    "COUPLINGS": "couplings",
    "Coupling": "couplings",
    "CouplingSampler": "plan_sampler",
    "EntropicPlan": "problem",
    "FallbackWarning": "problem",
    "UnconvergedWarning": "problem",
    "create_coupling": "couplings",
    "exact_assignment": "exact",
    "pairwise_cost": "exact",
    "sinkhorn": "sweeps",
    "sinkhorn_newton": "newton",
    "wasserstein": "exact",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
