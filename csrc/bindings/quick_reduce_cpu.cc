// splitrank._quick_reduce_cpu. Tensors come as addresses: comm/ has checked what they are.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../quick_reduce/cpu/communicator.h"
#include "../stage_mailbox/cpu/host_mailbox.h"
#include "common.h"
#include "stage_mailbox.h"

namespace py = pybind11;
using splitrank::quick_reduce_cpu::Communicator;
using splitrank::stage_mailbox::Header;
using splitrank::stage_mailbox_cpu::HostMailbox;

namespace {

std::unique_ptr<Communicator> make(uint32_t rank, uint32_t world_size, uint32_t num_slots, uint64_t segment_bytes,
                                   int device, const std::string& instruction_set) {
    if (device != 0) throw std::invalid_argument("a host has one device, 0, not " + std::to_string(device));
    return std::make_unique<Communicator>(rank, world_size, num_slots, segment_bytes, instruction_set);
}

bool all_reduce(Communicator& self, uint64_t input, uint64_t output, uint64_t num_elements, uint32_t dtype,
                uint32_t codec, uint32_t algorithm, uint64_t timeout_ns, uint64_t stream) {
    if (stream != 0) throw std::invalid_argument("a host has no streams");
    const py::gil_scoped_release others_may_run;
    return self.all_reduce(input, output, num_elements, dtype, codec, algorithm, timeout_ns);
}

void check_host(int device, uint64_t stream) {
    if (device != 0) throw std::invalid_argument("a host has one device, 0, not " + std::to_string(device));
    if (stream != 0) throw std::invalid_argument("a host has no streams");
}

void bind_host_mailbox(py::module_& module) {
    using Parts = std::vector<uint64_t>;
    const auto send = [](HostMailbox& self, const Parts& parts, const Header& header, uint64_t timeout_ns,
                         uint64_t stream) {
        check_host(0, stream);
        return self.send(parts, header, timeout_ns);
    };
    const auto receive = [](HostMailbox& self, const Parts& parts, const Header& header, uint64_t timeout_ns,
                            uint64_t stream) {
        check_host(0, stream);
        return self.receive(parts, header, timeout_ns);
    };
    const auto make = [](uint32_t stage, uint32_t num_stages, uint32_t num_places, uint64_t part_capacity, int device) {
        check_host(device, 0);
        return std::make_unique<HostMailbox>(stage, num_stages, num_places, part_capacity);
    };
    splitrank::bindings::bind_mailbox<HostMailbox>(module, send, receive)
        .def(py::init(make), py::arg("stage"), py::arg("num_stages"), py::arg("num_places"), py::arg("part_capacity"),
             py::arg("device") = 0);
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    using namespace splitrank::quick_reduce_cpu;
    for (auto* set = begin_instruction_sets(); set != end_instruction_sets(); ++set) names.emplace_back(set->name);
    return names;
}

py::object failure(const Communicator& self) {
    const auto record = self.failure();
    return record ? py::object(splitrank::bindings::to_dict(*record)) : py::none();
}

}  // namespace

PYBIND11_MODULE(_quick_reduce_cpu, module) {
    splitrank::bindings::register_os_error();
    module.attr("TARGET") = "cpu";
    module.attr("PROTOCOL") = splitrank::quick_reduce_cpu::kProtocol;
    module.def("device_count", [] { return 1; });
    module.def("instruction_sets", instruction_sets, "Those this machine can run, the best one last.");
    const auto without_gil = py::call_guard<py::gil_scoped_release>();
    py::class_<Communicator>(module, "Communicator")
        .def(py::init(&make), py::arg("rank"), py::arg("world_size"), py::arg("num_slots"), py::arg("segment_bytes"),
             py::arg("device") = 0, py::arg("instruction_set") = "")
        .def("handle", [](const Communicator& self) { return py::bytes(self.handle()); })
        .def("max_slots", &Communicator::max_slots)
        .def("open", &Communicator::open, py::arg("handles"), py::arg("num_slots"), without_gil)
        .def("all_reduce", &all_reduce, py::arg("input"), py::arg("output"), py::arg("num_elements"), py::arg("dtype"),
             py::arg("codec"), py::arg("algorithm"), py::arg("timeout_ns"), py::arg("stream") = 0)
        .def("failure", &failure)
        .def("abort", &Communicator::abort, without_gil)
        .def_property_readonly("num_bytes", &Communicator::num_bytes)
        .def("close", &Communicator::close, without_gil);
    bind_host_mailbox(module);
}
