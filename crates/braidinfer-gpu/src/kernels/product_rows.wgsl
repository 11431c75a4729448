// The product of a matrix and few rows of activations: a workgroup has a panel, a thread a row of it and one range of columns.
{% include "epilogue" %}

var<workgroup> partial: array<f32, {{ 256 * tokens }}>;

@compute @workgroup_size(32, 8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let lane = local.x;
    let first_token = group.z * {{ tokens }}u;
    let panel = group.x + group.y * {{ groups_x }}u;
    if panel >= parameters.panels {
        return;
    }
    let first = local.y * parameters.range;
    let last = min(first + parameters.range, parameters.blocks);
{% for token in range(tokens) %}
    var sum{{ token }} = 0.0f;
    // Rows that are not there are computed as the last one is, and not written.
    let input{{ token }} = min(first_token + {{ token }}u, parameters.tokens - 1u) * parameters.input_stride;
{% endfor %}
    for (var block = first; block < last; block++) {
{% for quarter in range(8) %}
        {
            let w = weights_of(panel, block, {{ quarter }}u, lane);
{% for token in range(tokens) %}
            {
                let x = input[input{{ token }} + block * 8u + {{ quarter }}u];
                sum{{ token }} = fma(w.w, x.w, fma(w.z, x.z, fma(w.y, x.y, fma(w.x, x.x, sum{{ token }}))));
            }
{% endfor %}
        }
{% endfor %}
    }
{% for token in range(tokens) %}
    partial[{{ token * 256 }}u + local.y * 32u + lane] = sum{{ token }};
{% endfor %}
    workgroupBarrier();
    // A line of threads for each token.
    let token = local.y;
    if token >= {{ tokens }}u || first_token + token >= parameters.tokens {
        return;
    }
    let ranges = (parameters.blocks + parameters.range - 1u) / parameters.range;
    let row = (parameters.first_panel + panel) * 32u;
{% if epilogue == "gated" %}
    if lane >= 16u || (row + 2u * lane) / 2u >= parameters.rows {
        return;
    }
    var gate = 0.0f;
    var up = 0.0f;
    for (var range = 0u; range < ranges; range++) {
        gate += partial[token * 256u + range * 32u + 2u * lane];
        up += partial[token * 256u + range * 32u + 2u * lane + 1u];
    }
    finish_pair(gate, up, row + 2u * lane, first_token + token);
{% else %}
    if row + lane >= parameters.rows {
        return;
    }
    var sum = 0.0f;
    for (var range = 0u; range < ranges; range++) {
        sum += partial[token * 256u + range * 32u + lane];
    }
    finish(sum, row + lane, first_token + token);
{% endif %}
}
