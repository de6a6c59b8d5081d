// The kernels. Device code only.
#pragma once

#include "../../quick_reduce/gpu/executor.h"
#include "../mailbox.h"
#include "job.h"

#ifndef QR_GRID_CONSTANT
#define QR_GRID_CONSTANT
#endif

namespace splitrank::stage_mailbox {

using GpuLanes = quick_reduce::GpuExecutor<8, 1>;

__global__ void __launch_bounds__(kThreads) mailbox_send_kernel(const QR_GRID_CONSTANT Job job) {
    GpuLanes exec;
    Mailbox<GpuLanes>(exec, job.view, job.message, quick_reduce::gpu::block_index()).send();
}

__global__ void __launch_bounds__(kThreads) mailbox_receive_kernel(const QR_GRID_CONSTANT Job job) {
    GpuLanes exec;
    Mailbox<GpuLanes>(exec, job.view, job.message, quick_reduce::gpu::block_index()).receive();
}

}  // namespace splitrank::stage_mailbox
