// The kernels: a block runs its tiles through their stages. Device code only; launching is dispatch.h's.
#pragma once

#include <type_traits>

#include "../codec_int4.h"
#include "../codec_int6.h"
#include "../codec_int8.h"
#include "../one_shot.h"
#include "../tagged.h"
#include "../two_shot.h"
#include "executor.h"
#include "job.h"
#include "registered.h"

#ifndef QR_GRID_CONSTANT
#define QR_GRID_CONSTANT
#endif

namespace splitrank::quick_reduce {

// Packets in flight, so that W ranks' parts of them stay in registers.
template <class Type, int W>
using RawExecutor = GpuExecutor<16 / sizeof(typename Type::Storage), W == 2 ? 4 : W == 4 ? 2 : 1>;
// With codecs. 16 elements a lane: scales travel in fewer, longer pieces; for more ranks their parts would not fit.
template <class Type, class Codec, int W>
using CodedExecutor = std::conditional_t<Codec::kKind == CodecKind::kNone, RawExecutor<Type, W>,
                                         GpuExecutor<W == 2 ? 16 : 8, W == 2 ? 2 : 1>>;

// What a block does with a tile, in stages. A stage of a tile waits for the peers' stage before, which they have long done
// when this block gets to it: a block works on as many tiles at once, each in a slot of its own and one stage apart.
template <class Executor, class Type, class Codec, int W>
struct TwoShotWork {
    using Exec = Executor;
    using Sync = Handshake<Exec, IsolatedLayout, W>;
    static constexpr int kWorld = W;
    static constexpr int kStages = 3;

    QR_DEVICE TwoShotWork(Exec& exec, const Job& job) : two_shot_(exec, job.view, job.call) {}
    QR_DEVICE bool stage0(Sync& sync, uint64_t tile) {
        two_shot_.send(sync, tile);
        return true;
    }
    QR_DEVICE bool stage1(Sync& sync, uint64_t tile) { return two_shot_.reduce(sync, tile); }
    QR_DEVICE bool stage2(Sync& sync, uint64_t tile) { return two_shot_.receive(sync, tile); }

  private:
    TwoShot<Exec, Type, Codec, IsolatedLayout, W> two_shot_;
};

template <class Executor, class Type, class Codec, int W>
struct OneShotWork {
    using Exec = Executor;
    using Sync = Handshake<Exec, IsolatedLayout, W>;
    static constexpr int kWorld = W;
    static constexpr int kStages = 2;

    QR_DEVICE OneShotWork(Exec& exec, const Job& job) : one_shot_(exec, job.view, job.call) {}
    QR_DEVICE bool stage0(Sync& sync, uint64_t tile) {
        one_shot_.send(sync, tile);
        return true;
    }
    QR_DEVICE bool stage1(Sync& sync, uint64_t tile) { return one_shot_.reduce(sync, tile); }
    QR_DEVICE bool stage2(Sync&, uint64_t) { return true; }

  private:
    OneShot<Exec, Type, Codec, IsolatedLayout, W> one_shot_;
};

template <class Executor, class Type, int W>
struct RegisteredWork {
    using Exec = Executor;
    using Sync = Handshake<Exec, IsolatedLayout, W>;
    static constexpr int kWorld = W;
    static constexpr int kStages = 1;

    QR_DEVICE RegisteredWork(Exec& exec, const Job& job) : registered_(exec, job.view, job.call, job.inputs) {}
    QR_DEVICE bool stage0(Sync& sync, uint64_t tile) { return registered_.run(sync, tile); }
    QR_DEVICE bool stage1(Sync&, uint64_t) { return true; }
    QR_DEVICE bool stage2(Sync&, uint64_t) { return true; }

  private:
    Registered<Exec, Type, IsolatedLayout, W> registered_;
};

// The algorithm whose blocks do one tile each.
template <class Executor, class Type, class Codec, int W>
struct TaggedWork {
    using Exec = Executor;
    using Sync = Handshake<Exec, IsolatedLayout, W>;
    static constexpr int kWorld = W;
    static constexpr int kStages = 0;

    QR_DEVICE TaggedWork(Exec& exec, const Job& job, uint32_t tile) : tagged_(exec, job.view, job.call, tile) {}
    QR_DEVICE bool run(Sync& sync) { return tagged_.run(sync); }

  private:
    Tagged<Exec, Type, Codec, IsolatedLayout, W> tagged_;
};

template <class Work>
QR_DEVICE void run_once(const Job& job, uint32_t block) {
    typename Work::Exec exec;
    const IsolatedLayout layout(job.view.shape);
    Work work(exec, job, block);
    typename Work::Sync sync(exec, job.view, layout, job.call, job.view.shape.num_slots + block);
    work.run(sync);
}

// Block b of B does tiles b, b + B, b + 2 B, ...; tile number j of a block is in its slot b + (j mod kStages) B.
template <class Work>
QR_DEVICE void run_block(const Job& job, uint32_t block) {
    constexpr int kStages = Work::kStages;
    static_assert(kStages <= int(kSlotsPerBlock));
    const uint32_t num_blocks = job.call.num_slots;
    const uint64_t num_tiles = divide_up(job.call.num_tiles - block, num_blocks);
    typename Work::Exec exec;
    const IsolatedLayout layout(job.view.shape);
    Work work(exec, job);
    using Sync = typename Work::Sync;
    // The slots in hand, by the stage they are in. After a step each moves on to the next, and the last is free again.
    Sync first(exec, job.view, layout, job.call, block);
    Sync second(exec, job.view, layout, job.call, block + (kStages - 1) * num_blocks);
    Sync third(exec, job.view, layout, job.call, block + num_blocks);
    for (uint64_t step = 0; step < num_tiles + kStages - 1; ++step) {
        const uint64_t tile = block + step * num_blocks;
        if (step < num_tiles) {
            // A failed communicator keeps its tickets: it is not used again.
            if (step < uint64_t(kStages) && !first.begin()) return;
            if (!work.stage0(first, tile)) return;
        }
        if (kStages > 1 && step >= 1 && step - 1 < num_tiles)
            if (!work.stage1(second, tile - num_blocks)) return;
        if (kStages > 2 && step >= 2)
            if (!work.stage2(third, tile - 2 * num_blocks)) return;
        Sync& last = kStages == 1 ? first : kStages == 2 ? second : third;
        if (step + 1 >= uint64_t(kStages)) last.advance();
        if (kStages > 1) {
            Sync done = last;
            if (kStages > 2) third.become(second);
            second.become(first);
            first.become(done);
        }
    }
    if (first.has_begun()) first.end();
    if (kStages > 1 && second.has_begun()) second.end();
    if (kStages > 2 && third.has_begun()) third.end();
}

template <class Work>
__global__ void __launch_bounds__(max_threads(Work::kWorld, Work::kStages == 0))
all_reduce_kernel(const QR_GRID_CONSTANT Job job) {
    if (job.starts_early) gpu::wait_for_previous();
    if constexpr (Work::kStages == 0)
        run_once<Work>(job, gpu::block_index());
    else
        run_block<Work>(job, gpu::block_index());
}

}  // namespace splitrank::quick_reduce
