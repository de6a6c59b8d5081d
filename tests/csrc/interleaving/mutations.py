"""The invariants of the protocol, each broken on purpose in a copy of the headers; a schedule must tell.

A patch replaces whole statements (its old text ends with a semicolon) or one expression, so that one program can hold
all mutations and choose (choice.py). Two patches have the same old text, or do not overlap.
"""

from dataclasses import dataclass

from tests.csrc.programs import Patch


@dataclass(frozen=True)
class Mutation:
    name: str
    invariant: int  # of the design's list
    patches: tuple[Patch, ...]
    arguments: tuple[str, ...] = ()  # of the interleaving program; none: schedules without a fault


def one(name: str, invariant: int, file: str, old: str, new: str, *arguments: str, behind: str = "") -> Mutation:
    return Mutation(name, invariant, (Patch(file, old, new, behind),), arguments)


TREE = """for (int stride = 1; stride < W; stride *= 2)
        QR_UNROLL
        for (int rank = 0; rank + stride < W; rank += 2 * stride)
            QR_UNROLL
            for (int i = 0; i < K; ++i) values[rank][i] += values[rank + stride][i];"""

MUTATIONS = (
    # 1. Storage of the phases is disjoint.
    one("phases-share-storage", 1, "layout.h", "(slot * kNumPhases + phase)", "(slot * kNumPhases + phase % 2)"),
    one("slots-overlap", 1, "layout.h", "(slot * kNumPhases + phase)", "(slot + phase)"),
    one(
        "data-of-phases-shared",
        1,
        "layout.h",
        "data_begin() + place(slot, phase, peer) * shape_.segment_bytes",
        "data_begin() + place(slot, phase % 2, peer) * shape_.segment_bytes",
    ),
    one(
        "peers-share-a-place",
        1,
        "layout.h",
        "return ((W & (W - 1)) == 0 ? reader ^ source : (source + W - reader) % W) - 1;",
        "return ((W & (W - 1)) == 0 ? reader ^ source : (source + W - reader) % W) / 3;",
    ),
    # 2. Nothing is overwritten before it was read.
    one(
        "one-shot-without-parity",
        2,
        "layout.h",
        "sequence & 1 ? kFirstOdd : kFirstEven",
        "(void(sequence), kFirstEven)",
    ),
    one("second-phase-not-awaited", 2, "two_shot.h", "if (!sync.await(kSecond)) return false;", ""),
    one(
        "tagged-without-parity",
        2,
        "handshake.h",
        "layout_.tagged(slot_, first(), peer_index<W>(reader, source))",
        "layout_.tagged(slot_, kFirstEven, peer_index<W>(reader, source))",
    ),
    one("words-not-awaited", 2, "tagged.h", "all = all && has_tag(words[n], sync.tag());", "all = true;"),
    one(
        "words-not-refreshed",
        2,
        "handshake.h",
        "refreshed / Exec::kWave >= num_rows",
        "refreshed / Exec::kWave > num_rows",
    ),
    one(
        "one-word-refreshed",
        2,
        "tagged_word.h",
        "return uint32_t((sequence >> 1) % num_words);",
        "return 0 * num_words;",
    ),
    one(
        "tag-of-few-bits", 2, "tagged_word.h", "uint32_t(sequence) & ((1u << kTagBits) - 1)", "uint32_t(sequence) & 31"
    ),
    one("first-phase-not-awaited", 2, "one_shot.h", "if (!sync.await(sync.first())) return false;", ""),
    one("start-not-awaited", 2, "gpu/registered.h", "if (!sync.await(sync.first())) return false;", ""),
    one("end-not-awaited", 2, "gpu/registered.h", "return sync.await_unaborted(kSecond);", "return true;"),
    one("stages-share-a-slot", 2, "gpu/kernels.h", "block + (kStages - 1) * num_blocks", "block"),
    # 3. Sequence numbers belong to the slot and advance once a use.
    one(
        "sequence-from-the-host", 3, "handshake.h", "sequence_ = hear_uses(exec_, state) + 1;", "sequence_ = call_.id;"
    ),
    one("sequence-not-kept", 3, "handshake.h", "    state.sequence = uses;\n", ""),
    one("sequence-advances-twice", 3, "handshake.h", "++sequence_;", "sequence_ += 2;"),
    # 4. All data is performed before the flag.
    one("no-release-before-the-flag", 4, "handshake.h", "        exec_.release_block();\n", ""),
    Mutation(
        "flag-before-data",
        4,
        (
            Patch("two_shot.h", "        sync.publish(kSecond);\n        return true;", "        return true;"),
            Patch(
                "two_shot.h",
                "        if (!sync.await(sync.first())) return false;\n",
                "        if (!sync.await(sync.first())) return false;\n        sync.publish(kSecond);\n",
            ),
        ),
    ),
    one(
        "word-in-two-pieces",
        4,
        "tagged.h",
        "exec_.store_tagged(word(sync, to, unit, n), words[n]);",
        "{ std::byte* at = reinterpret_cast<std::byte*>(word(sync, to, unit, n));\n"
        "                  const auto halves = bit_cast<Words<uint64_t, 2>>(words[n]);\n"
        "                  exec_.store_flag(reinterpret_cast<uint64_t*>(at + 8), halves.word[1]);\n"
        "                  exec_.store_exchange(at, halves.word[0]); }",
    ),
    # 5. One call in flight, enforced by the ticket.
    one("ticket-ignored", 5, "handshake.h", "taken.holder != 0", "taken.holder == ~0u", "--fault", "overlap"),
    Mutation(
        "sequence-read-before-the-ticket",
        5,
        (
            Patch(
                "handshake.h",
                "        answer_ = 0;",
                "        answer_ = 0;\n        sequence_ = view_.slots[slot_].sequence + 1;",
            ),
            Patch("handshake.h", "sequence_ = hear_uses(exec_, state) + 1;", ""),
        ),
        ("--fault", "overlap"),
    ),
    # 6. All ranks agree on the call.
    one(
        "fingerprint-ignored",
        6,
        "handshake.h",
        "if (seen == expected()) return true;",
        "if (uint32_t(seen) == uint32_t(sequence_)) return true;",
        "--faults",
    ),
    one("header-ignored", 6, "handshake.h", "if (flag != expected()) return flag;", "(void)flag;", "--faults"),
    one("tagged-places-shared", 1, "layout.h", "(phase * uint32_t(num_peers()) + peer)", "(phase * 0 + peer)"),
    one(
        "fingerprint-without-size",
        6,
        "call.h",
        "call.num_elements",
        "uint64_t(0)",
        "--fault",
        "size",
        behind=",      call.segment_elements",
    ),
    one("fingerprint-without-dtype", 6, "call.h", "uint64_t(dtype) << 16", "uint64_t(dtype) * 0", "--fault", "dtype"),
    one("fingerprint-without-codec", 6, "call.h", "uint64_t(codec) << 8", "uint64_t(codec) * 0", "--fault", "codec"),
    one("fingerprint-without-number", 6, "call.h", "call.id", "0", "--fault", "overlap"),
    # 7. Every wait is bounded, and ends when anybody gives up; later calls fail at once.
    one("timeout-ignored", 7, "handshake.h", "now - began > call_.timeout_ns", "false", "--fault", "dead-peer"),
    one(
        "abort-word-not-polled",
        7,
        "handshake.h",
        "return word != 0 || !asks_host ? word : exec_.load_flag(view_.host_abort);",
        "return word * asks_host * 0;",
        "--fault",
        "dead-peer-one-limit",
    ),
    one(
        "host-abort-not-polled",
        7,
        "handshake.h",
        "return word != 0 || !asks_host ? word : exec_.load_flag(view_.host_abort);",
        "return (void(asks_host), word);",
        "--fault",
        "host-gives-up",
    ),
    one(
        "abort-words-not-raised",
        7,
        "handshake.h",
        "exec_.store_flag(&control(rank)->abort, first != 0 ? first : uint64_t(1) + view_.rank);",
        "if (rank == view_.rank)"
        " exec_.store_flag(&control(rank)->abort, first != 0 ? first : uint64_t(1) + view_.rank);",
        "--fault",
        "dead-peer-one-limit",
    ),
    one(
        "input-reused-by-who-gave-up",
        7,
        "gpu/registered.h",
        "return sync.await_unaborted(kSecond);",
        "return sync.await(kSecond);",
        "--fault",
        "impatience",
    ),
    one(
        "poison-ignored",
        7,
        "handshake.h",
        "if (abort != 0) is_fit_ = fail(FailureKind::kAborted, 0, uint32_t(abort - 1), 0, abort);",
        "(void)abort;",
        "--faults",
    ),
    one(
        "record-not-completed",
        7,
        "handshake.h",
        "            exec_.store_complete(&record.complete);\n",
        "",
        "--faults",
    ),
    one("ahead-taken-for-old", 7, "handshake.h", "lead > 0", "lead < 0"),
    Mutation(
        "sequence-of-32-bits",
        3,
        (
            Patch(
                "handshake.h",
                "uint64_t(call_.fingerprint) << kSequenceBits | (sequence_ & ((uint64_t(1) << kSequenceBits) - 1))",
                "uint64_t(call_.fingerprint) << 32 | (sequence_ & 0xffffffff)",
            ),
            Patch("handshake.h", "64 - kSequenceBits", "64 - 32"),
        ),
    ),
    # 9. Sizes are counted in 64 bits.
    one(
        "offset-of-32-bits",
        9,
        "layout.h",
        "data_begin() + place(slot, phase, peer) * shape_.segment_bytes",
        "uint32_t(data_begin() + place(slot, phase, peer) * shape_.segment_bytes)",
        "--plans",
    ),
    one(
        "count-of-32-bits",
        9,
        "call.h",
        "tile * call.segment_elements * world_size",
        "uint32_t(tile * call.segment_elements * world_size)",
        "--plans",
    ),
    one(
        "region-too-small",
        9,
        "layout.h",
        "uint64_t(shape_.num_slots) * kNumPhases",
        "uint64_t(shape_.num_slots)",
        "--plans",
    ),
    # 10. Exact, deterministic, and the same bits on every rank.
    one(
        "sum-starts-with-oneself",
        10,
        "packet.h",
        "return (W & (W - 1)) == 0 ? step : peer_at<W>(rank, step);",
        "return W > kMaxWorldSize ? rank : step;",
    ),
    one(
        "another-tree",
        10,
        "packet.h",
        TREE,
        TREE.replace("stride = 1; stride < W; stride *= 2", "stride = 2; stride >= 1; stride /= 2"),
    ),
    one(
        "segment-begins-within-a-block",
        10,
        "call.h",
        "round_up(divide_up(left, world_size), kBlock)",
        "divide_up(left, world_size)",
        "--plans",
    ),
    one(
        "own-part-not-coded",
        10,
        "two_shot.h",
        "Codec::template decode<K>(Codec::template encode_raw<K>(exec_, parts.own),\n"
        "                                          values[tree_place<W>(view_.rank, 0)]);",
        "unpack<Type, K>(parts.own, values[tree_place<W>(view_.rank, 0)]);",
    ),
    one(
        "own-part-kept-where-peers-write",
        1,
        "one_shot.h",
        "sync.data(view_.rank, kSecond, peer_at<W>(view_.rank, 1))",
        "sync.data(view_.rank, sync.first(), peer_at<W>(view_.rank, 1))",
    ),
    one(
        "own-result-not-coded",
        10,
        "two_shot.h",
        "store_own(segment, packet, Codec::template decode_raw<K>(encoded), whole);",
        "store_own(segment, packet, pack<Type, K>(values[0]), whole);",
        behind="\n            });\n        sync.publish",
    ),
)
