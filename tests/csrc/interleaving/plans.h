// What needs no schedule: where things lie, and how a message is cut.
#pragma once

#include <string>

namespace interleaving {

// Empty, or what is wrong.
std::string check_plans();

}  // namespace interleaving
