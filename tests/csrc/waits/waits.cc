// A wait with a limit on a machine where each yield takes long, as it does beside other work: sched_yield is this one.
#include <sched.h>
#include <time.h>

#include <cstdio>
#include <string>
#include <vector>

#include "stage_mailbox/cpu/host_mailbox.h"

namespace {

constexpr long kYieldNs = 5'000'000;
constexpr uint64_t kLimitNs = 20'000'000;
int num_yields = 0;

}  // namespace

extern "C" int sched_yield() noexcept {
    ++num_yields;
    const timespec time{0, kYieldNs};
    return nanosleep(&time, nullptr);
}

int main() {
    using splitrank::stage_mailbox_cpu::HostMailbox;
    alignas(16) std::byte message[16];
    HostMailbox receiver(0, 2, 1, sizeof(message)), silent(1, 2, 1, sizeof(message));
    const std::vector<std::string> handles{receiver.handle(), silent.handle()};
    receiver.open(handles);
    const bool came = receiver.receive({reinterpret_cast<uint64_t>(message)}, {1, 1, sizeof(message), 256}, kLimitNs);
    const bool is_timeout = !came && receiver.failure()->kind == 1;
    std::printf("{\"is_timeout\": %s, \"yields\": %d}\n", is_timeout ? "true" : "false", num_yields);
}
