"""What the seeding methods see of the proxies: their Gram matrix, dense or as an operator."""

from typing import Protocol

import torch
from torch import Tensor

from globe_stream.errors import GlobeError

SYMMETRY_LIMIT = 1e-6


class SupportsMatmul(Protocol):
    """A Gram matrix that is never formed."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N)."""
        ...

    def matmul(self, vectors: Tensor) -> Tensor:
        """C V (N, l) float64 for V (N, l)."""
        ...


class GramView:
    """Inner products ``C_ij = <x_i, x_j>`` of the unit-norm proxies, as float64 on the CPU.

    Only products with C are asked for, except by the methods that name columns of it.
    """

    def __init__(self, dense: Tensor | None, product: SupportsMatmul | None) -> None:
        self._dense = dense
        self._product = product
        self._values: Tensor | None = None
        self._vectors: Tensor | None = None

    @classmethod
    def dense(cls, gram: Tensor) -> "GramView":
        """View of C (N, N), symmetric; held as float64.

        Raises:
            GlobeError: C is not square, not symmetric or not finite.
        """
        if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
            raise GlobeError(f"gram view: a matrix of shape {tuple(gram.shape)} is not square")
        wide = gram.detach().cpu().double()
        if not bool(torch.isfinite(wide).all()):
            raise GlobeError("gram view: the Gram matrix holds NaN or Inf")
        if float((wide - wide.T).abs().max()) > SYMMETRY_LIMIT * float(wide.abs().max()):
            raise GlobeError("gram view: the Gram matrix is not symmetric")
        return cls(wide, None)

    @classmethod
    def operator(cls, product: SupportsMatmul) -> "GramView":
        """View of a C that is only ever multiplied with (for `rpca`)."""
        return cls(None, product)

    @property
    def size(self) -> int:
        """N, the number of proxies."""
        if self._dense is not None:
            return self._dense.shape[0]
        assert self._product is not None
        return self._product.shape[0]

    def matmul(self, vectors: Tensor) -> Tensor:
        """C V (N, l) for V (N, l), float64."""
        if self._dense is not None:
            return self._dense @ vectors
        assert self._product is not None
        return self._product.matmul(vectors)

    def matrix(self) -> Tensor:
        """C (N, N).

        Raises:
            GlobeError: the view is an operator.
        """
        if self._dense is None:
            raise GlobeError("gram view: this method needs the dense Gram matrix; use rpca instead")
        return self._dense

    def eigen(self) -> tuple[Tensor, Tensor]:
        """All eigenvalues (N,), largest first, and eigenvectors (N, N); computed once."""
        if self._vectors is None:
            values, vectors = torch.linalg.eigh(self.matrix())
            self._values, self._vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        assert self._values is not None
        return self._values, self._vectors

    def remember(self, values: Tensor) -> None:
        """Note the leading eigenvalues that a range finder found for an operator."""
        if self._dense is None:
            self._values = values

    def eigenvalues(self) -> Tensor:
        """Eigenvalues of C, largest first: all of a dense one, those found of an operator."""
        if self._dense is not None:
            return self.eigen()[0]
        return torch.zeros(0, dtype=torch.float64) if self._values is None else self._values
