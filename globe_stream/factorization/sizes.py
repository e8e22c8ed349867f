"""The sizes of a group of experts and its bank, and the counts that follow from them.

Source: docs/design.md, section Problem.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GroupSizes:
    """The numbers that decide operations and bytes: N experts of p x d, m atoms of r x d."""

    experts: int
    p: int
    d: int
    rank: int
    bases: int
    itemsize: int

    @property
    def bank_bytes(self) -> int:
        """Bytes of one float32 bank."""
        return 4 * self.bases * self.rank * self.d

    @property
    def stored_bytes(self) -> int:
        """Bytes of the group's experts in the checkpoint."""
        return self.experts * self.p * self.d * self.itemsize

    @property
    def kept_parameters(self) -> int:
        """Parameters of adapters and bank, N p r + m r d; the codes' come on top."""
        return self.rank * (self.experts * self.p + self.bases * self.d)

    def parameter_ratio(self, nonzeros: int) -> float:
        """Parameters kept, `nonzeros` codes included, as a fraction of N p d."""
        return (self.kept_parameters + nonzeros) / (self.experts * self.p * self.d)

    @property
    def svd_rank(self) -> int:
        """Rank of the per-expert truncated SVD with as many parameters as adapters and bank.

        k (p + d) = p r + m r d / N, rounded down. Source: docs/design.md, section Problem.
        """
        return self.kept_parameters // (self.experts * (self.p + self.d))

    @property
    def svd_ratio(self) -> float:
        """Parameters that the SVD of rank `svd_rank` keeps, as a fraction of p d."""
        return self.svd_rank * (self.p + self.d) / (self.p * self.d)

    @property
    def spectrum_operations(self) -> float:
        """Floating-point operations of one expert's singular values: the Gram, its eigenvalues."""
        side, length = sorted((self.p, self.d))
        return 2.0 * side**2 * length + 4 / 3 * side**3
