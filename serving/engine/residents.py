"""Which requests own KV pages and a slot, which are swapped out to host memory, and which are preempted for others.

Older requests go first, by ``Request.order``. When a running request lacks pages, the youngest running ones
are swapped out until there are enough. So every running request is older than every swapped one. A request that a step
in flight computes cannot be swapped out. The older request, and all that are younger, then wait for that step.
"""

import numpy as np

from splitrank.models.rounding import pages_needed
from splitrank.serving.engine.id_allocator import IdAllocator
from splitrank.serving.engine.request import Request, Status
from splitrank.serving.engine.request_columns import Places, RequestColumns
from splitrank.serving.engine.step_builder import StepBuilder
from splitrank.serving.protocol.messages import LaunchSpec, NewPages, SwapPlan


class Residents:
    """Hands pages and slots to requests and takes them back."""

    def __init__(self, spec: LaunchSpec, columns: RequestColumns) -> None:
        self._page_size = spec.page_size
        self.pages = IdAllocator(spec.num_pages)
        self.slots = IdAllocator(spec.max_running_requests)
        self.running: dict[int, Request] = {}
        self.swapped: dict[int, Request] = {}
        self.num_preemptions = 0
        self._columns = columns
        self._places: Places | None = None

    @property
    def places(self) -> Places:
        """Places of the running requests, oldest first."""
        if self._places is None:
            by_age = sorted(self.running.values(), key=lambda request: request.order)
            self._places = np.array([request.place for request in by_age], dtype=np.int64)
        return self._places

    def by_age(self) -> list[Request]:
        """The running requests, oldest first."""
        return self._columns.at(self.places)

    def has_room(self, num_tokens: int) -> bool:
        """Whether a slot is free, and pages for ``num_tokens`` beside a reserve: the pages that each running request
        needs for the rest of its prompt, and one more for each.

        Without the reserve a request would be swapped out soon after it was admitted. If nothing runs the reserve is
        0, so a request that fits alone is always admitted in the end.
        """
        if not self.slots.num_free:
            return False
        places = self.places
        rest = pages_needed(self._columns.prompt_length[places], self._page_size) - self._columns.num_pages[places]
        reserve = len(places) + int(rest.clip(0).sum())
        return self.pages.num_free - reserve >= pages_needed(num_tokens, self._page_size)

    def start(self, request: Request) -> None:
        """Gives it a slot. Its pages come with its chunks and tokens."""
        [request.slot] = self.slots.allocate(1)
        request.status = Status.RUNNING
        self.running[request.number] = request
        self._places = None

    @property
    def next_swapped(self) -> Request | None:
        """The oldest one."""
        return min(self.swapped.values(), key=lambda request: request.order, default=None)

    def swap_in(self, builder: StepBuilder, request: Request) -> None:
        del self.swapped[request.number]
        self.start(request)
        builder.swap_in.append(SwapPlan(request.number, request.slot))
        self.add_pages(builder, request, pages_needed(request.num_scheduled, self._page_size))

    def grow(self, builder: StepBuilder, request: Request, num_tokens: int) -> bool:
        """Gives it pages for ``num_tokens`` tokens; swaps younger requests out for them. False: not possible now."""
        missing = pages_needed(num_tokens, self._page_size) - request.num_pages
        if missing > self.pages.num_free and not self._make_room(builder, request, missing):
            return False
        if missing > 0:
            self.add_pages(builder, request, missing)
        return True

    def add_pages(self, builder: StepBuilder, request: Request, count: int) -> None:
        pages = self.pages.allocate(count)
        request.add_pages(pages)
        builder.pages.append(NewPages(request.slot, pages))

    def _make_room(self, builder: StepBuilder, request: Request, missing: int) -> bool:
        builder.is_short_of_pages = True
        victims: list[Request] = []
        num_free = self.pages.num_free
        for victim in reversed(self.by_age()):
            if victim.order <= request.order or num_free >= missing:
                break
            victims.append(victim)
            num_free += victim.num_pages
        if num_free < missing:  # older requests own the others, and keep them
            return False
        if any(victim.num_in_flight for victim in victims):
            builder.is_draining = True
            return False
        for victim in victims:
            self._swap_out(builder, victim)
        return True

    def _swap_out(self, builder: StepBuilder, victim: Request) -> None:
        # All its pages are filled: a page is given with the tokens that fill it, and none of those are in flight.
        builder.swap_out.append(SwapPlan(victim.number, victim.slot))
        self._give_back(victim)
        victim.status = Status.SWAPPED
        self.swapped[victim.number] = victim
        self.num_preemptions += 1

    def release(self, request: Request) -> None:
        """Frees all that an ended request owns, exactly once, whether it was running or swapped out."""
        if request.status is Status.RUNNING:
            self._give_back(request)
        else:
            del self.swapped[request.number]

    def _give_back(self, request: Request) -> None:
        self.pages.free(request.take_pages())
        self.slots.free([request.slot])
        request.slot = -1
        del self.running[request.number]
        self._places = None

    def check(self) -> None:
        """Checks that each page and slot is free or has one owner, and that swapped requests own none."""
        running = list(self.running.values())
        self.pages.check([page for request in running for page in request.pages])
        self.slots.check([request.slot for request in running])
        for request in running:
            held = pages_needed(request.num_scheduled, self._page_size)
            assert request.num_pages == held, f"request {request.number} holds {request.num_pages} pages, not {held}"
        by_age = self.by_age()
        assert self.places.tolist() == [request.place for request in by_age]
        assert self._columns.num_pages[self.places].tolist() == [request.num_pages for request in by_age]
        assert all(one.slot < 0 and not one.pages and not one.num_in_flight for one in self.swapped.values())
        orders = [request.order for request in by_age], sorted(one.order for one in self.swapped.values())
        assert not all(orders) or orders[0][-1] < orders[1][0], "a swapped request is older"
