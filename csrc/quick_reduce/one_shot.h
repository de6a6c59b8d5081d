// One-shot: every rank sends its whole tile to all, and all sum. One handshake instead of two: for small messages; and
// between two ranks for every message with a codec, since two-shot would send as many bytes (half of them twice), and
// code the sum besides. Every rank adds what all have decoded, its own part as well: the bits agree.
//
// The own part is coded once and kept meanwhile in the slot's second-phase place on the own rank. A peer writes there
// after it has awaited the own first-phase message of a later use, which follows the reduction of this one.
//
// Nothing is overwritten before it was read: message k + 2 takes the place of message k (layout.h), and its writer has
// awaited the reader's message k + 1, which the reader sent after it had read message k.
#pragma once

#include "handshake.h"
#include "packet.h"

namespace splitrank::quick_reduce {

// With a codec and more ranks, two-shot sends less.
template <class Codec, int W>
constexpr bool kHasOneShot = Codec::kKind == CodecKind::kNone || W == 2;

template <class Exec, class Type, class Codec, class Layout, int W>
class OneShot {
  public:
    using Sync = Handshake<Exec, Layout, W>;

    QR_DEVICE OneShot(Exec& exec, const View& view, const Call& call)
        : exec_(exec), view_(view), call_(call), capacity_(Codec::capacity(view.shape.segment_bytes)) {}

    QR_DEVICE void send(Sync& sync, uint64_t tile) {
        const Segment segment = one_shot_segment(call_, tile);
        for_packets(
            exec_, segment.count, [&](uint64_t packet, auto whole) { return load_own(segment, packet, whole); },
            [&](uint64_t packet, const Raw& raw, auto whole) {
                const auto encoded = Codec::template encode_raw<K>(exec_, raw);
                if (!in(segment, packet, whole)) return;
                QR_UNROLL
                for (uint32_t step = 1; step < W; ++step) {
                    const uint32_t peer = peer_at<W>(view_.rank, step);
                    std::byte* to = sync.data(peer, sync.first(), view_.rank);
                    Codec::template store<K>(exec_, to, capacity_, packet, encoded);
                }
                if constexpr (kIsCoded) Codec::template store<K>(exec_, kept(sync), capacity_, packet, encoded);
            });
        sync.publish(sync.first());
    }

    QR_DEVICE bool reduce(Sync& sync, uint64_t tile) {
        if (!sync.await(sync.first())) return false;
        const Segment segment = one_shot_segment(call_, tile);
        for_packets(
            exec_, segment.count, [&](uint64_t packet, auto whole) { return load_all(sync, segment, packet, whole); },
            [&](uint64_t packet, const Parts& parts, auto whole) {
                float values[W][K];
                QR_UNROLL
                for (uint32_t step = 1; step < W; ++step)
                    Codec::template decode<K>(parts.peers[step - 1], values[tree_place<W>(view_.rank, step)]);
                Codec::template decode<K>(parts.own, values[tree_place<W>(view_.rank, 0)]);
                sum_ranks<W, K>(values);
                store_output<Type, K>(exec_, call_.output, segment.begin + packet * K,
                                      valid_elements<K>(segment.count, packet, whole), pack<Type, K>(values[0]));
            });
        return true;
    }

  private:
    static constexpr int K = Exec::kLaneElements;
    static constexpr bool kIsCoded = Codec::kKind != CodecKind::kNone;
    using Raw = RawPacket<Type, K>;
    using Encoded = typename Codec::template Encoded<K>;
    struct Parts {
        Encoded own;
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
    // As the peers get it.
    template <class IsWhole>
    QR_DEVICE Encoded load_own_coded(const Sync& sync, const Segment& segment, uint64_t packet, IsWhole whole) {
        if constexpr (kIsCoded)
            return in(segment, packet, whole) ? Codec::template load<K>(exec_, kept(sync), capacity_, packet)
                                              : Encoded{};
        else
            return load_own(segment, packet, whole);
    }
    QR_DEVICE std::byte* kept(const Sync& sync) const {
        return sync.data(view_.rank, kSecond, peer_at<W>(view_.rank, 1));
    }
    template <class IsWhole>
    QR_DEVICE Parts load_all(const Sync& sync, const Segment& segment, uint64_t packet, IsWhole whole) {
        Parts parts;
        parts.own = load_own_coded(sync, segment, packet, whole);
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
