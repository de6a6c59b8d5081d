// Two-shot: every rank sends segment r of a tile to rank r; r sums and sends the result to all. Each element crosses
// the link twice, in 2 (W - 1) / W of the message's bytes a rank.
//
// Nothing is overwritten before it was read. With k the slot's sequence number, on every pair of ranks (a, b):
//  * a's first-phase message k + 1 for b: a has awaited b's second-phase message k, which b sent after it had read a's
//    first-phase message k (and k + 1 lies in the other of two places besides);
//  * b's second-phase message k + 1 for a: b has awaited a's first-phase message k + 1, which a sent after it had read
//    b's second-phase message k.
#pragma once

#include "handshake.h"
#include "packet.h"

namespace splitrank::quick_reduce {

template <class Exec, class Type, class Codec, class Layout, int W>
class TwoShot {
  public:
    using Sync = Handshake<Exec, Layout, W>;

    QR_DEVICE TwoShot(Exec& exec, const View& view, const Call& call)
        : exec_(exec), view_(view), call_(call), capacity_(Codec::capacity(view.shape.segment_bytes)) {}

    // Phase 1: this rank's part of each peer's segment goes to that peer.
    QR_DEVICE void send(Sync& sync, uint64_t tile) {
        for (uint32_t step = 1; step < W; ++step) {
            const uint32_t owner = peer_at<W>(view_.rank, step);  // every rank starts with another peer
            const Segment segment = two_shot_segment(call_, W, tile, owner);
            std::byte* to = sync.data(owner, sync.first(), view_.rank);
            for_packets(
                exec_, segment.count, [&](uint64_t packet, auto whole) { return load_own(segment, packet, whole); },
                [&](uint64_t packet, const Raw& raw, auto whole) {
                    const auto encoded = Codec::template encode_raw<K>(exec_, raw);
                    if (in(segment, packet, whole)) Codec::template store<K>(exec_, to, capacity_, packet, encoded);
                });
        }
        sync.publish(sync.first());
    }

    // Phase 2: sums the own segment and sends the result to all; the own output gets what the peers will decode.
    QR_DEVICE bool reduce(Sync& sync, uint64_t tile) {
        if (!sync.await(sync.first())) return false;
        const Segment segment = two_shot_segment(call_, W, tile, view_.rank);
        for_packets(
            exec_, segment.count, [&](uint64_t packet, auto whole) { return load_all(sync, segment, packet, whole); },
            [&](uint64_t packet, const Parts& parts, auto whole) {
                float values[W][K];
                QR_UNROLL
                for (uint32_t step = 1; step < W; ++step)
                    Codec::template decode<K>(parts.peers[step - 1], values[tree_place<W>(view_.rank, step)]);
                // The own part as the peers would have decoded it.
                Codec::template decode<K>(Codec::template encode_raw<K>(exec_, parts.own),
                                          values[tree_place<W>(view_.rank, 0)]);
                sum_ranks<W, K>(values);
                const auto encoded = Codec::template encode<K>(exec_, values[0]);
                if (!in(segment, packet, whole)) return;
                QR_UNROLL
                for (uint32_t step = 1; step < W; ++step)
                    Codec::template store<K>(exec_, sync.data(peer_at<W>(view_.rank, step), kSecond, view_.rank),
                                             capacity_, packet, encoded);
                store_own(segment, packet, Codec::template decode_raw<K>(encoded), whole);
            });
        sync.publish(kSecond);
        return true;
    }

    // The other ranks' segments arrive.
    QR_DEVICE bool receive(Sync& sync, uint64_t tile) {
        if (!sync.await(kSecond)) return false;
        for (uint32_t step = 1; step < W; ++step) {
            const uint32_t owner = peer_at<W>(view_.rank, step);
            const Segment segment = two_shot_segment(call_, W, tile, owner);
            const std::byte* from = sync.data(view_.rank, kSecond, owner);
            for_packets(
                exec_, segment.count,
                [&](uint64_t packet, auto whole) {
                    return in(segment, packet, whole) ? Codec::template load<K>(exec_, from, capacity_, packet) : Encoded{};
                },
                [&](uint64_t packet, const Encoded& encoded, auto whole) {
                    if (in(segment, packet, whole)) store_own(segment, packet, Codec::template decode_raw<K>(encoded), whole);
                });
        }
        return true;
    }

  private:
    static constexpr int K = Exec::kLaneElements;
    using Raw = RawPacket<Type, K>;
    using Encoded = typename Codec::template Encoded<K>;
    struct Parts {
        Raw own;
        Encoded peers[W - 1];  // by distance
    };

    template <class IsWhole>
    static QR_DEVICE bool in(const Segment& segment, uint64_t packet, IsWhole) {
        return IsWhole::value || packet * K < segment.count;
    }

    template <class IsWhole>
    QR_DEVICE Raw load_own(const Segment& segment, uint64_t packet, IsWhole whole) {
        return load_input<Type, K>(exec_, call_.input, segment.begin + packet * K,
                                   valid_elements<K>(segment.count, packet, whole));
    }
    template <class IsWhole>
    QR_DEVICE void store_own(const Segment& segment, uint64_t packet, const Raw& raw, IsWhole whole) {
        store_output<Type, K>(exec_, call_.output, segment.begin + packet * K,
                              valid_elements<K>(segment.count, packet, whole), raw);
    }
    template <class IsWhole>
    QR_DEVICE Parts load_all(const Sync& sync, const Segment& segment, uint64_t packet, IsWhole whole) {
        Parts parts;
        parts.own = load_own(segment, packet, whole);
        QR_UNROLL
        for (uint32_t step = 1; step < W; ++step) {
            const std::byte* from = sync.data(view_.rank, sync.first(), peer_at<W>(view_.rank, step));
            parts.peers[step - 1] =
                in(segment, packet, whole) ? Codec::template load<K>(exec_, from, capacity_, packet) : Encoded{};
        }
        return parts;
    }

    Exec& exec_;
    const View& view_;
    const Call& call_;
    const uint64_t capacity_;
};

}  // namespace splitrank::quick_reduce
