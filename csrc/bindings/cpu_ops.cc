// splitrank._cpu_ops. Tensors come as addresses: models/ops/cpu/native.py has checked what they are.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../cpu/operations.h"

namespace py = pybind11;
using namespace splitrank::cpu;

namespace {

template <class Element>
Element* at(uint64_t address) {
    return reinterpret_cast<Element*>(address);
}

Weight make_weight(uint64_t data, uint32_t dtype, int64_t num_outputs, int64_t num_inputs,
                   const std::vector<int64_t>& bounds, bool is_packed) {
    if (bounds.size() < 2 || bounds.size() > kShards + 1 || bounds.front() != 0 || bounds.back() != num_inputs ||
        ((bounds.size() - 1) & (bounds.size() - 2)) != 0)
        throw std::invalid_argument("a weight has 1, 2 or 4 shards that cover its inputs");
    Weight weight{at<void>(data), DType(dtype), num_outputs, num_inputs, int64_t(bounds.size()) - 1, {}, is_packed};
    for (size_t i = 0; i < bounds.size(); ++i) weight.bounds[i] = bounds[i];
    return weight;
}

std::vector<Span> make_spans(const std::vector<std::array<int64_t, 5>>& spans) {
    std::vector<Span> made;
    for (const auto& [row, length, start, slot, pages] : spans)
        made.push_back({row, length, start, slot, at<const int64_t>(uint64_t(pages))});
    return made;
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (auto* set = begin_instruction_sets(); set != end_instruction_sets(); ++set) names.emplace_back(set->name);
    return names;
}

}  // namespace

PYBIND11_MODULE(_cpu_ops, module) {
    module.attr("SHARDS") = kShards;
    module.attr("PANEL") = kPanel;
    module.attr("MOST_HEAD") = kMostHead;
    module.def("instruction_sets", instruction_sets, "Those this machine can run, the best one last.");
    const auto without_gil = py::call_guard<py::gil_scoped_release>();
    py::class_<Weight>(module, "Weight")
        .def(py::init(&make_weight), py::arg("data"), py::arg("dtype"), py::arg("num_outputs"), py::arg("num_inputs"),
             py::arg("bounds"), py::arg("is_packed") = true)
        .def_property_readonly("num_panels", &Weight::num_panels)
        .def_property_readonly("panel_elements", &Weight::panel_elements);
    py::class_<Values>(module, "Values")
        .def(py::init([](uint64_t data, uint32_t dtype, int64_t stride) {
            return Values{at<void>(data), DType(dtype), stride};
        }));
    py::class_<Norm>(module, "Norm").def(py::init([](uint64_t scale, float eps) {
        return Norm{at<const float>(scale), eps};
    }));
    py::class_<Stream>(module, "Stream")
        .def(py::init([](const Values& hidden, const Values& residual, const Values& residual_out, int64_t num_rows,
                         int64_t width, const Norm& norm) {
            return Stream{hidden, residual, residual_out, num_rows, width, norm};
        }));
    py::class_<DeltaLayer>(module, "DeltaLayer")
        .def(py::init([](int64_t key_heads, int64_t value_heads, int64_t key_dim, int64_t value_dim, int64_t num_taps,
                         uint64_t taps, uint64_t decay_rate, uint64_t dt_bias, const Norm& norm,
                         const Values& conv_states, uint64_t delta_states) {
                 if (key_dim > kMostHead || num_taps < 2 || num_taps > 16 || value_heads % key_heads != 0)
                     throw std::invalid_argument("a delta rule takes key dims up to 1024 and 2 to 16 taps");
                 return DeltaLayer{key_heads, value_heads, key_dim, value_dim, num_taps, at<const float>(taps),
                                   at<const float>(decay_rate), at<const float>(dt_bias), norm, conv_states,
                                   at<float>(delta_states)};
             }));
    py::class_<AttentionLayer>(module, "AttentionLayer")
        .def(py::init([](int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t rotary_dim,
                         const Norm& q_norm, const Norm& k_norm, uint64_t keys, uint64_t values, uint32_t dtype,
                         int64_t page_size) {
                 if (head_dim > kMostHead || num_heads % num_kv_heads != 0 || num_heads / num_kv_heads > kMostHead)
                     throw std::invalid_argument("attention takes head dims up to 1024");
                 return AttentionLayer{num_heads, num_kv_heads, head_dim, rotary_dim, q_norm, k_norm, at<void>(keys),
                                       at<void>(values), DType(dtype), page_size};
             }));
    py::class_<ExpertsLayer>(module, "ExpertsLayer")
        .def(py::init([](int64_t num_experts, int64_t top_k, int64_t inner, int64_t shared_inner, const Weight& router,
                         const Weight& shared_gate_up, const Weight& shared_down, const Weight& gate_up,
                         const Weight& down, int64_t gate_up_bytes, int64_t down_bytes) {
                 if (shared_down.num_shards != down.num_shards || top_k > num_experts)
                     throw std::invalid_argument("routed and shared experts have equally many shards");
                 return ExpertsLayer{num_experts, top_k, inner, shared_inner, router, shared_gate_up, shared_down,
                                     gate_up, down, gate_up_bytes, down_bytes};
             }));
    py::class_<Layer>(module, "Layer")
        .def(py::init([](const Norm& mixer_norm, const Weight& first, const std::variant<DeltaLayer, AttentionLayer>& mixer,
                         const Weight& last, const Norm& experts_norm, const ExpertsLayer& experts) {
            return Layer{mixer_norm, first, mixer, last, experts_norm, experts};
        }));
    py::class_<Operations>(module, "Operations")
        .def(py::init<int, const std::string&>(), py::arg("num_threads"), py::arg("instruction_set") = "")
        .def_property_readonly("instruction_set", &Operations::instruction_set)
        .def_property_readonly("num_threads", &Operations::num_threads)
        .def("pin", &Operations::pin, "Each thread on its core; the caller is the first.")
        .def("linear", py::overload_cast<const Values&, int64_t, const Weight&, const Values&>(&Operations::linear),
             without_gil)
        .def("add_norm_linear", &Operations::add_norm_linear, without_gil)
        .def("experts", &Operations::experts, without_gil)
        .def("delta",
             [](Operations& self, const Values& projected, int64_t num_rows,
                const std::vector<std::array<int64_t, 5>>& spans, const DeltaLayer& layer, const Values& out) {
                 const auto made = make_spans(spans);
                 const py::gil_scoped_release others_may_run;
                 self.delta(projected, num_rows, made, layer, out);
             })
        .def("attention",
             [](Operations& self, const Values& projected, int64_t num_rows,
                const std::vector<std::array<int64_t, 5>>& spans, uint64_t kv_index, uint64_t cos_sin,
                const AttentionLayer& layer, const Values& out) {
                 const auto made = make_spans(spans);
                 const py::gil_scoped_release others_may_run;
                 self.attention(projected, num_rows, made, at<const int64_t>(kv_index), at<const float>(cos_sin), layer,
                                out);
             })
        .def("layers",
             [](Operations& self, const std::vector<const Layer*>& layers, const Values& hidden, const Values& residual,
                int64_t num_rows, int64_t width, const std::vector<std::array<int64_t, 5>>& spans, uint64_t kv_index,
                uint64_t cos_sin) {
                 const auto made = make_spans(spans);
                 const py::gil_scoped_release others_may_run;
                 self.layers(layers, {num_rows, width, made, at<const int64_t>(kv_index), at<const float>(cos_sin)}, hidden,
                             residual);
             })
        .def("greedy",
             [](Operations& self, uint64_t logits, int64_t num_rows, int64_t num_logits, uint64_t tokens, uint64_t largest) {
                 self.greedy(at<const float>(logits), num_rows, num_logits, at<int64_t>(tokens), at<float>(largest));
             }, without_gil)
        .def("cos_sin",
             [](Operations& self, uint64_t positions, int64_t num_rows, uint64_t frequencies, int64_t half, float scale,
                uint64_t out) {
                 self.cos_sin(at<const int64_t>(positions), num_rows, at<const float>(frequencies), half, scale,
                              at<float>(out));
             }, without_gil)
        .def("pack", [](Operations& self, uint64_t source, const Weight& weight, bool interleaved, uint64_t packed) {
            self.pack(at<const void>(source), weight, interleaved, at<void>(packed));
        }, without_gil);
}
