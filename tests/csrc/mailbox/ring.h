// A ring of stages on fibres: each sends and receives messages in the order of its program, as its stream would; what was
// received is compared bit by bit, and what must hold after a fault is checked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../interleaving/fibre_executor.h"
#include "../interleaving/scheduler.h"
#include "stage_mailbox/mailbox.h"

namespace mailbox {

using interleaving::Random;
using interleaving::Scheduler;
using interleaving::Verdict;

enum class Fault : uint32_t { kNone, kDeadStage, kOtherHeader, kMissingMessage, kHostGivesUp, kImpatience, kCount };
const char* name(Fault fault);

// One message of a stage's program.
struct Operation {
    bool sends;
    uint32_t number;  // of the messages in its direction, from 0
    bool differs;     // this side means another message
};

struct Plan {
    uint32_t num_stages, num_places, num_blocks, num_lanes, num_messages;
    uint32_t ahead;  // messages that the first stage sends before it awaits the first token
    uint64_t first_sequence;
    uint64_t timeout_ns;
    Fault fault;
    uint32_t culprit, first_to_give_up;
    std::vector<std::vector<Operation>> programs;  // by stage
};
Plan make_plan(Fault fault, Random& random);

struct Outcome {
    std::string violation;  // empty: none
    uint64_t good = 0, failed = 0;
    uint32_t failure_kinds = 0;  // bit k: some stage has recorded kind k
};

class Ring {
  public:
    Ring(Scheduler& scheduler, const Plan& plan);
    Outcome run(Random& random);

  private:
    using Message = splitrank::stage_mailbox::Message;

    struct Call {
        Operation operation;
        Message message;
        std::vector<std::byte> buffers[2];
        uint32_t blocks_good = 0;
        bool ended = false;
        bool right = true;  // what was received
    };
    struct Stage {
        std::vector<std::byte> region;
        splitrank::stage_mailbox::Counter sent{}, received{};
        splitrank::stage_mailbox::Failure failure{};
        uint64_t host_abort = 0;
        std::unique_ptr<splitrank::stage_mailbox::View> view;
        std::vector<Call> calls;
        std::vector<interleaving::Block> blocks;
        uint32_t first_fibre = 0, arrived = 0;
        size_t current = 0;
    };

    void make_stage(uint32_t stage);
    Call make_call(uint32_t stage, const Operation& operation) const;
    void begin(Stage& stage);
    void end(uint32_t number);
    void run_lane(uint32_t stage, uint32_t block, uint32_t lane);
    std::vector<std::byte> contents(uint32_t sender, uint32_t number, uint32_t part) const;
    void arm_fault(Random& random);
    std::string check(Verdict verdict);
    std::string check_call(uint32_t stage, const Call& call) const;
    bool alive(uint32_t stage) const { return plan_.fault != Fault::kDeadStage || stage != plan_.culprit; }
    uint32_t num_fibres() const { return plan_.num_blocks * plan_.num_lanes; }

    Scheduler& scheduler_;
    const Plan plan_;
    std::vector<Stage> stages_;
    Outcome outcome_;
};

}  // namespace mailbox
