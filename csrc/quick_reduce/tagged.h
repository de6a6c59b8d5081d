// One-shot whose words bring their own flags along (tagged_word.h): no fence between data and flag, no flag to wait for
// before the data is read, and each word is summed when it arrives, while the next ones are on the link. It costs a
// quarter more traffic than one-shot, and a place for the whole message in the exchange memory.
//
// A slot is used once a call, by one block. Its part of the message is cut into units, what one lane moves at once; the
// lanes of a wave take neighbouring packets, so that every access of a wave is to one piece of memory. Which element is
// where depends on nothing but the wave's width.
//
// A word is right when its tag is: both came with one store. Slots and places are apart from all others (layout.h), so
// that what lies where a tag is looked for always was a tag. The end of a kernel, and not a fence, stands between the
// reads of use k, this rank's words of use k + 1, and the writes of use k + 2 by a peer that has seen the header of k + 1.
#pragma once

#include "handshake.h"

namespace splitrank::quick_reduce {

template <class Exec, class Type, class Codec, class Layout, int W>
class Tagged {
  public:
    using Sync = Handshake<Exec, Layout, W>;

    QR_DEVICE Tagged(Exec& exec, const View& view, const Call& call, uint32_t tile)
        : exec_(exec), view_(view), call_(call) {
        const Segment segment = one_shot_segment(call, tile);
        begin_ = segment.begin;
        count_ = uint32_t(segment.count);
    }

    // The slot's only use in this call, from its ticket to its end. False: somebody failed, and it is on record.
    QR_DEVICE bool run(Sync& sync) {
        const uint32_t num_units = (count_ + kWave * Unit::kElements - 1) / (kWave * Unit::kElements) * kWave;
        const uint32_t lane = exec_.lane(), stride = exec_.num_lanes();
        uint32_t own[kAhead + 1][D] = {};  // of the last units that were sent, the newest first
        Raw raw[P];
        bool ok = true;
        // The slot's number and the first of the input come from memory at the same time.
        sync.claim();
        load_own(lane, raw);
        if (!sync.settle()) return false;
        sync.announce(num_units / kWave * N);
        for (uint32_t sent = lane, summed = lane; summed < num_units; sent += stride) {
            QR_UNROLL
            for (int i = kAhead * D - 1; i >= 0; --i) own[i / D + 1][i % D] = own[i / D][i % D];
            if (sent < num_units) {
                encode(raw, own[0]);
                send(sync, sent, own[0]);
            }
            if (sent + stride < num_units) load_own(sent + stride, raw);
            if (sent < summed + kAhead * stride) continue;
            // Lanes that share a scale stay together: one that gave up goes on without waiting.
            ok = sum(sync, summed, own[kAhead], ok);
            summed += stride;
        }
        return sync.end_if(ok);
    }

  private:
    static constexpr int K = Exec::kLaneElements;
    static constexpr uint32_t kWave = Exec::kWave;
    static constexpr int kAhead = 1;  // units on their way while one is summed
    using Unit = TaggedUnit<Codec, K>;
    static constexpr int P = Unit::kPackets, D = Unit::kValues, N = Unit::kWords;
    using Raw = RawPacket<Type, K>;
    using Encoded = typename Codec::template Encoded<K>;

    // First packets of a wave's units, then second packets, ...; and its words likewise, a row each.
    QR_DEVICE uint32_t element(uint32_t unit, int packet) const {
        return ((unit / kWave * P + packet) * kWave + unit % kWave) * K;
    }
    // Of the words of `unit` at `place`, number `n`.
    static QR_DEVICE TaggedWord* word(const Sync& sync, std::byte* place, uint32_t unit, int n) {
        return sync.word(place, unit / kWave * N + n, unit % kWave);
    }
    QR_DEVICE bool is_whole(uint32_t unit) const { return (unit / kWave + 1) * (kWave * Unit::kElements) <= count_; }
    QR_DEVICE uint32_t valid(uint32_t unit, int packet) const {
        const uint32_t first = element(unit, packet);
        return count_ > first ? count_ - first : 0;
    }

    // Two loops, so that no load of a whole unit waits for another.
    QR_DEVICE void load_own(uint32_t unit, Raw (&raw)[P]) {
        if (is_whole(unit)) {
            QR_UNROLL
            for (int packet = 0; packet < P; ++packet)
                raw[packet] = load_input<Type, K>(exec_, call_.input, begin_ + element(unit, packet), K);
        } else {
            QR_UNROLL
            for (int packet = 0; packet < P; ++packet)
                raw[packet] = load_input<Type, K>(exec_, call_.input, begin_ + element(unit, packet), valid(unit, packet));
        }
    }

    // `own`: what the peers will have.
    QR_DEVICE void encode(const Raw (&raw)[P], uint32_t (&own)[D]) {
        Encoded packets[P];
        QR_UNROLL
        for (int packet = 0; packet < P; ++packet) packets[packet] = Codec::template encode_raw<K>(exec_, raw[packet]);
        Codec::template pack_unit<K>(exec_, packets, own);
    }

    QR_DEVICE void send(const Sync& sync, uint32_t unit, const uint32_t (&own)[D]) {
        TaggedWord words[N];
        pack_words(own, sync.tag(), words);
        QR_UNROLL
        for (uint32_t step = 1; step < W; ++step) {
            std::byte* to = sync.tagged(peer_at<W>(view_.rank, step), view_.rank);
            QR_UNROLL
            for (int n = 0; n < N; ++n) exec_.store_tagged(word(sync, to, unit, n), words[n]);
        }
    }

    QR_DEVICE bool sum(Sync& sync, uint32_t unit, const uint32_t (&own)[D], bool ok) {
        Encoded parts[W][P];  // by distance
        Codec::template unpack_unit<K>(exec_, own, parts[0]);
        QR_UNROLL
        for (uint32_t step = 1; step < W; ++step) {
            TaggedWord words[N]{};
            ok = receive(sync, unit, peer_at<W>(view_.rank, step), words, ok);
            uint32_t values[D];
            unpack_words(words, values);
            Codec::template unpack_unit<K>(exec_, values, parts[step]);
        }
        const bool whole = is_whole(unit);
        QR_UNROLL
        for (int packet = 0; packet < P; ++packet) {
            float values[W][K];
            QR_UNROLL
            for (uint32_t step = 0; step < W; ++step)
                Codec::template decode<K>(parts[step][packet], values[tree_place<W>(view_.rank, step)]);
            sum_ranks<W, K>(values);
            if (ok)
                store_output<Type, K>(exec_, call_.output, begin_ + element(unit, packet),
                                      whole ? K : valid(unit, packet), pack<Type, K>(values[0]));
        }
        return ok;
    }

    // All words of a unit are asked for at once, and again until all have come. Not at all if `ok` is false.
    QR_DEVICE bool receive(Sync& sync, uint32_t unit, uint32_t peer, TaggedWord (&words)[N], bool ok) {
        std::byte* from = sync.tagged(view_.rank, peer);
        const auto have_come = [&] {
            QR_UNROLL
            for (int n = 0; n < N; ++n) words[n] = exec_.load_tagged(word(sync, from, unit, n));
            bool all = true;
            QR_UNROLL
            for (int n = 0; n < N; ++n) all = all && has_tag(words[n], sync.tag());
            return all;
        };
        return ok && sync.await_words(peer, have_come);
    }

    Exec& exec_;
    const View& view_;
    const Call& call_;
    uint64_t begin_;  // of the block's part of the message
    uint32_t count_;  // elements; fewer than a place holds
};

}  // namespace splitrank::quick_reduce
