"""Where the stored bytes of a batch lie between the disk and their decoding.

On the CPU, and where a device shares its memory, they are decoded where they were read. A CUDA
device has a memory of its own: bytes go there from pinned memory, on a stream of their own, and are
decoded there, so that reading, copying and computing happen at once.
Source: docs/design.md, section Devices.
"""

import torch
from torch import Tensor


class Slots:
    """`batch` slots of `size` bytes: filled by the reading thread, decoded by the consumer.

    The thread calls `to_fill` and then `filled`; the consumer, after that, `to_decode` and then
    `decoded`; only then may the thread begin again. Resident: batch * size bytes.
    """

    def __init__(self, batch: int, size: int) -> None:
        self._host = torch.empty((batch, size), dtype=torch.uint8)

    def to_fill(self, kept: int | None) -> Tensor:
        """(batch, size) uint8 in host memory for the bytes of the next batch.

        Slot `kept`, if given, holds what it held when the last batch was filled.
        """
        del kept  # there is one buffer, and it is still there
        return self._host

    def filled(self) -> None:
        """What `to_fill` gave is complete."""

    def to_decode(self) -> Tensor:
        """(batch, size) uint8 with the bytes that were filled, where they are decoded."""
        return self._host

    def decoded(self) -> None:
        """What `to_decode` gave is no longer needed."""

    def close(self) -> None:
        """Wait for what is under way."""


class CudaSlots(Slots):
    """Two pinned buffers, filled in turn, and one on the CUDA `device`.

    The next batch is read while the last one is copied, and copied while the one before it is
    computed: a batch takes the longest of the three. Resident: 2 * batch * size bytes of the host,
    batch * size of the device; neither is more than what a reader's price names for one memory.
    """

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self._pinned = [
            torch.empty((batch, size), dtype=torch.uint8, pin_memory=True) for _ in range(2)
        ]
        self._sent = [torch.cuda.Event() for _ in self._pinned]  # type: ignore[no-untyped-call]
        self._landed = torch.empty((batch, size), dtype=torch.uint8, device=device)
        self._emptied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._lane = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._lane.wait_stream(torch.cuda.current_stream(device))
        self._device = device
        self._turn = 0

    def to_fill(self, kept: int | None) -> Tensor:
        last = self._pinned[self._turn]
        self._turn = 1 - self._turn
        self._sent[self._turn].synchronize()  # what it held before has left
        following = self._pinned[self._turn]
        if kept is not None:
            following[kept].copy_(last[kept])
        return following

    def filled(self) -> None:
        with torch.cuda.stream(self._lane):
            self._lane.wait_event(self._emptied)
            self._landed.copy_(self._pinned[self._turn], non_blocking=True)
            self._sent[self._turn].record(self._lane)

    def to_decode(self) -> Tensor:
        torch.cuda.current_stream(self._device).wait_event(self._sent[self._turn])
        return self._landed

    def decoded(self) -> None:
        self._emptied.record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        self._lane.synchronize()
