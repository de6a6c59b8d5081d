// Where things lie in a stage's region, which the stage before writes messages to and the stage behind acknowledges in.
//
//   control  abort word                                   raised by this stage or a neighbour, lowered by nobody
//   credit   how many of its own messages were read       written by the next stage
//   flags    place 0: sequence number | header            written by the stage before, a line a place
//            place 1: ...
//   data     place 0: part 0 | part 1
//            place 1: ...
//
// Message k lies in place k mod num_places. Addresses depend on (place, part) and on nothing else, least of all on a size.
#pragma once

#include "../quick_reduce/portability.h"

namespace splitrank::stage_mailbox {

using quick_reduce::round_up;

constexpr uint64_t kLine = 64;           // bytes of a flag's own cache line
constexpr uint32_t kMaxParts = 2;        // tensors of a message
constexpr uint64_t kPartAlignment = 16;  // of tensors, and of the parts' places
constexpr uint64_t kCreditOffset = kLine;
constexpr uint64_t kFlagsOffset = 4096;

// What sender and receiver must agree on; it lies behind the flag. Four words, each written and compared by itself.
struct Header {
    uint64_t step;
    uint64_t plan_hash;
    uint64_t part_bytes;  // of each part
    uint64_t kind;        // parts << 8 | code of their dtype
};
constexpr uint32_t kHeaderWords = sizeof(Header) / sizeof(uint64_t);

class Layout {
  public:
    QR_FN Layout(uint32_t num_places, uint64_t part_capacity) : num_places_(num_places), part_capacity_(part_capacity) {}

    QR_FN uint32_t place(uint64_t sequence) const { return uint32_t(sequence % num_places_); }
    QR_FN uint64_t flag(uint32_t place) const { return kFlagsOffset + place * kLine; }
    QR_FN uint64_t header(uint32_t place) const { return flag(place) + sizeof(uint64_t); }
    QR_FN uint64_t data(uint32_t place, uint32_t part) const {
        return data_begin() + (uint64_t(place) * kMaxParts + part) * part_capacity_;
    }
    QR_FN uint64_t num_bytes() const { return data_begin() + uint64_t(num_places_) * kMaxParts * part_capacity_; }
    QR_FN uint32_t num_places() const { return num_places_; }
    QR_FN uint64_t part_capacity() const { return part_capacity_; }

  private:
    QR_FN uint64_t data_begin() const { return round_up(kFlagsOffset + num_places_ * kLine, 4096); }

    uint32_t num_places_;
    uint64_t part_capacity_;  // bytes; a multiple of kPartAlignment
};

}  // namespace splitrank::stage_mailbox
