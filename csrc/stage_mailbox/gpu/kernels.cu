#include "kernels.h"

namespace splitrank::stage_mailbox {

const void* send_kernel() { return reinterpret_cast<const void*>(&mailbox_send_kernel); }
const void* receive_kernel() { return reinterpret_cast<const void*>(&mailbox_receive_kernel); }

}  // namespace splitrank::stage_mailbox
