"""Claims about batch sizes: AdAdaGrad's batch grows, and needs fewer updates."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, Adagrad, Optimizer
from torch.utils.data import RandomSampler

from genflow.evaluate.optimizer_claims import Claim, Finding, Panel
from genflow.optim import AdaGradNorm, BatchSizeController, ResizableBatchSampler, gradient_statistics

__all__ = ["CLAIMS"]

_TESTS = ("norm", "augmented", "coordinate")


def _least_loss(x: Tensor, y: Tensor) -> float:
    weight = nn.Parameter(torch.zeros(x.shape[1]))
    optimizer = LBFGS([weight], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weight, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return closure().item()


def _updates_to(
    goal: float, x: Tensor, y: Tensor, test: str, adaptive: bool, limit: int
) -> tuple[int, list[tuple[int, int]]]:
    """Updates until the loss on all samples is below ``goal``, from batches of 4, and the batch sizes."""
    torch.manual_seed(1)
    weight = nn.Parameter(torch.zeros(x.shape[1]))
    by_coordinate = test == "coordinate"
    optimizer: Optimizer = Adagrad([weight], lr=0.3) if by_coordinate else AdaGradNorm([weight], lr=1.0)
    controller = BatchSizeController(4, 512, test=test)  # type: ignore[arg-type]
    sampler = ResizableBatchSampler(RandomSampler(range(len(x))), controller)
    updates = 0
    while updates < limit:
        for rows in sampler:
            errors = torch.sigmoid(x[rows] @ weight.detach()) - y[rows]
            samples = errors[:, None] * x[rows]
            weight.grad = samples.mean(0)
            optimizer.step()
            updates += 1
            if adaptive and len(rows) > 1:
                # by coordinates half of them decide: the largest ratio asks for everything at once
                controller.update(gradient_statistics([samples], quantile=0.5 if by_coordinate else 1.0))
            if F.binary_cross_entropy_with_logits(x @ weight.detach(), y) < goal or updates == limit:
                return updates, controller.history
    return updates, controller.history


def adadagrad(quick: bool = False) -> Finding:
    """Logistic regression to within 0.005 of the least loss; by coordinates with torch's Adagrad."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256 if quick else 2048, 10, generator=generator)
    y = (x @ torch.randn(10, generator=generator) + torch.randn(len(x), generator=generator) > 0).float()
    goal, limit = _least_loss(x, y) + (0.05 if quick else 0.005), 300 if quick else 3000
    numbers: dict[str, Any] = {}
    lines = {}
    for test in _TESTS:
        fixed, _ = _updates_to(goal, x, y, test, False, limit)
        grown, history = _updates_to(goal, x, y, test, True, limit)
        numbers[test] = {"updates at 4": fixed, "updates": grown, "sizes": history}
        steps = [*(step for step, _ in history), grown]
        lines[test] = (steps, [*(size for _, size in history), history[-1][1]])
    told = "; ".join(
        f"{test} test {found['updates']} updates, up to {found['sizes'][-1][1]} samples, against "
        f"{found['updates at 4']} of 4"
        for test, found in numbers.items()
    )
    return Finding(
        figure=told,
        holds=all(
            found["updates"] < 0.5 * found["updates at 4"] and found["sizes"][-1][1] > 16 for found in numbers.values()
        ),
        numbers=numbers,
        panel=Panel("update", "batch size", lines, "y"),
    )


CLAIMS = {
    "adadagrad": Claim("the batch grows, and fewer updates reach the same loss", "arXiv 2402.11215", adadagrad),
}
