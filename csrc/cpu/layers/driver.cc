#include <algorithm>

#include "../operations.h"

namespace splitrank::cpu {

void Operations::layers(const std::vector<const Layer*>& layers, const Rows& rows, const Values& hidden,
                        const Values& residual) {
    int64_t most_projected = 0, most_mixed = 0;
    for (const Layer* layer : layers) {
        most_projected = std::max(most_projected, layer->first.num_outputs);
        most_mixed = std::max(most_mixed, layer->last.num_inputs);
    }
    // Of float32's size, whatever the dtype is.
    float* projected_rows = projected_.floats(rows.count * most_projected);
    float* mixed_rows = mixer_out_.floats(rows.count * most_mixed);
    for (const Layer* layer : layers) {
        const Values projected{projected_rows, residual.dtype, layer->first.num_outputs};
        const Values mixed{mixed_rows, residual.dtype, layer->last.num_inputs};
        // A row's hidden and residual have been read when they are written.
        add_norm_linear({hidden, residual, residual, rows.count, rows.width, layer->mixer_norm}, layer->first, projected);
        if (const auto* mixer = std::get_if<DeltaLayer>(&layer->mixer))
            delta(projected, rows.count, rows.spans, *mixer, mixed);
        else
            attention(projected, rows.count, rows.spans, rows.kv_index, rows.cos_sin,
                      std::get<AttentionLayer>(layer->mixer), mixed);
        linear(mixed, rows.count, layer->last, hidden);
        experts({hidden, residual, residual, rows.count, rows.width, layer->experts_norm}, layer->experts, hidden);
    }
}

}  // namespace splitrank::cpu
