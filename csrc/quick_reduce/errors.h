// Host side only: what the bindings turn into Python's MemoryError. The other exceptions are the standard library's:
// std::invalid_argument (ValueError), std::system_error (OSError), std::runtime_error.
#pragma once

#include <new>
#include <string>
#include <utility>

namespace splitrank::quick_reduce {

class OutOfMemory : public std::bad_alloc {
  public:
    explicit OutOfMemory(std::string message) : message_(std::move(message)) {}
    const char* what() const noexcept override { return message_.c_str(); }

  private:
    std::string message_;
};

}  // namespace splitrank::quick_reduce
