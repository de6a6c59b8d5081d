#include "plans.h"

#include <algorithm>
#include <vector>

#include "quick_reduce/handshake.h"

namespace interleaving {

namespace {

using namespace splitrank::quick_reduce;

struct Range {
    uint64_t begin, end;
};

bool disjoint(std::vector<Range>& ranges) {
    std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < ranges.size(); ++i)
        if (ranges[i].begin < ranges[i - 1].end) return false;
    return true;
}

// Every flag has a line and every message a place of its own, in the region, beside the abort word; also beyond 4 GiB.
std::string check_layout(const RegionShape& shape) {
    const IsolatedLayout layout(shape);
    std::vector<Range> ranges{{0, sizeof(Control)}};
    for (uint32_t slot = 0; slot < shape.num_slots; ++slot)
        for (uint32_t phase = 0; phase < kNumPhases; ++phase)
            for (uint32_t peer = 0; peer < shape.world_size - 1; ++peer) {
                const uint64_t flag = layout.flag(slot, Phase(phase), peer);
                const uint64_t data = layout.data(slot, Phase(phase), peer);
                ranges.push_back({flag, flag + kLine});
                ranges.push_back({data, data + shape.segment_bytes});
                if (flag % kLine != 0 || data % 128 != 0) return "a flag or a message is not aligned";
            }
    for (uint32_t slot = shape.num_slots; slot < shape.num_slots + shape.num_tagged_slots; ++slot)
        for (const Phase phase : {kFirstEven, kFirstOdd})
            for (uint32_t peer = 0; peer < shape.world_size - 1; ++peer) {
                for (uint32_t row = 0; row < shape.num_rows; ++row) {
                    const uint64_t words = layout.tagged(slot, phase, peer) + row * layout.row_stride();
                    ranges.push_back({words, words + shape.row_bytes});
                    if (words % sizeof(TaggedWord) != 0) return "tagged words are not aligned";
                }
            }
    if (!disjoint(ranges)) return "two places of the layout overlap";
    return ranges.back().end <= layout.num_bytes() ? "" : "a place lies behind the region";
}

// Whatever the uses write: no word of a place gets so old that its tag is that of a later use.
std::string check_ages(uint32_t num_words) {
    constexpr uint64_t kFirst = (uint64_t(1) << kTagBits) + 5;
    std::vector<uint64_t> last[kNumFirstPhases];
    for (std::vector<uint64_t>& of_parity : last) of_parity.assign(num_words, 0);
    for (uint64_t use = kFirst - 2 * num_words; use < kFirst + 4 * num_words; ++use) {
        uint64_t& written = last[use & 1][refreshed_word(use, num_words)];
        if (use >= kFirst && use - written >= uint64_t(1) << kTagBits) return "a word outlives its tag";
        written = use;
    }
    return "";
}

// Packing loses no bit, of 16 to 33 values: all that units have.
template <int D>
std::string check_words() {
    uint32_t values[D], found[D];
    for (int i = 0; i < D; ++i) values[i] = 0x01020304u * uint32_t(i + 1) ^ 0xf0f0f0f0u;
    TaggedWord words[words_for(D)];
    pack_words(values, 0xabcd, words);
    unpack_words(words, found);
    for (const TaggedWord& word : words)
        if (!has_tag(word, 0xabcd)) return "a word lost its tag";
    return std::equal(values, values + D, found) ? "" : "a value does not come through a word";
}

// The segments of all tiles hold each element once, fit into their places, and begin where a block of the codecs does.
std::string check_cut(uint64_t num_elements, uint32_t world_size, uint64_t capacity, uint32_t wanted_slots,
                      bool one_shot) {
    Call call{};
    call.num_elements = num_elements;
    cut_into_tiles(call, one_shot ? 1 : world_size, capacity, wanted_slots, kBlock);
    if (call.num_slots > wanted_slots || call.num_slots == 0) return "a message needs more slots than there are";
    uint64_t next = 0;
    for (uint64_t tile = 0; tile < call.num_tiles; ++tile)
        for (uint32_t owner = 0; owner < (one_shot ? 1 : world_size); ++owner) {
            const Segment segment =
                one_shot ? one_shot_segment(call, tile) : two_shot_segment(call, world_size, tile, owner);
            if (segment.count == 0) continue;
            if (segment.begin != next) return "a message is cut with a gap or an overlap";
            if (segment.begin % kBlock != 0) return "a segment begins within a block";
            if (segment.count > capacity) return "a segment does not fit into its place";
            next = segment.begin + segment.count;
        }
    return next == num_elements ? "" : "a message is not cut to its end";
}

}  // namespace

std::string check_plans() {
    for (const uint32_t num_words : {1u, 2u, 47u, 511u, kMaxPlaceWords})
        if (std::string wrong = check_ages(num_words); !wrong.empty()) return wrong;
    for (const std::string& wrong : {check_words<9>(), check_words<13>(), check_words<16>(), check_words<17>(), check_words<32>()})
        if (!wrong.empty()) return wrong;
    for (const uint32_t world_size : {2u, 3u, 4u, 8u}) {
        for (const uint32_t num_slots : {1u, 2u, 37u, 128u})
            for (const uint64_t segment_bytes : {uint64_t(128), uint64_t(640), uint64_t(1) << 16, uint64_t(1) << 28})
                if (std::string wrong = check_layout(
                        with_tagged_slots({world_size, num_slots, segment_bytes}, num_slots / 3, 12, 512));
                    !wrong.empty())
                    return wrong;
        for (uint64_t num_elements = 1; num_elements < 3000; num_elements += num_elements < 300 ? 1 : 37)
            for (const uint64_t capacity : {32, 96, 512})
                for (const uint32_t slots : {1u, 3u, 8u})
                    for (const bool one_shot : {false, true})
                        if (std::string wrong = check_cut(num_elements, world_size, capacity, slots, one_shot);
                            !wrong.empty())
                            return wrong;
        // More than 2^32 elements: sizes are counted in 64 bits.
        const uint64_t capacity = uint64_t(1) << 30;
        if (std::string wrong = check_cut((uint64_t(5) << 32) + 33, world_size, capacity, 4, false); !wrong.empty())
            return wrong;
    }
    return "";
}

}  // namespace interleaving
