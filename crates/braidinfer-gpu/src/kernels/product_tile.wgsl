// The product of a matrix and many rows of activations: a workgroup has two panels and 64 tokens, a thread four of either. Sums
// have the order of those in `product_rows`.
{% include "epilogue" %}

// Of one block of columns, `[column][row]` and `[column][token]`.
var<workgroup> rows: array<vec4<f32>, 512>;
var<workgroup> tokens: array<vec4<f32>, 512>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let panels = group.x * 2u;
    let first_token = group.y * 64u;
    let row_at = thread % 16u;
    let token_at = thread / 16u;
{% for token in range(4) %}
    var total{{ token }} = vec4<f32>(0.0f);
    var sum{{ token }} = vec4<f32>(0.0f);
{% endfor %}
    var left = parameters.range;
    for (var block = 0u; block < parameters.blocks; block++) {
        for (var step = 0u; step < 2u; step++) {
            let item = thread + step * 256u;
            let row = item % 64u;
            let quarter = item / 64u;
            let panel = min(panels + row / 32u, parameters.panels - 1u);
            let w = weights_of(panel, block, quarter, row % 32u);
            let token = min(first_token + row, parameters.tokens - 1u);
            let x = input[token * parameters.input_stride + block * 8u + quarter];
            let at = quarter * 64u + row / 4u;
{% for value in range(4) %}
            rows[at + {{ value * 16 }}u][row % 4u] = w[{{ value }}];
            tokens[at + {{ value * 16 }}u][row % 4u] = x[{{ value }}];
{% endfor %}
        }
        workgroupBarrier();
        for (var column = 0u; column < 32u; column++) {
            let w = rows[column * 16u + row_at];
            let x = tokens[column * 16u + token_at];
{% for token in range(4) %}
            sum{{ token }} = fma(w, vec4<f32>(x[{{ token }}]), sum{{ token }});
{% endfor %}
        }
        workgroupBarrier();
        left -= 1u;
        if left == 0u || block + 1u == parameters.blocks {
{% for token in range(4) %}
            total{{ token }} += sum{{ token }};
            sum{{ token }} = vec4<f32>(0.0f);
{% endfor %}
            left = parameters.range;
        }
    }
    // The row of another part of the matrix, or beyond the last one.
    if panels + row_at / 8u >= parameters.panels {
        return;
    }
    let row = (parameters.first_panel + panels) * 32u + row_at * 4u;
{% for token in range(4) %}
    if first_token + token_at * 4u + {{ token }}u < parameters.tokens {
        let token = first_token + token_at * 4u + {{ token }}u;
{% if epilogue == "gated" %}
        if row / 2u < parameters.rows {
            finish_pair(total{{ token }}.x, total{{ token }}.y, row, token);
        }
        if row / 2u + 1u < parameters.rows {
            finish_pair(total{{ token }}.z, total{{ token }}.w, row + 2u, token);
        }
{% else %}
{% for value in range(4) %}
        if row + {{ value }}u < parameters.rows {
            finish(total{{ token }}[{{ value }}], row + {{ value }}u, token);
        }
{% endfor %}
{% endif %}
    }
{% endfor %}
}
