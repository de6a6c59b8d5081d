// One-shot whose words bring their flags along: 8 bytes of the message and the slot's flag in one store of 16 bytes.
//
// So there is no fence between data and flag, and no flag to wait for before the data is read: a rank polls the words
// themselves. It doubles the traffic, which small messages do not feel, and saves what they mostly consist of.
//
// A word is right when its flag is: both came with one store. Places are apart from all others (layout.h), so that
// what lies where a flag is looked for always was a flag. A slot is used once a call: the end of a kernel, and not a
// fence, stands between the reads of use k, this rank's words of use k + 1, and the writes of use k + 2 by a peer that
// has seen them.
#pragma once

#include "codec_none.h"
#include "handshake.h"

namespace splitrank::quick_reduce {

// Elements that a place of so many bytes holds.
QR_FN uint64_t tagged_capacity(DType dtype, uint64_t tagged_bytes) {
    return tagged_bytes / sizeof(TaggedWord) * 8 / element_bytes(dtype) / kBlock * kBlock;
}

template <class Exec, class Type, class Layout, int W>
class Tagged {
  public:
    using Sync = Handshake<Exec, Layout, W>;

    QR_DEVICE Tagged(Exec& exec, const View& view, const Call& call, uint32_t tile)
        : exec_(exec), view_(view), call_(call), segment_(one_shot_segment(call, tile)) {}

    // Before the slot is claimed: its number and the input come from memory at the same time.
    QR_DEVICE void prefetch() { own_ = load_own(exec_.lane()); }

    QR_DEVICE bool run(Sync& sync) {
        const uint64_t num_packets = divide_up(segment_.count, K);
        for (uint64_t packet = exec_.lane(); packet < num_packets; packet += exec_.num_lanes())
            send(sync, packet, own(packet));
        bool ok = true;
        for (uint64_t packet = exec_.lane(); packet < num_packets && ok; packet += exec_.num_lanes())
            ok = sum(sync, packet);
        return exec_.all(ok);
    }

  private:
    static constexpr int K = Exec::kLaneElements;
    static constexpr int kWords = int(sizeof(RawPacket<Type, K>) / 8);
    using Raw = RawPacket<Type, K>;
    struct Pieces {
        uint64_t of[kWords];
    };

    QR_DEVICE Raw load_own(uint64_t packet) {
        return load_input<Type, K>(exec_, call_.input, segment_.begin + packet * K, valid(packet));
    }
    QR_DEVICE Raw own(uint64_t packet) { return packet == exec_.lane() ? own_ : load_own(packet); }
    QR_DEVICE uint64_t valid(uint64_t packet) const {
        return valid_elements<K>(segment_.count, packet, Whole<false>());
    }

    // First words of all packets, then second words, ...: neighbouring lanes write neighbouring words.
    QR_DEVICE uint64_t index(uint64_t packet, int word) const {
        return uint64_t(word) * (view_.shape.tagged_bytes / (sizeof(TaggedWord) * kWords)) + packet;
    }

    QR_DEVICE void send(const Sync& sync, uint64_t packet, const Raw& raw) {
        const Pieces pieces = bit_cast<Pieces>(raw);
        QR_UNROLL
        for (uint32_t step = 1; step < W; ++step) {
            TaggedWord* to = sync.tagged(peer_at<W>(view_.rank, step), view_.rank);
            QR_UNROLL
            for (int word = 0; word < kWords; ++word)
                exec_.store_tagged(to + index(packet, word), sync.tag(pieces.of[word]));
        }
    }

    QR_DEVICE bool sum(Sync& sync, uint64_t packet) {
        Raw parts[W];
        parts[0] = own(packet);
        bool ok = true;
        QR_UNROLL
        for (uint32_t step = 1; step < W; ++step) ok = receive(sync, packet, peer_at<W>(view_.rank, step), parts[step]) && ok;
        float values[W][K];
        QR_UNROLL
        for (uint32_t step = 0; step < W; ++step) unpack<Type, K>(parts[step], values[tree_place<W>(view_.rank, step)]);
        sum_ranks<W, K>(values);
        if (ok)
            store_output<Type, K>(exec_, call_.output, segment_.begin + packet * K, valid(packet),
                                  pack<Type, K>(values[0]));
        return ok;
    }

    // All words are asked for before the first is looked at.
    QR_DEVICE bool receive(Sync& sync, uint64_t packet, uint32_t peer, Raw& raw) {
        const TaggedWord* from = sync.tagged(view_.rank, peer);
        TaggedWord words[kWords];
        QR_UNROLL
        for (int word = 0; word < kWords; ++word) words[word] = exec_.load_tagged(from + index(packet, word));
        bool ok = true;
        Pieces pieces;
        QR_UNROLL
        for (int word = 0; word < kWords; ++word) {
            if (ok && !sync.has_come(words[word])) ok = sync.await_word(from + index(packet, word), peer, words[word]);
            pieces.of[word] = words[word].data;
        }
        raw = bit_cast<Raw>(pieces);
        return ok;
    }

    Exec& exec_;
    const View& view_;
    const Call& call_;
    const Segment segment_;
    Raw own_{};
};

}  // namespace splitrank::quick_reduce
