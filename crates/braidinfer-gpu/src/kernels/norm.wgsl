// The residual stream of a token: adds a branch to it, normed or not, and norms the sum.
struct Parameters {
    width: u32,
    stride: u32,
    // Of the branch, and of what is written.
    branch_stride: u32,
    output_stride: u32,
    factor: f32,
    // Of the stream, after the branch was added.
    stream_factor: f32,
    // Where the rows that are normed are listed, in the step.
    rows_at: u32,
}

var<immediate> parameters: Parameters;

@group(0) @binding(0) var<storage, read_write> stream: array<f32>;
@group(0) @binding(1) var<storage, read> branch: array<f32>;
@group(0) @binding(2) var<storage, read> branch_norm: array<f32>;
@group(0) @binding(3) var<storage, read> norm: array<f32>;
@group(0) @binding(4) var<storage, read_write> output: array<f32>;
@group(0) @binding(5) var<storage, read> step: array<u32>;

{% set threads = 256 %}
{% include "tree_sum" %}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let width = parameters.width;
{% if selects %}
    let start = step[parameters.rows_at + group.x] * parameters.stride;
{% else %}
    let start = group.x * parameters.stride;
{% endif %}
{% if add != "none" %}
    let branch_start = group.x * parameters.branch_stride;
{% endif %}
{% if add == "normed" %}
    {
        var total = 0.0f;
{% if branch_layer %}
        for (var index = thread; index < width; index += 256u) {
            total += branch[branch_start + index];
        }
        let mean = sum_of(thread, total) / f32(width);
        total = 0.0f;
{% else %}
        let mean = 0.0f;
{% endif %}
        for (var index = thread; index < width; index += 256u) {
            let value = branch[branch_start + index] - mean;
            total = fma(value, value, total);
        }
        let inverse = 1.0f / sqrt(sum_of(thread, total) / f32(width) + {{ branch_eps }});
        for (var index = thread; index < width; index += 256u) {
            let normed = (branch[branch_start + index] - mean) * inverse * branch_norm[index]{% if branch_bias %} + branch_norm[width + index]{% endif %};
            stream[start + index] = fma(parameters.factor, normed, stream[start + index]) * parameters.stream_factor;
        }
    }
{% elif add == "plain" %}
    for (var index = thread; index < width; index += 256u) {
        stream[start + index] = fma(parameters.factor, branch[branch_start + index], stream[start + index]) * parameters.stream_factor;
    }
{% endif %}
{% if norm != "none" %}
    {
        // Each thread reads what it has written itself.
        var total = 0.0f;
{% if norm == "layer" %}
        for (var index = thread; index < width; index += 256u) {
            total += stream[start + index];
        }
        let mean = sum_of(thread, total) / f32(width);
        total = 0.0f;
{% else %}
        let mean = 0.0f;
{% endif %}
        for (var index = thread; index < width; index += 256u) {
            let value = stream[start + index] - mean;
            total = fma(value, value, total);
        }
        let inverse = 1.0f / sqrt(sum_of(thread, total) / f32(width) + {{ eps }});
        let to = group.x * parameters.output_stride;
        for (var index = thread; index < width; index += 256u) {
            output[to + index] = (stream[start + index] - mean) * inverse * norm[index]{% if bias %} + norm[width + index]{% endif %};
        }
    }
{% endif %}
}
