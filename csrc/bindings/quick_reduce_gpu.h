// The GPU communicator as Python sees it; tests build it into a module of their own, too.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../quick_reduce/gpu/communicator.h"
#include "common.h"

namespace splitrank::bindings {

using GpuCommunicator = quick_reduce_gpu::Communicator;

inline py::list to_bytes(const std::vector<std::string>& names) {
    py::list list;
    for (const std::string& name : names) list.append(py::bytes(name));
    return list;
}

inline bool gpu_all_reduce(GpuCommunicator& self, uint64_t input, uint64_t output, uint64_t num_elements,
                           uint32_t dtype, uint32_t codec, uint32_t algorithm, uint64_t timeout_ns, uint64_t stream,
                           uint32_t num_blocks, uint32_t num_threads, uint32_t tiles_per_block,
                           uint32_t min_tile_bytes, bool starts_early) {
    const py::gil_scoped_release others_may_run;  // a launch waits while the stream's queue is full
    return self.all_reduce(input, output, num_elements, dtype, codec, algorithm, timeout_ns, stream,
                           {num_blocks, num_threads, tiles_per_block, min_tile_bytes}, starts_early);
}

inline py::object gpu_failure(const GpuCommunicator& self) {
    const auto record = self.failure();
    return record ? py::object(to_dict(*record)) : py::none();
}

inline py::class_<GpuCommunicator> bind_gpu_communicator(py::module_& module) {
    register_os_error();
    module.attr("TARGET") = quick_reduce_gpu::kTarget;
    module.attr("PROTOCOL") = quick_reduce_gpu::kProtocol;
    module.def("device_count", &quick_reduce_gpu::device_count);
    module.def(
        "default_shape",
        [](uint32_t world_size) {
            const auto shape = quick_reduce_gpu::default_shape(world_size);
            return py::make_tuple(shape.num_slots, shape.segment_bytes);
        },
        py::arg("world_size"), "Number of slots and bytes of a segment that suit this many ranks.");
    const auto without_gil = py::call_guard<py::gil_scoped_release>();
    py::class_<GpuCommunicator> communicator(module, "Communicator", py::module_local());
    communicator
        .def(py::init<uint32_t, uint32_t, uint32_t, uint64_t, int>(), py::arg("rank"), py::arg("world_size"),
             py::arg("num_slots"), py::arg("segment_bytes"), py::arg("device") = 0)
        .def("handle", [](const GpuCommunicator& self) { return py::bytes(self.handle()); })
        .def("max_slots", &GpuCommunicator::max_slots)
        .def("open", &GpuCommunicator::open, py::arg("handles"), py::arg("num_slots"), without_gil)
        // From num_blocks on: 0 as tuned. All ranks must give the same, but for starts_early.
        .def("all_reduce", &gpu_all_reduce, py::arg("input"), py::arg("output"), py::arg("num_elements"),
             py::arg("dtype"), py::arg("codec"), py::arg("algorithm"), py::arg("timeout_ns"), py::arg("stream") = 0,
             py::arg("num_blocks") = 0, py::arg("num_threads") = 0, py::arg("tiles_per_block") = 0,
             py::arg("min_tile_bytes") = 0, py::arg("starts_early") = true)
        .def("tagged_capacity", &GpuCommunicator::tagged_capacity, py::arg("dtype"), py::arg("codec"))
        .def("captured_inputs", [](const GpuCommunicator& self) { return to_bytes(self.captured_inputs()); })
        .def("register_inputs", &GpuCommunicator::register_inputs, py::arg("by_rank"), without_gil)
        .def("failure", &gpu_failure)
        .def("abort", &GpuCommunicator::abort, without_gil)
        .def_property_readonly("num_bytes", &GpuCommunicator::num_bytes)
        .def("leave", &GpuCommunicator::leave, without_gil)
        .def("close", &GpuCommunicator::close, without_gil);
    return communicator;
}

}  // namespace splitrank::bindings
