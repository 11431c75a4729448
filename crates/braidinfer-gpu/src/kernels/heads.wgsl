// The heads of queries, keys and values of a token, from the output of their projections: norms them, turns queries and keys, and
// stores keys and values.
struct Parameters {
    // Of the output of the projections.
    input_stride: u32,
    // Of queries, as attention reads them.
    query_stride: u32,
    // Where, in the step, the slot of each token is.
    slots_at: u32,
    // Where the cosines of all tokens are, and the sines.
    cosines_at: u32,
    sines_at: u32,
    // Where the factors of queries are.
    scales_at: u32,
}

var<immediate> parameters: Parameters;

@group(0) @binding(0) var<storage, read> input: array<f32>;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> norms: array<f32>;
@group(0) @binding(3) var<storage, read_write> queries: array<f32>;
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;

{% include "half" %}

var<workgroup> head: array<f32, {{ head_dim }}>;
{% set threads = 64 %}
{% include "tree_sum" %}

// Norms the head. The statistics are those of `count` values from `start` on in the input, or of the head itself.
fn normalize(thread: u32, weight: u32, bias: u32, start: u32, count: u32) {
    var total = 0.0f;
{% if norm == "layer" %}
    for (var index = thread; index < count; index += 64u) {
{% if extent == "projection" %}
        total += input[start + index];
{% else %}
        total += head[index];
{% endif %}
    }
    let mean = sum_of(thread, total) / f32(count);
    total = 0.0f;
{% else %}
    let mean = 0.0f;
{% endif %}
    for (var index = thread; index < count; index += 64u) {
{% if extent == "projection" %}
        let value = input[start + index] - mean;
{% else %}
        let value = head[index] - mean;
{% endif %}
        total = fma(value, value, total);
    }
    let inverse = 1.0f / sqrt(sum_of(thread, total) / f32(count) + {{ eps }});
    for (var index = thread; index < {{ head_dim }}u; index += 64u) {
        head[index] = (head[index] - mean) * inverse * norms[weight + index]{% if bias %} + norms[bias + index]{% endif %};
    }
    workgroupBarrier();
}

{% if value_norm %}
fn normalize_value(thread: u32) {
    var total = 0.0f;
    for (var index = thread; index < {{ head_dim }}u; index += 64u) {
        total = fma(head[index], head[index], total);
    }
    let inverse = 1.0f / sqrt(sum_of(thread, total) / {{ head_dim }}.0f + {{ value_eps }});
    for (var index = thread; index < {{ head_dim }}u; index += 64u) {
        head[index] *= inverse;
    }
    workgroupBarrier();
}
{% endif %}

fn rotate(thread: u32, token: u32) {
{% if pairs > 0 %}
    for (var pair = thread; pair < {{ pairs }}u; pair += 64u) {
        let cosine = bitcast<f32>(step[parameters.cosines_at + token * {{ pairs }}u + pair]);
        let sine = bitcast<f32>(step[parameters.sines_at + token * {{ pairs }}u + pair]);
{% if interleaved %}
        let first = 2u * pair;
        let second = first + 1u;
{% else %}
        let first = pair;
        let second = pair + {{ pairs }}u;
{% endif %}
        let x = head[first];
        let y = head[second];
        head[first] = x * cosine - y * sine;
        head[second] = y * cosine + x * sine;
    }
    workgroupBarrier();
{% endif %}
}

fn load(thread: u32, start: u32) {
    for (var index = thread; index < {{ head_dim }}u; index += 64u) {
        head[index] = input[start + index];
    }
    workgroupBarrier();
}

// Norm and rotation of a query or key.
fn prepare(thread: u32, token: u32, weight: u32, bias: u32, start: u32, count: u32) {
{% if norm != "none" and not after_rope %}
    normalize(thread, weight, bias, start, count);
{% endif %}
    rotate(thread, token);
{% if norm != "none" and after_rope %}
    normalize(thread, weight, bias, start, count);
{% endif %}
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = group.y;
    let row = token * parameters.input_stride;
    if group.x < {{ heads }}u {
        let query = group.x;
        load(thread, row + query * {{ query_rows }}u);
        prepare(thread, token, {{ query_weight }}u{% if extent != "head" %} + query * {{ head_dim }}u{% endif %}, {{ query_bias }}u{% if extent != "head" %} + query * {{ head_dim }}u{% endif %}, row, {{ query_count }}u);
{% if scales_queries %}
        let scale = bitcast<f32>(step[parameters.scales_at + token]);
{% else %}
        let scale = 1.0f;
{% endif %}
        for (var index = thread; index < {{ head_dim }}u; index += 64u) {
            queries[token * parameters.query_stride + query * {{ head_dim }}u + index] = head[index] * scale;
        }
        return;
    }
{% if has_keys %}
    let slot = step[parameters.slots_at + token];
    let kv_head = (group.x - {{ heads }}u) % {{ kv_heads }}u;
    let tile = ((slot / 16u) * {{ kv_heads }}u + kv_head) * {{ 16 * head_words }}u;
    let lane = slot % 16u;
    if group.x < {{ heads + kv_heads }}u {
        load(thread, row + {{ key_column }}u + kv_head * {{ head_dim }}u);
        prepare(thread, token, {{ key_weight }}u{% if extent != "head" %} + kv_head * {{ head_dim }}u{% endif %}, {{ key_bias }}u{% if extent != "head" %} + kv_head * {{ head_dim }}u{% endif %}, row + {{ key_column }}u, {{ key_count }}u);
        for (var index = thread; index < {{ head_words }}u; index += 64u) {
{% if half_kv %}
            keys[tile + index * 16u + lane] = half_bits(head[2u * index]) | (half_bits(head[2u * index + 1u]) << 16u);
{% else %}
            keys[tile + index * 16u + lane] = bitcast<u32>(head[index]);
{% endif %}
        }
        return;
    }
    load(thread, row + {{ value_column }}u + kv_head * {{ head_dim }}u);
{% if value_norm %}
    normalize_value(thread);
{% endif %}
    for (var index = thread; index < {{ head_words }}u; index += 64u) {
{% if half_kv %}
        values[tile + lane * {{ head_words }}u + index] = half_bits(head[2u * index]) | (half_bits(head[2u * index + 1u]) << 16u);
{% else %}
        values[tile + lane * {{ head_words }}u + index] = bitcast<u32>(head[index]);
{% endif %}
    }
{% endif %}
}
