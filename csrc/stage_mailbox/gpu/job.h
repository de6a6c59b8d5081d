// What a launch hands to the kernels.
#pragma once

#include "../mailbox.h"

namespace splitrank::stage_mailbox {

constexpr uint32_t kThreads = 512;
// Blocks do not wait for each other, so any number is right. These have 512 KiB on their way, enough for a link.
constexpr uint32_t kMaxBlocks = 64;

struct Job {
    View view;
    Message message;
};

// Kernels' addresses for a launch.
const void* send_kernel();
const void* receive_kernel();

}  // namespace splitrank::stage_mailbox
