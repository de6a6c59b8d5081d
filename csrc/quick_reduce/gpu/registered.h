// One-shot straight from the inputs of a captured graph: a start flag, every rank reads its peers' inputs, an end flag.
//
// The named exception to two invariants. Inputs are addresses of the graph, not places of the exchange memory: every
// rank maps its peers' inputs after capture, in a table that the captured kernel reads. And nothing is staged: an input
// must stay as it is until the end flag of every peer, which this kernel awaits, so whatever the graph does next may
// overwrite it. The output must be another tensor.
//
// Flags are the handshake's: the start is the slot's first phase, the end its second; two_shot.h says why none is lost.
#pragma once

#include "../codec_none.h"
#include "../handshake.h"

namespace splitrank::quick_reduce {

template <class Exec, class Type, class Layout, int W>
class Registered {
  public:
    using Sync = Handshake<Exec, Layout, W>;

    // `inputs`: every rank's input as mapped here, by rank; null until the host has exchanged them.
    QR_DEVICE Registered(Exec& exec, const View& view, const Call& call, const void* const* inputs)
        : exec_(exec), view_(view), call_(call), inputs_(inputs) {}

    QR_DEVICE bool run(Sync& sync, uint64_t tile) {
        const void* from[W];  // by distance: from[0] is the own one
        bool known = true;
        QR_UNROLL
        for (uint32_t step = 0; step < W; ++step) {
            from[step] = inputs_[peer_at<W>(view_.rank, step)];
            known = known && from[step] != nullptr;
        }
        if (!known) return sync.refuse();
        sync.publish(sync.first());
        if (!sync.await(sync.first())) return false;
        sum(from, one_shot_segment(call_, tile));
        sync.publish(kSecond);
        return sync.await_unaborted(kSecond);
    }

  private:
    static constexpr int K = Exec::kLaneElements;
    using Raw = RawPacket<Type, K>;
    struct Parts {
        Raw of[W];
    };

    QR_DEVICE void sum(const void* const (&from)[W], const Segment& segment) {
        for_packets(
            exec_, segment.count,
            [&](uint64_t packet, auto whole) {
                Parts parts;
                QR_UNROLL
                for (int step = 0; step < W; ++step)
                    parts.of[step] = load_input<Type, K>(exec_, from[step], segment.begin + packet * K,
                                                         valid_elements<K>(segment.count, packet, whole));
                return parts;
            },
            [&](uint64_t packet, const Parts& parts, auto whole) {
                float values[W][K];
                QR_UNROLL
                for (int step = 0; step < W; ++step)
                    unpack<Type, K>(parts.of[step], values[tree_place<W>(view_.rank, step)]);
                sum_ranks<W, K>(values);
                store_output<Type, K>(exec_, call_.output, segment.begin + packet * K,
                                      valid_elements<K>(segment.count, packet, whole), pack<Type, K>(values[0]));
            });
    }

    Exec& exec_;
    const View& view_;
    const Call& call_;
    const void* const* inputs_;
};

}  // namespace splitrank::quick_reduce
