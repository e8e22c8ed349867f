"""Which experts each of several processes reads: runs of the file order of like bytes."""

from collections.abc import Sequence

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.reader import file_order


def deal(experts: Sequence[ExpertMatrix], processes: int) -> list[list[int]]:
    """The positions in `experts` of every process's share, in the order of their bytes.

    Shares follow one another in the files; which expert belongs to which depends on (experts,
    processes) alone. A share is empty where there are more processes than experts.
    """
    shares: list[list[int]] = [[] for _ in range(processes)]
    total, before = sum(expert.nbytes for expert in experts), 0
    for position in sorted(range(len(experts)), key=lambda i: file_order(experts[i])):
        size = experts[position].nbytes
        middle = 2 * before + size
        shares[middle * processes // (2 * total)].append(position)
        before += size
    return shares
