"""A failure record of the quick all-reduce in one line: rank, slot, phase, peer, expected and seen values."""

from splitrank.comm.native import Failure


def describe(failure: Failure | None, rank: int, timeout_s: float) -> str:
    """The record of ``rank`` as text."""
    if failure is None:
        return "it was aborted before the call began"
    place = f"in phase {failure['phase']} of slot {failure['slot']}"
    peer = f"tensor rank {failure['peer']}"
    seen = f"expected {_flag(failure['expected'])}, seen {_flag(failure['seen'])}"
    match failure["kind"]:
        case "timeout":
            return f"{place} nothing came from {peer} within {timeout_s:g} s ({seen})"
        case "mismatch" if failure["peer"] == rank:
            return f"{place} this rank runs a call that the host has not prepared ({seen})"
        case "mismatch":
            return f"{place} {peer} makes another call: number, size, dtype, codec or algorithm differ ({seen})"
        case "ahead":
            return f"{place} {peer} is ahead: this rank missed a call ({seen})"
        case "overlap":
            numbers = f"call {failure['expected']} began, call {failure['seen']} had not ended"
            return f"two calls at once on slot {failure['slot']}: {numbers}"
        case "aborted":
            who = "this rank" if failure["peer"] == rank else peer
            return f"{who} gave up ({place})"
    return f"{failure}"


def _flag(word: int) -> str:
    """A flag is a call's fingerprint, 24 bits, and a slot's sequence number, 40 bits (handshake.h)."""
    return f"call {word >> 40:06x} use {word & (2**40 - 1)}"
