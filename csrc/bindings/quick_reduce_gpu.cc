// splitrank._quick_reduce_gpu, for CUDA or HIP. Tensors come as addresses: comm/ has checked what they are.
#include "quick_reduce_gpu.h"

#include "../stage_mailbox/gpu/device_mailbox.h"
#include "stage_mailbox.h"

namespace py = pybind11;

namespace {

using splitrank::stage_mailbox::Header;
using splitrank::stage_mailbox_gpu::DeviceMailbox;
using Parts = std::vector<uint64_t>;

void bind_device_mailbox(py::module_& module) {
    const auto send = [](DeviceMailbox& self, const Parts& parts, const Header& header, uint64_t timeout_ns,
                         uint64_t stream) { return self.send(parts, header, timeout_ns, stream); };
    const auto receive = [](DeviceMailbox& self, const Parts& parts, const Header& header, uint64_t timeout_ns,
                            uint64_t stream) { return self.receive(parts, header, timeout_ns, stream); };
    splitrank::bindings::bind_mailbox<DeviceMailbox>(module, send, receive)
        .def(py::init<uint32_t, uint32_t, uint32_t, uint64_t, int>(), py::arg("stage"), py::arg("num_stages"),
             py::arg("num_places"), py::arg("part_capacity"), py::arg("device") = 0)
        .def("leave", &DeviceMailbox::leave, py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_quick_reduce_gpu, module) {
    splitrank::bindings::bind_gpu_communicator(module);
    bind_device_mailbox(module);
}
