"""The empirical tangent kernel against closed forms."""

import math

import pytest
import torch
from torch import nn

from lora_zoo import inject
from lora_zoo.analysis.ntk import alignment, tangent_kernel


def test_a_linear_function_has_the_kernel_of_its_inputs() -> None:
    x_NI, w_I = torch.randn(5, 3), torch.randn(3, requires_grad=True)
    torch.testing.assert_close(tangent_kernel(x_NI @ w_I, [w_I]), (x_NI @ x_NI.T).double())


def test_lora_begins_with_the_kernel_of_a_random_projection() -> None:
    """At B = 0 only B moves the output uᵀ(W + sBA)x: K_ij = s² ‖u‖² <A x_i, A x_j>."""
    model = nn.Sequential(nn.Linear(16, 4, bias=False))
    injection = inject(model, "lora", rank=3, alpha=6.0, target_modules=["0"])
    x_NI, u_O = torch.randn(6, 16), torch.randn(4)
    A_RI = next(p for name, p in injection.named_parameters().items() if name.endswith("A_RI")).detach()
    projected_NR = x_NI @ A_RI.T
    expected = 2.0**2 * u_O.square().sum() * projected_NR @ projected_NR.T
    kernel = tangent_kernel(model(x_NI) @ u_O, injection.parameters())
    torch.testing.assert_close(kernel, expected.double(), rtol=1e-5, atol=1e-5)


def test_a_parameter_that_an_output_does_not_reach_adds_nothing() -> None:
    used, idle = torch.ones(2, requires_grad=True), torch.ones(7, requires_grad=True)
    frozen = torch.ones(3)
    outputs = torch.stack([used.sum(), 2 * used[0]])
    expected = torch.tensor([[2.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(tangent_kernel(outputs, [used, idle, frozen]), expected)


def test_alignment_is_a_correlation_of_centred_kernels() -> None:
    x_NI, y_NI = torch.randn(8, 3).double(), torch.randn(8, 8).double()
    one, other = x_NI @ x_NI.T, y_NI @ y_NI.T
    H = torch.eye(8).double() - 1 / 8
    a, b = (H @ one @ H).flatten(), (H @ other @ H).flatten()
    assert alignment(one, other) == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)))
    assert alignment(one, 3 * one + 5) == pytest.approx(1), "neither scale nor shift counts"
    assert alignment(one, -one) == pytest.approx(-1)
    assert math.isnan(alignment(one, torch.ones(8, 8)))


def test_mistakes_say_what_is_wrong() -> None:
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"\(N,\); got \(2, 2\)"):
        tangent_kernel(torch.outer(w, w), [w])
    with pytest.raises(ValueError, match="no parameter"):
        tangent_kernel(2 * w, [w.detach()])
    with pytest.raises(ValueError, match="do not depend"):
        tangent_kernel(torch.ones(3), [w])
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 3\)"):
        alignment(torch.eye(2), torch.eye(3))
