// How a thread rounds, and what it does with subnormal numbers.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace splitrank::cpu {

// IEEE 754's defaults on this thread, as long as the object lives: rounds to nearest even, and keeps subnormal numbers.
// A caller may have changed them for its own thread (torch.set_flush_denormal, a library linked with -ffast-math). The
// threads of a pool do not inherit that, so the bits of a sum would depend on the thread that computes it.
class DefaultFloatEnvironment {
public:
    DefaultFloatEnvironment() : before_(get()) { set(kDefault); }
    ~DefaultFloatEnvironment() { set(before_); }
    DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
    DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

private:
#if defined(__x86_64__)
    using Word = uint32_t;
    static constexpr Word kDefault = 0x1f80;  // all exceptions masked
    static Word get() { return _mm_getcsr(); }
    static void set(Word word) { _mm_setcsr(word); }
#else
    using Word = uint64_t;
    static constexpr Word kDefault = 0;
    static Word get() {
        Word word;
        asm volatile("mrs %0, fpcr" : "=r"(word));
        return word;
    }
    static void set(Word word) { asm volatile("msr fpcr, %0" ::"r"(word)); }
#endif

    const Word before_;
};

}  // namespace splitrank::cpu
