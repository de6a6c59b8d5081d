#include "ring.h"

#include <algorithm>
#include <cstring>

namespace mailbox {

using namespace splitrank::stage_mailbox;
using interleaving::FibreExecutor;

namespace {

constexpr std::byte kGarbage{0xee};
constexpr uint64_t kCapacity = 64;
constexpr uint64_t kNever = ~uint64_t(0) / 4;

// Of a direction's message: sizes change, some end in words behind the last packet.
uint64_t part_bytes(uint32_t sender, uint32_t number) { return 4 * (1 + interleaving::mix(number * 8 + sender) % 16); }
uint32_t num_parts(uint32_t sender, uint32_t number) { return 1 + (sender + number) % 2; }

}  // namespace

const char* name(Fault fault) {
    switch (fault) {
        case Fault::kNone: return "none";
        case Fault::kDeadStage: return "dead-stage";
        case Fault::kOtherHeader: return "other-header";
        case Fault::kMissingMessage: return "missing-message";
        case Fault::kHostGivesUp: return "host-gives-up";
        case Fault::kImpatience: return "impatience";
        case Fault::kCount: break;
    }
    return "?";
}

// The first stage sends states and receives tokens, those between pass states on, the last receives and sends tokens.
Plan make_plan(Fault fault, Random& random) {
    Plan plan{};
    plan.num_stages = random.between(2, 3);
    plan.num_places = random.between(1, plan.num_stages + 1);
    plan.num_blocks = random.between(1, 3);
    plan.num_lanes = random.between(1, 3);
    plan.num_messages = random.between(1, 3 * plan.num_places + 2);
    plan.ahead = random.between(0, plan.num_places);
    plan.first_sequence = random.chance(0.2) ? (uint64_t(1) << 32) - 2 : 0;
    const bool has_limit = fault != Fault::kNone && fault != Fault::kHostGivesUp;
    plan.timeout_ns = fault == Fault::kImpatience ? 1 : has_limit ? uint64_t(20) * Scheduler::kIdleNs : kNever;
    plan.fault = fault;
    plan.culprit = random.below(plan.num_stages);
    plan.first_to_give_up = random.below(plan.num_stages);
    plan.programs.resize(plan.num_stages);
    for (uint32_t stage = 0; stage < plan.num_stages; ++stage) {
        std::vector<Operation>& program = plan.programs[stage];
        for (uint32_t number = 0; number < plan.num_messages; ++number) {
            if (stage != 0) program.push_back({false, number, false});
            program.push_back({true, number, false});
            if (stage == 0 && number >= plan.ahead) program.push_back({false, number - plan.ahead, false});
        }
        for (uint32_t left = plan.ahead < plan.num_messages ? plan.num_messages - plan.ahead : 0;
             stage == 0 && left < plan.num_messages; ++left)
            program.push_back({false, left, false});
    }
    std::vector<Operation>& program = plan.programs[plan.culprit];
    const uint32_t chosen = random.below(uint32_t(program.size()));
    if (fault == Fault::kOtherHeader) program[chosen].differs = true;
    if (fault == Fault::kMissingMessage) program.erase(program.begin() + chosen);
    return plan;
}

Ring::Ring(Scheduler& scheduler, const Plan& plan) : scheduler_(scheduler), plan_(plan), stages_(plan.num_stages) {
    for (uint32_t stage = 0; stage < plan_.num_stages; ++stage) make_stage(stage);
    for (uint32_t stage = 0; stage < plan_.num_stages; ++stage) {
        View& view = *stages_[stage].view;
        view.own = stages_[stage].region.data();
        view.previous = stages_[(stage + plan_.num_stages - 1) % plan_.num_stages].region.data();
        view.next = stages_[(stage + 1) % plan_.num_stages].region.data();
    }
}

void Ring::make_stage(uint32_t number) {
    Stage& stage = stages_[number];
    const Layout layout(plan_.num_places, kCapacity);
    stage.region.resize(layout.num_bytes());
    stage.sent.sequence = stage.received.sequence = plan_.first_sequence;
    std::memcpy(stage.region.data() + kCreditOffset, &plan_.first_sequence, sizeof(uint64_t));
    stage.view = std::make_unique<View>(View{nullptr, nullptr, nullptr, &stage.sent, &stage.received, &stage.failure,
                                             &stage.host_abort, number, plan_.num_stages, layout, layout});
    stage.blocks.resize(plan_.num_blocks);
    for (interleaving::Block& block : stage.blocks) block.reset(plan_.num_lanes);
    for (const Operation& operation : plan_.programs[number]) stage.calls.push_back(make_call(number, operation));
}

std::vector<std::byte> Ring::contents(uint32_t sender, uint32_t number, uint32_t part) const {
    std::vector<std::byte> bytes(part_bytes(sender, number));
    Random random(number * 64 + sender * 2 + part);
    for (std::byte& byte : bytes) byte = std::byte(random.below(256));
    return bytes;
}

Ring::Call Ring::make_call(uint32_t stage, const Operation& operation) const {
    const uint32_t sender = operation.sends ? stage : (stage + plan_.num_stages - 1) % plan_.num_stages;
    Call call;
    call.operation = operation;
    Message& message = call.message;
    message = {};
    message.num_parts = num_parts(sender, operation.number);
    message.num_blocks = 1 + (operation.number + sender) % plan_.num_blocks;
    message.timeout_ns = plan_.timeout_ns;
    const uint64_t bytes = part_bytes(sender, operation.number);
    message.header = {operation.number, interleaving::mix(operation.number), bytes, message.num_parts};
    if (operation.differs) ++(operation.number % 2 ? message.header.plan_hash : message.header.step);
    for (uint32_t part = 0; part < message.num_parts; ++part) {
        call.buffers[part].assign(bytes, kGarbage);
        message.parts[part] = call.buffers[part].data();  // vectors keep their memory when they are moved
    }
    return call;
}

// Before a call starts on its stream: now, and not earlier, what it sends is there.
void Ring::begin(Stage& stage) {
    stage.arrived = 0;
    if (stage.current == stage.calls.size()) return;
    Call& call = stage.calls[stage.current];
    const auto number = uint32_t(&stage - stages_.data());
    for (uint32_t part = 0; call.operation.sends && part < call.message.num_parts; ++part) {
        const std::vector<std::byte> bytes = contents(number, call.operation.number, part);
        std::copy(bytes.begin(), bytes.end(), call.buffers[part].begin());
    }
}

// A kernel has ended: what it received is compared, what it sent is overwritten, the next one begins.
void Ring::end(uint32_t number) {
    Stage& stage = stages_[number];
    Call& call = stage.calls[stage.current];
    call.ended = true;
    const uint32_t sender = (number + plan_.num_stages - 1) % plan_.num_stages;
    for (uint32_t part = 0; part < call.message.num_parts; ++part) {
        std::vector<std::byte>& buffer = call.buffers[part];
        if (!call.operation.sends) call.right &= buffer == contents(sender, call.operation.number, part);
        std::fill(buffer.begin(), buffer.end(), kGarbage);
    }
    ++stage.current;
    begin(stage);
    for (uint32_t fibre = 0; fibre < num_fibres(); ++fibre) scheduler_.wake(stage.first_fibre + fibre);
}

void Ring::run_lane(uint32_t number, uint32_t block, uint32_t lane) {
    Stage& stage = stages_[number];
    FibreExecutor exec(scheduler_, stage.blocks[block], lane);
    for (size_t place = 0; place < stage.calls.size(); ++place) {
        while (stage.current != place) scheduler_.block();
        Call& call = stage.calls[place];
        if (block < call.message.num_blocks) {
            Mailbox<FibreExecutor> mailbox(exec, *stage.view, call.message, block);
            const bool ok = call.operation.sends ? mailbox.send() : mailbox.receive();
            if (lane == 0) call.blocks_good += ok;
        }
        scheduler_.drain_own();  // a kernel ends
        if (++stage.arrived == num_fibres()) end(number);
    }
    scheduler_.finish();
}

void Ring::arm_fault(Random& random) {
    const uint64_t step = random.below(1u << random.between(3, 12));
    if (plan_.fault == Fault::kDeadStage) scheduler_.kill_rank_at(plan_.culprit, step);
    if (plan_.fault == Fault::kImpatience) scheduler_.make_restless(plan_.culprit);
    if (plan_.fault == Fault::kHostGivesUp) {
        // The culprit lacks its last message, so that somebody waits; one of those gives up, and all others must hear of it.
        stages_[plan_.culprit].calls.pop_back();
        scheduler_.when_all_wait([this] {
            for (uint32_t i = 0; i < plan_.num_stages; ++i) {
                const uint32_t stage = (plan_.first_to_give_up + i) % plan_.num_stages;
                if (stages_[stage].current < stages_[stage].calls.size()) {
                    stages_[stage].host_abort = 1 + stage;
                    return;
                }
            }
        });
    }
}

std::string Ring::check_call(uint32_t number, const Call& call) const {
    const bool good = call.ended && call.blocks_good == call.message.num_blocks;
    const std::string where = "stage " + std::to_string(number) + (call.operation.sends ? ", sent " : ", received ") +
                              std::to_string(call.operation.number) + ": ";
    if (!good) return plan_.fault == Fault::kNone ? where + "failed though nothing was wrong" : "";
    if (call.operation.sends) return "";
    if (call.operation.differs) return where + "reports success though the headers differ";
    return call.right ? "" : where + "wrong data";
}

std::string Ring::check(Verdict verdict) {
    if (verdict != Verdict::kFinished) return verdict == Verdict::kHang ? "hang" : "too long";
    bool any_failed = false, all_failed = true;
    for (uint32_t number = 0; number < plan_.num_stages; ++number) {
        const Stage& stage = stages_[number];
        if (!alive(number)) continue;
        const bool failed = stage.failure.kind != 0;
        if (failed && (stage.failure.complete != 1 || stage.failure.stage != number))
            return "stage " + std::to_string(number) + ": its failure record makes no sense";
        if (failed) outcome_.failure_kinds |= 1u << stage.failure.kind;
        any_failed |= failed;
        all_failed &= failed;
        bool before_was_good = true;
        for (const Call& call : stage.calls) {
            if (const std::string wrong = check_call(number, call); !wrong.empty()) return wrong;
            const bool good = call.blocks_good == call.message.num_blocks;
            ++(good ? outcome_.good : outcome_.failed);
            if (good && !before_was_good) return "stage " + std::to_string(number) + ": a message after a failed one";
            before_was_good = good;
            if (!good && !failed) return "stage " + std::to_string(number) + ": failed without a record";
        }
    }
    if (plan_.fault == Fault::kOtherHeader && !any_failed) return "another header went unnoticed";
    return "";
}

Outcome Ring::run(Random& random) {
    scheduler_.reset(random.next(), plan_.num_stages);
    arm_fault(random);
    uint32_t fibres = 0;
    for (uint32_t number = 0; number < plan_.num_stages; ++number) {
        stages_[number].first_fibre = fibres;
        fibres += num_fibres();
        for (uint32_t block = 0; block < plan_.num_blocks; ++block)
            for (uint32_t lane = 0; lane < plan_.num_lanes; ++lane)
                scheduler_.add(number, [this, number, block, lane] { run_lane(number, block, lane); });
        begin(stages_[number]);
    }
    outcome_.violation = check(scheduler_.run());
    return outcome_;
}

}  // namespace mailbox
