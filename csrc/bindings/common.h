// What the bindings of both communicators share: exceptions and the failure record as Python sees them.
#pragma once

#include <pybind11/pybind11.h>

#include <system_error>

#include "../quick_reduce/failure.h"

namespace splitrank::bindings {

namespace py = pybind11;

// pybind11 knows std::invalid_argument, std::bad_alloc and std::runtime_error; not errors with a number of the system.
inline void register_os_error() {
    py::register_local_exception_translator([](std::exception_ptr thrown) {
        try {
            if (thrown) std::rethrow_exception(thrown);
        } catch (const std::system_error& error) {
            const py::tuple arguments = py::make_tuple(error.code().value(), error.what());
            PyErr_SetObject(PyExc_OSError, arguments.ptr());
        }
    });
}

inline const char* kind_name(uint32_t kind) {
    switch (quick_reduce::FailureKind(kind)) {
        case quick_reduce::FailureKind::kNone: return "none";
        case quick_reduce::FailureKind::kTimeout: return "timeout";
        case quick_reduce::FailureKind::kMismatch: return "mismatch";
        case quick_reduce::FailureKind::kAhead: return "ahead";
        case quick_reduce::FailureKind::kOverlap: return "overlap";
        case quick_reduce::FailureKind::kAborted: return "aborted";
    }
    return "unknown";
}

inline py::dict to_dict(const quick_reduce::Failure& failure) {
    py::dict record;
    record["kind"] = kind_name(failure.kind);
    record["rank"] = failure.rank;
    record["slot"] = failure.slot;
    record["phase"] = failure.phase;
    record["peer"] = failure.peer;
    record["expected"] = failure.expected;
    record["seen"] = failure.seen;
    return record;
}

}  // namespace splitrank::bindings
