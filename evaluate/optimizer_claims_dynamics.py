"""Claims about training dynamics; the experiments on networks are those of :mod:`genflow.evaluate.dynamics`."""

import math

import torch

from genflow.evaluate import dynamics
from genflow.evaluate.optimizer_claims import Claim, Finding, Panel
from genflow.optim.dynamics import Hessian

__all__ = ["CLAIMS"]


def stability(quick: bool = False) -> Finding:
    """Full-batch training of a small regression by SGD at two step sizes, and by Adam."""
    found = dynamics.edge(quick)
    told = ", ".join(f"{name}: {ratio:.3f}" for name, ratio in found["mean ratio at the end"].items())
    lines = {name: (curve["step"], curve["ratio"]) for name, curve in found["curves"].items()}
    return Finding(
        figure=f"sharpness over what the step bears (2/lr for SGD), mean at the end: {told}",
        holds=found["holds"],
        numbers={key: value for key, value in found.items() if key != "holds"},
        panel=Panel("step", "sharpness over the stable one", lines, level=1.0),
    )


def _least_squares(lr_times_half: float, bound: str, single: bool, steps: int) -> float:
    """The loss that SGD (``single``: one sample a step) ends with; lr is a multiple of 2 over ``bound``."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, 20, generator=generator, dtype=torch.float64)
    target = a @ torch.randn(20, generator=generator, dtype=torch.float64)
    weights = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    values = torch.linalg.eigvalsh(Hessian(lambda: (a @ weights - target).square().mean(), [weights]).dense())
    lr = 2 * lr_times_half / (values[-1] if bound == "sharpness" else values.sum()).item()
    weights = weights.detach()
    for _ in range(steps):
        rows = torch.randint(0, 8, (1,), generator=generator) if single else slice(None)
        residual = a[rows] @ weights - target[rows]
        weights = weights - lr * 2 * a[rows].T @ residual / len(residual)
        if weights.norm() > 1e6:
            return math.inf
    return (a @ weights - target).square().mean().item()


def sgd_minimum(quick: bool = False) -> Finding:
    """Interpolating least squares, step sizes below and above 2 / sharpness and 2 / trace of the Hessian."""
    steps = 200 if quick else 6000
    ends = {
        f"{'SGD' if single else 'full batch'}, lr {part:g} of 2/{bound}": _least_squares(part, bound, single, steps)
        for bound, single, parts in (("sharpness", False, (0.9, 1.1)), ("trace", True, (0.3, 1.5)))
        for part in parts
    }
    below, above = list(ends.values())[::2], list(ends.values())[1::2]
    told = ", ".join(f"{name}: {'diverges' if math.isinf(end) else f'{end:.1g}'}" for name, end in ends.items())
    return Finding(
        figure=f"loss at the end: {told}",
        holds=max(below) < 1e-10 and min(above) > 1e3,
        numbers={name: end if math.isfinite(end) else None for name, end in ends.items()},
    )


def lanczos(quick: bool = False) -> Finding:
    """A classifier of 244 parameters: quadrature by 30 probes of 30 products against torch.linalg.eigvalsh."""
    found = dynamics.spectrum()
    (largest, exact), (trace, error, exact_trace) = found["largest eigenvalue"], found["trace"]
    grid, truth, estimate = found["density"]
    return Finding(
        figure=f"{found['parameters']} parameters: largest eigenvalue {largest:.6f} (exact {exact:.6f}), trace "
        f"{trace:.3f} ± {error:.3f} ({exact_trace:.3f}), L1 distance of the densities "
        f"{found['L1 distance of the densities']:.3f} (at most 2)",
        holds=found["holds"],
        numbers={key: value for key, value in found.items() if key not in ("holds", "density")},
        panel=Panel("eigenvalue", "density", {"exact": (grid, truth), "quadrature": (grid, estimate)}),
    )


def square_root_rule(quick: bool = False) -> Finding:
    """A step size that does well at batches of 8, carried to batches of 128 by both rules; 16,000 samples each."""
    found = dynamics.rules(quick)
    loss = {
        name: {rule: found[name][f"batch 128, {rule}"]["loss"] for rule in ("sqrt", "linear")}
        for name in ("Adam", "SGD")
    }
    told = "; ".join(f"{name} {of['sqrt']:.3f} by the root, {of['linear']:.3f} linear" for name, of in loss.items())
    return Finding(
        figure=f"loss: {told}",
        holds=loss["Adam"]["sqrt"] < loss["Adam"]["linear"],
        numbers={name: found[name] for name in ("Adam", "SGD")},
    )


def gradsign(quick: bool = False) -> Finding:
    """Spearman's correlation over 24 networks of many sizes, and over 24 of one size."""
    found = dynamics.gradsign(quick)
    many, one = found["many sizes"], found["one size"]
    return Finding(
        figure=f"rank correlation with the trained loss over {many['networks']} networks of many sizes "
        f"{many['rank correlation']:.2f} (of the parameter count: {many['of the parameter count']:.2f}); over "
        f"{one['networks']} of one size {one['rank correlation']:.2f}",
        holds=many["networks"] >= 20 and many["rank correlation"] > 0,
        numbers={"many sizes": many, "one size": one},
    )


CLAIMS = {
    "stability": Claim(
        "training settles where the sharpness is 2/lr (38/lr with Adam, preconditioned)",
        "arXiv 2103.00065, 2207.14484",
        stability,
    ),
    "sgd-minimum": Claim(
        "a minimum is stable for full batches only up to a sharpness of 2/lr, for SGD only up to a trace of 2/lr",
        "Wu and Su, ICML 2023",
        sgd_minimum,
    ),
    "lanczos": Claim("quadrature gives the exact spectrum", "arXiv 2006.09092", lanczos),
    "square-root-rule": Claim(
        "with Adam the step size goes with the root of the batch size, not linearly",
        "arXiv 2006.09092",
        square_root_rule,
    ),
    "gradsign": Claim("scores before training rank networks as their trained loss does", "arXiv 2110.08616", gradsign),
}
