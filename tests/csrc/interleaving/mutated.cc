// All of the program as one unit, with the small table: how a mutation is built.
#include "kernels_2.cc"
#include "kernels_3.cc"
#include "kernels.cc"
#include "plan.cc"
#include "plans.cc"
#include "world.cc"
#include "check.cc"
#include "main.cc"
