// A fibre: a stack of its own and a place to go on. Switching costs some nanoseconds and no system call.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace interleaving {

class Fibre {
  public:
    enum class State { kReady, kPolling, kBlocked, kDone, kDead };

    Fibre() : stack_(new std::byte[kStackBytes]) {}

    // `body` must not return: it ends in Scheduler::finish.
    void start(std::function<void()> body) {
        body_ = std::move(body);
        fresh_ = true;
        state = State::kReady;
    }

    // Leaves `from` and goes on here.
    void enter(jmp_buf& from) {
        if (_setjmp(from) != 0) return;
        if (!fresh_) _longjmp(here, 1);
        fresh_ = false;
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack_.get();
        context_.uc_stack.ss_size = kStackBytes;
        context_.uc_link = nullptr;
        const auto self = reinterpret_cast<uintptr_t>(this);  // makecontext passes ints
        makecontext(&context_, reinterpret_cast<void (*)()>(&Fibre::trampoline), 2, uint32_t(self),
                    uint32_t(self >> 32));
        setcontext(&context_);
    }

    jmp_buf here;
    State state = State::kDone;
    uint32_t rank = 0;
    uint32_t priority = 0;       // the highest goes first, where priorities count
    uint64_t polled_at = 0;      // version of the memory that the last fruitless poll saw
    uint64_t stalled_until = 0;  // step

  private:
    static constexpr size_t kStackBytes = 128 * 1024;

    static void trampoline(uint32_t low, uint32_t high) {
        reinterpret_cast<Fibre*>(uintptr_t(low) | uintptr_t(high) << 32)->body_();
    }

    std::unique_ptr<std::byte[]> stack_;
    ucontext_t context_;
    std::function<void()> body_;
    bool fresh_ = false;
};

}  // namespace interleaving
