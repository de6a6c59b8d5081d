#include "handle.h"

#include <sys/random.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <type_traits>

namespace splitrank::quick_reduce_cpu {

static_assert(std::is_trivially_copyable_v<Handle>);

std::string to_bytes(const Handle& handle) { return {reinterpret_cast<const char*>(&handle), sizeof(handle)}; }

Handle handle_from_bytes(const std::string& bytes) {
    uint32_t protocol = 0;
    if (bytes.size() >= sizeof(protocol)) std::memcpy(&protocol, bytes.data(), sizeof(protocol));
    if (protocol != kProtocol)
        throw std::invalid_argument("a peer speaks protocol " + std::to_string(protocol) + ", this rank speaks " +
                                    std::to_string(kProtocol));
    if (bytes.size() != sizeof(Handle))
        throw std::invalid_argument("a handle has " + std::to_string(bytes.size()) + " bytes instead of " +
                                    std::to_string(sizeof(Handle)));
    Handle handle;
    std::memcpy(&handle, bytes.data(), sizeof(handle));
    return handle;
}

uint64_t make_token() {
    uint64_t token = 0;
    if (getrandom(&token, sizeof(token), 0) != sizeof(token))
        throw std::system_error(errno, std::generic_category(), "no random number for the exchange memory");
    return token;
}

}  // namespace splitrank::quick_reduce_cpu
