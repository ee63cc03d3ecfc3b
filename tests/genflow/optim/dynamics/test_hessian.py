"""Products with the Hessian against the whole matrix, over micro-batches, dropout, attention and frozen weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genflow.errors import InputError, NonFiniteError
from genflow.optim.dynamics import Hessian, flatten, scaled, unflatten


def test_products_are_the_whole_matrix(problem, exact):
    network, loss, batch = problem
    hessian = Hessian(loss, network.parameters(), [batch])
    torch.testing.assert_close(hessian.dense(), exact, rtol=1e-9, atol=1e-12)
    assert hessian.products == hessian.size == len(exact)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("keep_graph", [False, True])
def test_uneven_micro_batches_make_the_batch(problem, exact, keep_graph):
    network, loss, (x, y) = problem
    cuts = [(0, 5), (5, 6), (6, 32)]
    batches = [(x[a:b], y[a:b]) for a, b in cuts]
    hessian = Hessian(loss, network.parameters(), batches, weights=[b - a for a, b in cuts], keep_graph=keep_graph)
    torch.testing.assert_close(hessian.dense(), exact, rtol=1e-9, atol=1e-12)
    value, gradient = hessian.gradient()
    whole = loss((x, y))
    assert value == pytest.approx(whole.item(), rel=1e-12)
    expected = flatten(torch.autograd.grad(whole, list(network.parameters())))
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(hessian.batch(1).dense(), Hessian(loss, network.parameters(), batches[1:2]).dense())


def test_flat_vectors_and_back():
    tensors = [torch.randn(2, 3).T, torch.randn(()), torch.randn(1, 2, 2, 2).to(memory_format=torch.channels_last)]
    for before, after in zip(tensors, unflatten(flatten(tensors), tensors), strict=True):
        assert torch.equal(before, after)


def test_scaled_operator(problem, exact):
    network, loss, batch = problem
    hessian = Hessian(loss, network.parameters(), [batch])
    scale = torch.linspace(0, 2, hessian.size, dtype=torch.float64)
    diagonal = torch.linspace(1, 0, hessian.size, dtype=torch.float64)
    operator = scaled(hessian, scale, diagonal)
    dense = torch.stack([operator(row) for row in torch.eye(hessian.size, dtype=torch.float64)])
    expected = torch.linalg.eigvals(scale[:, None] * (exact + diagonal.diag())).real.sort().values
    torch.testing.assert_close(torch.linalg.eigvalsh(dense), expected, rtol=1e-7, atol=1e-7)


def test_linear_unused_and_quadratic_parameters():
    a, b, unused = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    hessian = Hessian(lambda: a.sum() + 3 * b.square().sum(), [a, b, unused])
    assert torch.equal(hessian.dense(), torch.tensor([0.0, 0, 6, 6, 0, 0], dtype=torch.float64).diag())
    assert torch.equal(Hessian(lambda: a.sum(), [a, unused]).dense(), torch.zeros(4, 4, dtype=torch.float64))


def test_dropout_is_one_function_and_the_generator_stays():
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
    x = torch.randn(16, 4)
    for keep in (False, True):
        hessian = Hessian(lambda b: network(b).square().mean(), network.parameters(), [x[:8], x[8:]], keep_graph=keep)
        before = torch.get_rng_state()
        vector = torch.ones(hessian.size)
        assert torch.equal(hessian(vector), hessian(vector))
        assert torch.equal(before, torch.get_rng_state())


def test_attention_has_a_second_derivative():
    q = torch.randn(2, 1, 5, 8, requires_grad=True)
    matrix = Hessian(lambda: F.scaled_dot_product_attention(q, q, q).square().mean(), [q]).dense()
    assert matrix.abs().max() > 0


def test_half_precision_weights_give_float32_vectors():
    weight = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    product = Hessian(lambda: weight.float().square().sum(), [weight])(torch.ones(3))
    assert product.dtype == torch.float32
    assert product.tolist() == [2.0, 2.0, 2.0]


def test_bad_input():
    good = torch.ones(2, requires_grad=True)
    with pytest.raises(InputError, match="params: got none"):
        Hessian(lambda: good.sum(), [])
    with pytest.raises(InputError, match="number 1 does not require a gradient"):
        Hessian(lambda: good.sum(), [good, torch.ones(2)])
    with pytest.raises(InputError, match="is complex"):
        Hessian(lambda: good.sum(), [torch.ones(2, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(InputError, match="batches: got none"):
        Hessian(lambda b: good.sum(), [good], [])
    with pytest.raises(InputError, match="weights: got 2"):
        Hessian(lambda b: good.sum(), [good], [1], weights=[1, 2])
    with pytest.raises(InputError, match=r"weights\[0\]"):
        Hessian(lambda b: good.sum(), [good], [1], weights=[0])
    with pytest.raises(InputError, match="loss: gave shape"):
        Hessian(lambda: good.square(), [good])(good.detach())
    with pytest.raises(NonFiniteError, match="batch 1"):
        Hessian(lambda b: good.square().sum() * b, [good], [1.0, float("nan")])(good.detach())
