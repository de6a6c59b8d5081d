"""Copies of a request's pages and state: what they hold, and what memory they take."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from splitrank.models.cache import KVPages, RecurrentSlots, StageCache

SLOT, PAGES = 1, torch.tensor([4, 0, 3])


class NewMemory(TorchDispatchMode):
    """Bytes of all tensors that are made and are no views."""

    num_bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        owners = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in owners:
            self.num_bytes += out.nbytes
        return out


def make_cache() -> StageCache:
    """Of an attention and a DeltaNet layer; each number is another one."""
    cache = StageCache.__new__(StageCache)
    pages, slots = torch.arange(5 * 8.0).view(5, 4, 1, 2), torch.arange(2 * 6.0).view(2, 3, 2)
    cache.layers = {0: KVPages(pages, pages + 100), 1: RecurrentSlots(slots + 200, slots + 300)}
    return cache


def test_a_copy_of_a_request_takes_its_memory_once() -> None:
    cache = make_cache()
    (keys, values), (conv, delta) = cache.layers[0].tensors, cache.layers[1].tensors
    with NewMemory() as made:
        saved = cache.save(PAGES, SLOT)
    expected = [keys[PAGES], values[PAGES], conv[SLOT], delta[SLOT]]
    assert all(torch.equal(one, other) for one, other in zip(saved, expected, strict=True))
    assert made.num_bytes == sum(one.nbytes for one in saved)
    assert cache.save_to_host(PAGES, SLOT)[0].tolist() == saved[0].tolist()


def test_a_copy_inside_a_chunk_takes_the_memory_of_its_pages_once() -> None:
    cache = make_cache()
    state = [torch.ones(3, 2), torch.zeros(3, 2)]
    with NewMemory() as made:
        saved = cache.save_inside(PAGES, state)
    keys, values = cache.layers[0].tensors
    assert torch.equal(torch.stack(saved[:2]), torch.stack((keys[PAGES], values[PAGES])))
    assert all(one is other for one, other in zip(saved[2:], state, strict=True))
    assert made.num_bytes == sum(one.nbytes for one in saved[:2])
