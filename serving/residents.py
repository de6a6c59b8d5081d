"""Which requests own KV pages and a slot, which wait in host memory, and who makes room for whom.

Age decides, and the request number is the age. When a running request lacks pages, the youngest ones are swapped out,
as many as it takes. So every running request is older than every swapped one. If one of these youngest is in a step in
flight, it cannot be swapped out now: the older request and all behind it wait until that step is back.
"""

from splitrank.serving.cache import Pool, pages_needed
from splitrank.serving.draft import Draft
from splitrank.serving.messages import LaunchSpec, SwapPlan
from splitrank.serving.request import Request, Status


class Residents:
    """Hands pages and slots to requests and takes them back."""

    def __init__(self, spec: LaunchSpec) -> None:
        self._page_size = spec.page_size
        self.pages = Pool(spec.num_pages)
        self.slots = Pool(spec.max_running_requests)
        self.running: dict[int, Request] = {}
        self.swapped: dict[int, Request] = {}
        self.num_preemptions = 0

    def by_age(self) -> list[Request]:
        """The running ones, oldest first."""
        return sorted(self.running.values(), key=lambda request: request.number)

    def has_room(self, num_tokens: int) -> bool:
        """A slot, and pages for ``num_tokens`` beside those that the running requests will soon need: the rest of each
        prompt, and one page each.

        Without that reserve a request would be swapped out soon after it came. With nothing running it is 0, so a
        request that fits alone is never kept out for ever.
        """
        if not self.slots.num_free:
            return False
        reserve = sum(1 + self._pages_of_rest(request) for request in self.running.values())
        return self.pages.num_free - reserve >= pages_needed(num_tokens, self._page_size)

    def _pages_of_rest(self, request: Request) -> int:
        return max(pages_needed(len(request.prompt_token_ids), self._page_size) - len(request.pages), 0)

    def start(self, request: Request) -> None:
        """It gets a slot; its pages come with its shares."""
        [request.slot] = self.slots.allocate(1)
        request.status = Status.RUNNING
        self.running[request.number] = request

    def swap_in(self, draft: Draft, request: Request) -> None:
        del self.swapped[request.number]
        self.start(request)
        request.pages = self.pages.allocate(pages_needed(request.num_scheduled, self._page_size))
        draft.swap_in.append(SwapPlan(request.number, request.slot, list(request.pages)))

    def grow(self, draft: Draft, request: Request, num_tokens: int) -> bool:
        """Give it pages for ``num_tokens`` tokens, if need be by swapping out younger requests; False: not now."""
        missing = pages_needed(num_tokens, self._page_size) - len(request.pages)
        if missing > self.pages.num_free and not self._make_room(draft, request, missing):
            return False
        request.pages += self.pages.allocate(missing)
        return True

    def _make_room(self, draft: Draft, request: Request, missing: int) -> bool:
        draft.is_short_of_pages = True
        victims: list[Request] = []
        num_free = self.pages.num_free
        for victim in reversed(self.by_age()):
            if victim.number <= request.number or num_free >= missing:
                break
            victims.append(victim)
            num_free += len(victim.pages)
        if num_free < missing:  # older requests hold the rest, and they keep it
            return False
        if any(victim.num_in_flight for victim in victims):
            draft.is_draining = True
            return False
        for victim in victims:
            self._swap_out(draft, victim)
        return True

    def _swap_out(self, draft: Draft, victim: Request) -> None:
        # All its pages hold computed tokens: pages come with the share that fills them, and none is in flight.
        draft.swap_out.append(SwapPlan(victim.number, victim.slot, list(victim.pages)))
        self._give_back(victim)
        victim.status = Status.SWAPPED
        self.swapped[victim.number] = victim
        self.num_preemptions += 1

    def release(self, request: Request) -> None:
        """It has ended, running or swapped out: everything it owns goes back, exactly once."""
        if request.status is Status.RUNNING:
            self._give_back(request)
        else:
            del self.swapped[request.number]

    def _give_back(self, request: Request) -> None:
        self.pages.free(request.pages)
        self.slots.free([request.slot])
        request.pages, request.slot = [], -1
        del self.running[request.number]

    def check(self) -> None:
        """Integrity: every page and slot is free or has one owner; the swapped ones own nothing and are the younger."""
        running = list(self.running.values())
        self.pages.check([page for request in running for page in request.pages])
        self.slots.check([request.slot for request in running])
        for request in running:
            held = pages_needed(request.num_scheduled, self._page_size)
            assert len(request.pages) == held, f"request {request.number} holds {len(request.pages)} pages, not {held}"
        assert all(one.slot < 0 and not one.pages and not one.num_in_flight for one in self.swapped.values())
        assert max(self.running, default=-1) < min(self.swapped, default=2**63), "an older request has been passed over"
