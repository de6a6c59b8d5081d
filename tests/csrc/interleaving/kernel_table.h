// The table of one world size: with WHOLE_TABLE (--full) all kinds, else half of those that are not in each, and with
// SMALL_TABLE (the mutations: many builds) only the kinds without which something would go unseen.
#pragma once

#include <algorithm>
#include <array>
#include <iterator>
#include <type_traits>

#include "historical.h"
#include "kernels.h"
#include "quick_reduce/codec_int4.h"
#include "quick_reduce/codec_int6.h"
#include "quick_reduce/codec_int8.h"
#include "quick_reduce/codec_none.h"
#include "quick_reduce/cpu/pipeline.h"
#include "quick_reduce/gpu/kernels.h"
#include "quick_reduce/one_shot.h"
#include "quick_reduce/tagged.h"
#include "quick_reduce/two_shot.h"
#include "reference.h"

namespace interleaving {

using namespace quick_reduce;

template <class Layout>
Layout make_layout(const View& view, const Call& call) {
    if constexpr (std::is_constructible_v<Layout, const RegionShape&, const Call&>)
        return Layout(view.shape, call);
    else
        return Layout(view.shape);
}

// Tile after tile in one slot.
template <class Layout, class Type, class Codec, int W>
bool two_shot_slot(FibreExecutor& exec, const View& view, const Call& call, const void* const*, uint32_t slot) {
    const auto layout = make_layout<Layout>(view, call);
    TwoShot<FibreExecutor, Type, Codec, Layout, W> two_shot(exec, view, call);
    Handshake<FibreExecutor, Layout, W> sync(exec, view, layout, call, slot);
    if (!sync.begin()) return false;
    for (uint64_t tile = slot; tile < call.num_tiles; tile += call.num_slots) {
        two_shot.send(sync, tile);
        if (!two_shot.reduce(sync, tile)) return false;
        if (!two_shot.receive(sync, tile)) return false;
        sync.advance();
    }
    sync.end();
    return true;
}

template <class Layout, class Type, class Codec, int W>
bool one_shot_slot(FibreExecutor& exec, const View& view, const Call& call, const void* const*, uint32_t slot) {
    const auto layout = make_layout<Layout>(view, call);
    OneShot<FibreExecutor, Type, Codec, Layout, W> one_shot(exec, view, call);
    Handshake<FibreExecutor, Layout, W> sync(exec, view, layout, call, slot);
    if (!sync.begin()) return false;
    for (uint64_t tile = slot; tile < call.num_tiles; tile += call.num_slots) {
        one_shot.send(sync, tile);
        if (!one_shot.reduce(sync, tile)) return false;
        sync.advance();
    }
    sync.end();
    return true;
}

template <class Layout, class Type, int W>
bool registered_slot(FibreExecutor& exec, const View& view, const Call& call, const void* const* inputs,
                     uint32_t slot) {
    const auto layout = make_layout<Layout>(view, call);
    Registered<FibreExecutor, Type, Layout, W> registered(exec, view, call, inputs);
    Handshake<FibreExecutor, Layout, W> sync(exec, view, layout, call, slot);
    if (!sync.begin()) return false;
    for (uint64_t tile = slot; tile < call.num_tiles; tile += call.num_slots) {
        if (!registered.run(sync, tile)) return false;
        sync.advance();
    }
    sync.end();
    return true;
}

// A slot has one tile: contracts see to it (plan.cc). Beside run_once, because that one copies the call, and a host that
// gives up shortens the limit of a call that runs (world.cc).
template <class Layout, class Type, class Codec, int W>
bool tagged_slot(FibreExecutor& exec, const View& view, const Call& call, const void* const*, uint32_t slot) {
    const auto layout = make_layout<Layout>(view, call);
    Tagged<FibreExecutor, Type, Codec, Layout, W> tagged(exec, view, call, slot);
    Handshake<FibreExecutor, Layout, W> sync(exec, view, layout, call, view.shape.num_slots + slot);
    return tagged.run(sync);
}

template <class Work>
void once(FibreExecutor& exec, const View& view, const Call& call, const void* const* inputs, uint32_t number) {
    FibreExecutor::begun = &exec;
    run_once<Work>(Job{view, call, inputs}, number);
}

template <class Work>
void block(FibreExecutor& exec, const View& view, const Call& call, const void* const* inputs, uint32_t number) {
    FibreExecutor::begun = &exec;
    run_block<Work>(Job{view, call, inputs}, number);
}

template <class Layout, class Type, class Codec, int W>
constexpr Kernel two_shot_kernel() {
    return {{Type::kDType, Codec::kKind, Algorithm::kTwoShot},
            two_shot_slot<Layout, Type, Codec, W>,
            nullptr,
            nullptr,
            reference<Type, Codec>,
            Codec::capacity};
}

template <class Type, class Codec, int W>
constexpr Kernel shipped_two_shot() {
    Kernel kernel = two_shot_kernel<IsolatedLayout, Type, Codec, W>();
    kernel.run_block = block<TwoShotWork<FibreExecutor, Type, Codec, W>>;
    kernel.run_call = run_two_shot<FibreExecutor, Type, Codec, IsolatedLayout, W>;
    return kernel;
}

template <class Type, class Codec, int W>
constexpr Kernel shipped_one_shot() {
    return {{Type::kDType, Codec::kKind, Algorithm::kOneShot},
            one_shot_slot<IsolatedLayout, Type, Codec, W>,
            block<OneShotWork<FibreExecutor, Type, Codec, W>>,
            run_one_shot<FibreExecutor, Type, Codec, IsolatedLayout, W>,
            reference<Type, Codec, CodecNone<Type>>,
            Codec::capacity};
}

template <class Type, int W>
constexpr Kernel shipped_registered() {
    return {{Type::kDType, CodecKind::kNone, Algorithm::kRegistered},
            registered_slot<IsolatedLayout, Type, W>,
            block<RegisteredWork<FibreExecutor, Type, W>>,
            nullptr,
            reference<Type, CodecNone<Type>>,
            CodecNone<Type>::capacity};
}

template <class Type, class Codec, int W>
constexpr Kernel shipped_tagged() {
    return {{Type::kDType, Codec::kKind, Algorithm::kTagged},
            tagged_slot<IsolatedLayout, Type, Codec, W>,
            once<TaggedWork<FibreExecutor, Type, Codec, W>>,
            nullptr,
            reference<Type, Codec, CodecNone<Type>>,
            [](uint64_t) { return TaggedUnit<Codec, FibreExecutor::kLaneElements>::capacity(kTaggedRows, 1); }};
}

// Those that every world size has.
template <int W>
constexpr std::array kSmall{
    shipped_registered<Float32, W>(),
    shipped_tagged<Float32, CodecNone<Float32>, W>(),
    shipped_tagged<Bfloat16, CodecInt6<Bfloat16>, W>(),
    shipped_one_shot<Float32, CodecNone<Float32>, W>(),
    shipped_one_shot<Bfloat16, CodecInt4<Bfloat16>, W>(),
    shipped_two_shot<Float32, CodecNone<Float32>, W>(),
    shipped_two_shot<Float32, CodecInt4<Float32>, W>(),
    shipped_two_shot<Bfloat16, CodecInt4<Bfloat16>, W>(),
};

// The others by pairs: each for one of 2 and 3 ranks and for one of 4 and 8. Each group has calls that differ in nothing
// but the dtype, codec or algorithm.
template <int W>
constexpr std::array kOfTwoAndEight{
    shipped_registered<Bfloat16, W>(),
    shipped_tagged<Float32, CodecInt8<Float32>, W>(),
    shipped_one_shot<Bfloat16, CodecNone<Bfloat16>, W>(),
    shipped_one_shot<Float16, CodecInt6<Float16>, W>(),
    shipped_two_shot<Float32, CodecInt8<Float32>, W>(),
    shipped_two_shot<Bfloat16, CodecInt8<Bfloat16>, W>(),
    shipped_two_shot<Float16, CodecInt6<Float16>, W>(),
};
template <int W>
constexpr std::array kOfThreeAndFour{
    shipped_tagged<Bfloat16, CodecNone<Bfloat16>, W>(),
    shipped_tagged<Float16, CodecInt4<Float16>, W>(),
    shipped_one_shot<Float32, CodecInt8<Float32>, W>(),
    shipped_one_shot<Float16, CodecNone<Float16>, W>(),
    shipped_two_shot<Float32, CodecInt6<Float32>, W>(),
    shipped_two_shot<Float16, CodecNone<Float16>, W>(),
};

template <size_t... N>
constexpr auto joined(const std::array<Kernel, N>&... tables) {
    std::array<Kernel, (N + ...)> all{};
    auto end = all.begin();
    ((end = std::copy(tables.begin(), tables.end(), end)), ...);
    return all;
}

template <int W>
constexpr auto shipped() {
#if defined(SMALL_TABLE)
    return kSmall<W>;
#elif defined(WHOLE_TABLE)
    return joined(kSmall<W>, kOfTwoAndEight<W>, kOfThreeAndFour<W>);
#else
    if constexpr (W == 2 || W == 8)
        return joined(kSmall<W>, kOfTwoAndEight<W>);
    else
        return joined(kSmall<W>, kOfThreeAndFour<W>);
#endif
}
template <int W>
constexpr auto kShipped = shipped<W>();

#ifndef SMALL_TABLE
template <class Layout, int W>
constexpr Kernel kHistorical[] = {
    two_shot_kernel<Layout, Float32, CodecNone<Float32>, W>(),
    two_shot_kernel<Layout, Float16, CodecInt4<Float16>, W>(),
};
#endif

template <class Table>
constexpr Kernels all(const Table& table) {
    return {std::data(table), std::data(table) + std::size(table)};
}

template <int W>
Kernels kernels_of(Protocol protocol) {
    switch (protocol) {
        case Protocol::kShipped: return all(kShipped<W>);
#ifndef SMALL_TABLE
        case Protocol::kHistoricalEqual: return all(kHistorical<HistoricalLayout<Equal>, W>);
        case Protocol::kHistoricalAtLeast: return all(kHistorical<HistoricalLayout<AtLeast>, W>);
        case Protocol::kHistoricalAddresses: return all(kHistorical<HistoricalAddresses, W>);
#endif
        default: return {nullptr, nullptr};
    }
}

}  // namespace interleaving
