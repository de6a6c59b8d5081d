// A mailbox as Python sees it: the same methods on a host, which has no streams, and on a GPU.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../stage_mailbox/arguments.h"
#include "common.h"

namespace splitrank::bindings {

inline py::tuple header_fields(const stage_mailbox::Header& header) {
    return py::make_tuple(header.step, header.plan_hash, header.part_bytes, header.kind);
}

template <class Mailbox>
py::object mailbox_failure(const Mailbox& self) {
    const auto record = self.failure();
    if (!record) return py::none();
    py::dict fields;
    fields["kind"] = kind_name(record->kind);
    fields["stage"] = record->stage;
    fields["peer"] = record->peer;
    fields["waits_for_credit"] = record->waits_for_credit != 0;
    fields["sequence"] = record->sequence;
    fields["seen"] = record->seen;
    fields["expected"] = header_fields(record->expected);
    fields["found"] = header_fields(record->found);
    return fields;
}

// `send` and `receive`: callables of (mailbox, parts, header, timeout_ns, stream).
template <class Mailbox, class Send, class Receive>
py::class_<Mailbox> bind_mailbox(py::module_& module, Send send, Receive receive) {
    const auto without_gil = py::call_guard<py::gil_scoped_release>();
    const auto call = [](auto action) {
        return [action](Mailbox& self, const std::vector<uint64_t>& parts, uint64_t part_bytes, uint64_t kind,
                        uint64_t step, uint64_t plan_hash, uint64_t timeout_ns, uint64_t stream) {
            const py::gil_scoped_release others_may_run;
            return action(self, parts, stage_mailbox::Header{step, plan_hash, part_bytes, kind}, timeout_ns, stream);
        };
    };
    py::class_<Mailbox> mailbox(module, "Mailbox", py::module_local());
    mailbox.def("handle", [](const Mailbox& self) { return py::bytes(self.handle()); })
        .def("open", &Mailbox::open, py::arg("handles"), without_gil)
        .def("send", call(send), py::arg("parts"), py::arg("part_bytes"), py::arg("kind"), py::arg("step"),
             py::arg("plan_hash"), py::arg("timeout_ns"), py::arg("stream") = 0)
        .def("receive", call(receive), py::arg("parts"), py::arg("part_bytes"), py::arg("kind"), py::arg("step"),
             py::arg("plan_hash"), py::arg("timeout_ns"), py::arg("stream") = 0)
        .def("failure", &mailbox_failure<Mailbox>)
        .def("abort", &Mailbox::abort, without_gil)
        .def_property_readonly("num_bytes", &Mailbox::num_bytes)
        .def("close", &Mailbox::close, without_gil);
    return mailbox;
}

}  // namespace splitrank::bindings
