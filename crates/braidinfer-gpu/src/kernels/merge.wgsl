// The output of a query head of a token, from what attention made of each span of keys, in their order.
struct Parameters {
    positions_at: u32,
    first_token: u32,
    first_span: u32,
    spans: u32,
    window: u32,
    output_stride: u32,
    // Of the output of the projections, where gates are.
    input_stride: u32,
    gate_column: u32,
}

var<immediate> parameters: Parameters;

@group(0) @binding(0) var<storage, read> partials: array<f32>;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> input: array<f32>;
@group(0) @binding(3) var<storage, read> sinks: array<f32>;
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

{% if gate != "none" %}
fn logistic(x: f32) -> f32 {
    let e = exp(-abs(x));
    return select(1.0f, e, x < 0.0f) / (1.0f + e);
}
{% endif %}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = group.x;
    let token = parameters.first_token + group.y;
    let position = step[parameters.positions_at + token];
    var start = 0u;
    if parameters.window > 0u && position >= parameters.window {
        start = position + 1u - parameters.window;
    }
    let first = start / 256u - parameters.first_span;
    let last = position / 256u - parameters.first_span;
    let partial = (group.y * {{ heads }}u + head) * parameters.spans * {{ head_dim + 2 }}u;
{% if has_sinks %}
    var most = sinks[head];
{% else %}
    var most = partials[partial + first * {{ head_dim + 2 }}u + {{ head_dim }}u];
{% endif %}
    for (var span = first; span <= last; span++) {
        most = max(most, partials[partial + span * {{ head_dim + 2 }}u + {{ head_dim }}u]);
    }
{% if has_sinks %}
    var sum = exp(sinks[head] - most);
{% else %}
    var sum = 0.0f;
{% endif %}
    for (var span = first; span <= last; span++) {
        let at = partial + span * {{ head_dim + 2 }}u + {{ head_dim }}u;
        sum = fma(partials[at + 1u], exp(partials[at] - most), sum);
    }
    let row = token * parameters.output_stride;
    for (var index = thread; index < {{ head_dim }}u; index += 64u) {
        var value = 0.0f;
        for (var span = first; span <= last; span++) {
            let at = partial + span * {{ head_dim + 2 }}u;
            value = fma(partials[at + index], exp(partials[at + {{ head_dim }}u] - most), value);
        }
        value /= sum;
{% if gate == "queries" %}
        value *= logistic(input[token * parameters.input_stride + head * {{ 2 * head_dim }}u + {{ head_dim }}u + index]);
{% elif gate == "heads" %}
        value *= logistic(input[token * parameters.input_stride + parameters.gate_column + head]);
{% endif %}
        output[row + head * {{ head_dim }}u + index] = value;
    }
    // Products read whole blocks.
    if head == {{ heads - 1 }}u {
        for (var index = {{ heads * head_dim }}u + thread; index < parameters.output_stride; index += 64u) {
            output[row + index] = 0.0f;
        }
    }
}
