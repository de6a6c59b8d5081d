"""What the assembly of a kernel must show, whichever way control flows: the memory order of the quick all-reduce.

A kernel is walked over all its paths; where they join, the worst of what may have happened counts. An access of
exchange memory shows by its non-temporal bits, one of a flag by its scope bits or by the primitive that it was inlined
from (on gfx90a a flag store has no bits of its own). The rules:

release-writeback   a flag store or atomic without a write-back of the L2 cache since this wave's last store
release-wait        the write-back was not waited for: the flag may overtake the data
barrier-drain       a wave reaches s_barrier with stores in flight, so the lane that publishes behind it may be first
barrier-writeback   a wave reaches s_barrier with exchange stores that were not written back
acquire-invalidate  memory is read, or a barrier let others read, after a flag was loaded and before it arrived and the
                    caches were invalidated
flag-scope          a flag access without the bits that carry it past the caches
scratch             an access of a lane's scratch memory: something did not fit into registers
unattributed        an access with a flag's bits that stems from no flag primitive
control-flow        a jump or call whose target is not known
empty               none of an instruction that every kernel has, so that nothing was checked
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

_ATOMICS = {"exchange_device", "fetch_or_device", "claim_system", "arrive_device"}
RELEASES = _ATOMICS | {"store_release_system"}
ACQUIRES = _ATOMICS | {"load_acquire_system"}
POLLS = {"load_relaxed_system"}  # of a flag that is expected not to have changed: nothing is read on its word


@dataclass(frozen=True)
class Arch:
    """How a machine spells things."""

    flag_load: frozenset[str]
    flag_store: frozenset[str]  # empty: a flag store looks like any other, and only its source tells
    non_temporal: frozenset[str]
    writeback: str
    invalidate: frozenset[str]  # all of them, after the wait


_GFX942 = Arch(
    flag_load=frozenset({"sc0", "sc1"}),
    flag_store=frozenset({"sc0", "sc1"}),
    non_temporal=frozenset({"nt"}),
    writeback="buffer_wbl2 sc0 sc1",
    invalidate=frozenset({"buffer_inv sc0 sc1"}),
)
ARCHS = {
    "gfx90a": Arch(
        flag_load=frozenset({"glc"}),
        flag_store=frozenset(),
        non_temporal=frozenset({"glc", "slc"}),
        writeback="buffer_wbl2",
        invalidate=frozenset({"buffer_invl2", "buffer_wbinvl1_vol"}),
    ),
    "gfx942": _GFX942,
    "gfx950": _GFX942,
}


@dataclass(frozen=True)
class Instruction:
    address: int
    mnemonic: str
    operands: str
    target: int | None  # of a branch
    functions: frozenset[str]  # names of the source functions it was inlined from; empty if not asked for

    @property
    def text(self) -> str:
        return f"{self.mnemonic} {self.operands}".strip()

    @property
    def bits(self) -> frozenset[str]:
        return frozenset(self.operands.split()) & {"sc0", "sc1", "nt", "glc", "slc"}

    def touches_memory(self) -> bool:
        kind, _, what = self.mnemonic.partition("_")
        return kind in {"global", "flat", "buffer", "scratch"} and any(
            word in what for word in ("load", "store", "atomic")
        )


@dataclass(frozen=True)
class Violation:
    rule: str
    address: int
    text: str


@dataclass(frozen=True)
class _State:
    """The worst over all paths that lead here, of this wave."""

    writeback: int = 0  # since the last store: 0 not issued, 1 issued, 2 issued and waited for
    in_flight: bool = False  # stores that were not waited for
    unwritten: int = 0  # exchange stores: 2 not written back, 1 the write-back is under way, 0 none
    unseen: frozenset[str] = frozenset()  # what a loaded flag still needs: "wait", invalidations

    def join(self, other: "_State") -> "_State":
        return _State(
            min(self.writeback, other.writeback),
            self.in_flight or other.in_flight,
            max(self.unwritten, other.unwritten),
            self.unseen | other.unseen,
        )


class _Roles:
    """What each memory access is for, by its bits and by the primitives it was inlined from."""

    def __init__(self, arch: Arch, instruction: Instruction) -> None:
        self.memory = instruction.touches_memory()
        atomic = self.memory and "atomic" in instruction.mnemonic
        self.load = self.memory and "load" in instruction.mnemonic
        self.store = self.memory and not self.load
        bits = instruction.bits
        self.exchange = self.memory and not atomic and arch.non_temporal <= bits
        plain = self.memory and not atomic and not self.exchange
        released, acquired = RELEASES & instruction.functions, ACQUIRES & instruction.functions
        flag_store_bits = bool(arch.flag_store) and bits == arch.flag_store
        self.release = atomic or (plain and self.store and (bool(released) or flag_store_bits))
        flag_load = plain and self.load and bits == arch.flag_load
        self.acquire = atomic or (flag_load and not POLLS & instruction.functions)
        # Accesses whose bits and source disagree.
        self.wrong_scope = plain and (
            (self.load and bool(acquired) and bits != arch.flag_load)
            or (self.store and bool(released) and bits != arch.flag_store)
        )
        self.unattributed = (self.release and not released) or (self.acquire and not acquired)


def _successors(code: list[Instruction], index_at: dict[int | None, int], i: int) -> list[int]:
    name = code[i].mnemonic
    if name == "s_endpgm":
        return []
    target = code[i].target
    there = [index_at[target]] if target in index_at else []
    if name == "s_branch":
        return there
    return [*there, i + 1] if i + 1 < len(code) else there


def _step(arch: Arch, state: _State, instruction: Instruction, roles: _Roles) -> _State:
    text = instruction.text
    if instruction.mnemonic == "s_waitcnt" and "vmcnt(0)" in instruction.operands:
        return _State(
            writeback=2 if state.writeback else 0,
            in_flight=False,
            unwritten=0 if state.unwritten == 1 else state.unwritten,
            unseen=state.unseen - {"wait"},
        )
    if text == arch.writeback:
        return replace(state, writeback=1, unwritten=min(state.unwritten, 1))
    if text in arch.invalidate and "wait" not in state.unseen:
        return replace(state, unseen=state.unseen - {text})
    if roles.store:
        unwritten = 2 if roles.exchange else state.unwritten
        state = replace(state, writeback=0, in_flight=True, unwritten=unwritten)
    if roles.acquire:
        state = replace(state, unseen=arch.invalidate | {"wait"})
    return state


def _judge(arch: Arch, state: _State, instruction: Instruction, roles: _Roles) -> Iterator[str]:
    name = instruction.mnemonic
    if roles.release and state.writeback < 2:
        yield "release-wait" if state.writeback else "release-writeback"
    if name == "s_barrier":
        if state.in_flight:
            yield "barrier-drain"
        if state.unwritten:
            yield "barrier-writeback"
    if state.unseen and (name == "s_barrier" or roles.load):
        yield "acquire-invalidate"
    if roles.wrong_scope:
        yield "flag-scope"
    if roles.unattributed:
        yield "unattributed"
    if roles.memory and not name.startswith(("global", "flat")):
        yield "scratch"
    if name in {"s_setpc_b64", "s_swappc_b64", "s_call_b64", "s_cbranch_g_fork", "s_cbranch_join"}:
        yield "control-flow"


def _reach(arch: Arch, code: list[Instruction], roles: list[_Roles]) -> dict[int, _State]:
    """The state before each instruction that can be reached."""
    index_at: dict[int | None, int] = {instruction.address: i for i, instruction in enumerate(code)}
    before = {0: _State()}
    work = [0]
    while work:
        i = work.pop()
        after = _step(arch, before[i], code[i], roles[i])
        for following in _successors(code, index_at, i):
            known = before.get(following)
            joined = after if known is None else known.join(after)
            if joined != known:
                before[following] = joined
                work.append(following)
    return before


def check_kernel(
    arch: Arch, code: list[Instruction], exchange: Collection[str] = ("loads", "stores")
) -> tuple[list[Violation], Counter[str]]:
    """The violations by address, and how many instructions of each sort there were to judge. ``exchange``: what the
    kernel does with exchange memory, so that none of it is an error."""
    roles = [_Roles(arch, instruction) for instruction in code]
    before = _reach(arch, code, roles)
    inside = {instruction.address for instruction in code}
    violations = [
        Violation("control-flow", i.address, i.text)
        for i in code
        if i.mnemonic.startswith(("s_branch", "s_cbranch")) and i.target not in inside
    ]
    violations += [
        Violation(rule, code[i].address, code[i].text)
        for i in sorted(before)
        for rule in _judge(arch, before[i], code[i], roles[i])
    ]
    counts = Counter(
        {
            "releases": sum(roles[i].release for i in before),
            "acquires": sum(roles[i].acquire for i in before),
            "barriers": sum(code[i].mnemonic == "s_barrier" for i in before),
            "exchange stores": sum(roles[i].exchange and roles[i].store for i in before),
            "exchange loads": sum(roles[i].exchange and roles[i].load for i in before),
        }
    )
    for what, number in counts.items():
        if number == 0 and ("exchange" not in what or what.split()[1] in exchange):
            violations.append(Violation("empty", code[0].address if code else 0, f"no {what}"))
    return violations, counts
