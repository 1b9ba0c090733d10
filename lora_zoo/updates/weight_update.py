"""The update ΔW = W' - W of one matrix, factored or dense, with its singular value decomposition.

Letters: O out, I in, R rank of the factors, K singular values (R or fewer of a product, else min(O, I)).
Results are in float64 on the CPU.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from lora_zoo.inits.svd import Triplets


class WeightUpdate(ABC):
    """One matrix's ΔW (O, I), by the name of the matrix."""

    def __init__(self, name: str, shape: tuple[int, int]) -> None:
        self.name, self.shape = name, shape

    @cached_property
    @abstractmethod
    def singular_values(self) -> Tensor:
        """(K,) in descending order; what rounding alone explains is zero, and NaN where ΔW is not finite."""

    @cached_property
    @abstractmethod
    def triplets(self) -> Triplets:
        """U (O, K), σ (K), Vh (K, I). ValueError where ΔW is not finite."""

    @abstractmethod
    def dense(self) -> Tensor:
        """ΔW (O, I)."""

    def between(self, left_OP: Tensor, right_IQ: Tensor) -> Tensor:
        """leftᵀ ΔW right, (P, Q)."""
        return _double(left_OP).T @ self.dense() @ _double(right_IQ)

    def inner(self, other: "WeightUpdate") -> float:
        """Frobenius' inner product with the ΔW of another adapter."""
        return float((self.dense() * other.dense()).sum())

    @property
    def norm(self) -> float:
        """‖ΔW‖_F."""
        return float(self.singular_values.norm())

    @property
    def rank(self) -> int:
        """The number of singular values above rounding."""
        return int((self.singular_values > 0).sum())

    def check_finite(self) -> None:
        """Raise ValueError where ΔW is not finite."""
        if self.singular_values.isnan().any():
            raise ValueError(f"ΔW of {self.name} holds NaN or inf")


@final
class FactoredUpdate(WeightUpdate):
    """ΔW = B A with thin factors: QR of each and the SVD of an (R, R) matrix, never one of (O, I)."""

    def __init__(self, name: str, B_OR: Tensor, A_RI: Tensor) -> None:
        super().__init__(name, (B_OR.shape[0], A_RI.shape[1]))
        self.B_OR, self.A_RI = B_OR.detach(), A_RI.detach()

    def factors(self) -> tuple[Tensor, Tensor]:
        return _double(self.B_OR), _double(self.A_RI)

    @cached_property
    def singular_values(self) -> Tensor:
        B_OR, A_RI = self.factors()
        R_b, R_a = torch.linalg.qr(B_OR, mode="r").R, torch.linalg.qr(A_RI.T, mode="r").R
        return _values(R_b @ R_a.T, self._rounding(B_OR, A_RI))

    @cached_property
    def triplets(self) -> Triplets:
        self.check_finite()
        B_OR, A_RI = self.factors()
        (Q_b, R_b), (Q_a, R_a) = torch.linalg.qr(B_OR), torch.linalg.qr(A_RI.T)
        u, S_K, vh = torch.linalg.svd(R_b @ R_a.T, full_matrices=False)
        S_K = torch.where(self._rounding(B_OR, A_RI) < S_K, S_K, 0.0)
        return Triplets(Q_b @ u, S_K, vh @ Q_a.T)

    def dense(self) -> Tensor:
        B_OR, A_RI = self.factors()
        return B_OR @ A_RI

    def between(self, left_OP: Tensor, right_IQ: Tensor) -> Tensor:
        B_OR, A_RI = self.factors()
        return (_double(left_OP).T @ B_OR) @ (A_RI @ _double(right_IQ))

    def inner(self, other: WeightUpdate) -> float:
        B_OR, A_RI = self.factors()
        return float(other.between(B_OR, A_RI.T).diagonal().sum())

    @staticmethod
    def _rounding(B_OR: Tensor, A_RI: Tensor) -> float:
        return torch.finfo(torch.float64).eps * B_OR.shape[1] * float(B_OR.norm() * A_RI.norm())


@final
class DenseUpdate(WeightUpdate):
    """ΔW as a matrix. `of_norm`: ‖W‖_F where ΔW is a difference of matrices and has their rounding.

    Otherwise it has the rounding of its own entries.
    """

    def __init__(self, name: str, dW_OI: Tensor, of_norm: float = 0.0) -> None:
        O, I = dW_OI.shape
        super().__init__(name, (O, I))
        self.dW_OI = dW_OI.detach()
        norm = float(self.dense().norm())
        entries = torch.finfo(dW_OI.dtype).eps * max(norm, of_norm) * (O**-0.5 + I**-0.5)
        self._rounding = entries + torch.finfo(torch.float64).eps * max(O, I) * norm  # the latter: LAPACK's

    @cached_property
    def singular_values(self) -> Tensor:
        return _values(self.dense(), self._rounding)

    @cached_property
    def triplets(self) -> Triplets:
        self.check_finite()
        U_OK, S_K, Vh_KI = torch.linalg.svd(self.dense(), full_matrices=False)
        return Triplets(U_OK, torch.where(self._rounding < S_K, S_K, 0.0), Vh_KI)

    def dense(self) -> Tensor:
        return _double(self.dW_OI)


def _double(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float64)


def _values(matrix: Tensor, rounding: float) -> Tensor:
    if not matrix.isfinite().all():
        return torch.full((min(matrix.shape),), torch.nan, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    return torch.where(values > rounding, values, 0.0)
