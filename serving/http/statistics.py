"""What ``/stats`` says: the server's state, its ranks, and the engine's latest statistics, as one JSON object."""

import msgspec

from splitrank.serving.http.state import ServerState
from splitrank.serving.protocol.messages import EngineStats


class Statistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``model`` and what follows it is known once the model is loaded, ``engine`` a moment later."""

    phase: str  # "loading", "ready", "draining" or "dead"
    death: str | None  # why, once dead
    num_open: int  # requests whose answer is being made
    model: str = ""
    max_model_len: int = 0
    fingerprint: str = ""
    defaults: dict[str, float] = {}  # sampling values of a request that gives none
    reports: list[list[str]] = []  # lines of the start in their parts; of each rank first: name, layers, bytes
    engine: EngineStats | None = None


def statistics(state: ServerState) -> Statistics:
    if state.info is None:
        return Statistics(state.phase, state.death, state.num_open)
    info = state.info
    return Statistics(
        phase=state.phase,
        death=state.death,
        num_open=state.num_open,
        model=info.name,
        max_model_len=info.max_model_len,
        fingerprint=info.fingerprint,
        defaults=info.defaults,
        reports=[[part.strip() for part in report.split("  ")] for report in state.reports],
        engine=state.stats(),
    )
