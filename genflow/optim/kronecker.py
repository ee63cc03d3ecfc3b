"""MKOR's factors: inverses kept by rank-one updates. Mozaffari et al., arXiv 2306.01685, section 3."""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Form", "precondition", "stabilize_", "update_inverse_"]

Form = Literal["exact", "paper"]


def update_inverse_(inverse: Tensor, vector: Tensor, decay: float, form: Form = "exact") -> None:
    r"""Make an inverse, in place, that after :math:`L \leftarrow \gamma L + (1 - \gamma) v v^T`, in :math:`O(d^2)`.

    It stays symmetric to the bit: an antisymmetric part would be amplified by every update. Nothing happens where
    ``vector`` is not finite.

    Args:
        inverse: :math:`L^{-1}`, symmetric positive definite, of shape (d, d).
        vector: :math:`v`, of shape (d,).
        decay: :math:`\gamma`, in (0, 1).
        form: "exact", Sherman and Morrison: with :math:`u = L^{-1} v`,
            :math:`(L^{-1} - (1-\gamma) u u^T / (\gamma + (1-\gamma) v^T u)) / \gamma`; or "paper", equations 5 and 6:
            :math:`\gamma L^{-1} + (1-\gamma) u u^T / (\gamma^2 (1 + \gamma (1-\gamma) v^T u))`, which is positive
            definite by its looks but grows along :math:`v`, where the inverse shrinks.
    """
    u = torch.mv(inverse, vector)
    along = torch.dot(vector, u)
    if form == "exact":
        keep, sign = 1 / decay, -1
        weight = (1 - decay) / (decay * (decay + (1 - decay) * along))
    else:
        keep, sign = decay, 1
        weight = (1 - decay) / (decay**2 * (1 + decay * (1 - decay) * along))
    finite = torch.isfinite(along)
    u = torch.where(finite, u * weight.sqrt(), 0)
    inverse.mul_(torch.where(finite, torch.full_like(along, keep), 1.0)).addr_(u, u, alpha=sign)


def stabilize_(inverse: Tensor, threshold: float, blend: float) -> None:
    r"""The norm-based stabilizer, in place: :math:`(1 - \beta) L^{-1} + \beta I` where an entry exceeds ``threshold``.

    :math:`\beta` is ``blend``. No value is read back.
    """
    least, most = inverse.aminmax()  # on a CPU many times faster than the infinity norm
    largest = torch.maximum(-least, most)
    part = torch.where(largest > threshold, torch.full_like(largest, blend), 0.0)  # of two numbers torch makes float32
    inverse.mul_(1 - part).diagonal().add_(part)


def precondition(grad: Tensor, output_inverse: Tensor, input_inverse: Tensor) -> Tensor:
    """Both inverses around a gradient of shape (outputs, inputs), rescaled to the gradient's Frobenius norm."""
    result = output_inverse @ grad @ input_inverse
    norm, wanted = torch.linalg.vector_norm(result), torch.linalg.vector_norm(grad)
    return result * torch.where(norm > 0, wanted / torch.where(norm > 0, norm, 1), 1)
