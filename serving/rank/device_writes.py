"""Numbers that the host writes into tables on the device."""

import torch


class DeviceWrites:
    """Kept until ``flush`` writes them all, without waiting for the device.

    A plain assignment from the host waits until every step that was launched has ended, and the device is then idle
    until the next one is launched.
    """

    def __init__(self, **tables: torch.Tensor) -> None:
        """``tables``: one-dimensional views, by name."""
        self._tables = tables
        self._pending: dict[str, dict[int, float]] = {name: {} for name in tables}

    def put(self, table: str, place: int, value: float) -> None:
        """The last value of a place counts."""
        self._pending[table][place] = value

    def flush(self) -> None:
        """Writes the pending numbers, before every operation that is launched from now on."""
        for name, pending in self._pending.items():
            if pending:
                table = self._tables[name]
                places = copied_to(table.device, list(pending), torch.int64)
                table.index_copy_(0, places, copied_to(table.device, list(pending.values()), table.dtype))
                pending.clear()


def copied_to(device: torch.device, numbers: list[int] | list[float], dtype: torch.dtype) -> torch.Tensor:
    """The numbers on the device, without waiting for it."""
    on_host = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)
