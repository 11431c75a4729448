// Attention of some query heads of a token that share a key head, over a span of 256 keys: their sum of values by the exponentials
// of scores, the largest score, and the sum of the exponentials.
struct Parameters {
    query_stride: u32,
    // Where, in the step, the positions of tokens are, and where their block tables begin.
    positions_at: u32,
    tables_at: u32,
    // The first token of this dispatch, and the first span.
    first_token: u32,
    first_span: u32,
    // Number of spans of this dispatch.
    spans: u32,
    // Number of keys that a query sees, all if 0.
    window: u32,
    scale: f32,
    cap: f32,
}

var<immediate> parameters: Parameters;

@group(0) @binding(0) var<storage, read> queries: array<f32>;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> keys: array<u32>;
@group(0) @binding(3) var<storage, read> values: array<u32>;
@group(0) @binding(4) var<storage, read_write> partials: array<f32>;

{% include "half" %}
{% if has_softcap %}
{% include "softcap" %}
{% endif %}

var<workgroup> query: array<f32, {{ together * head_dim }}>;
var<workgroup> scores: array<f32, {{ together * 256 }}>;
var<workgroup> largest: array<f32, 128>;
var<workgroup> sums: array<f32, 128>;
{% if split > 1 %}
var<workgroup> parts: array<f32, {{ split * together * head_dim }}>;
{% endif %}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = parameters.first_token + group.z;
    let position = step[parameters.positions_at + token];
    let span = (parameters.first_span + group.x) * 256u;
    var start = span;
    if parameters.window > 0u && position >= parameters.window {
        start = max(start, position + 1u - parameters.window);
    }
    let end = min(span + 256u, position + 1u);
    if start >= end {
        return;
    }
    let table = step[parameters.tables_at + token];
    // Workgroups of one key head follow each other.
    let first_head = group.y * {{ together }}u;
    let kv_head = first_head / {{ per_group }}u;
    for (var index = thread; index < {{ together * head_dim }}u; index += 128u) {
        query[index] = queries[token * parameters.query_stride + first_head * {{ head_dim }}u + index];
    }
    workgroupBarrier();
    for (var slot = thread; slot < 256u; slot += 128u) {
        let key = span + slot;
        if key >= start && key < end {
            let block = step[table + key / 16u];
            let tile = (block * {{ kv_heads }}u + kv_head) * {{ 16 * head_words }}u + key % 16u;
{% for head in range(together) %}
            var score{{ head }} = 0.0f;
{% endfor %}
            for (var index = 0u; index < {{ head_words }}u; index++) {
{% if half_kv %}
                let word = keys[tile + index * 16u];
                let first = half_value(word);
                let second = half_value(word >> 16u);
{% for head in range(together) %}
                score{{ head }} = fma(query[{{ head * head_dim }}u + 2u * index], first, score{{ head }});
                score{{ head }} = fma(query[{{ head * head_dim }}u + 2u * index + 1u], second, score{{ head }});
{% endfor %}
{% else %}
                let value = bitcast<f32>(keys[tile + index * 16u]);
{% for head in range(together) %}
                score{{ head }} = fma(query[{{ head * head_dim }}u + index], value, score{{ head }});
{% endfor %}
{% endif %}
            }
{% for head in range(together) %}
{% if has_softcap %}
            scores[{{ head * 256 }}u + slot] = softcap(score{{ head }} * parameters.scale, parameters.cap);
{% else %}
            scores[{{ head * 256 }}u + slot] = score{{ head }} * parameters.scale;
{% endif %}
{% endfor %}
        }
    }
    workgroupBarrier();
    // Sixteen threads for each head.
    let line = thread / 16u;
    if line < {{ together }}u {
        var most = -3.4028234e38f;
        for (var slot = thread % 16u; slot < 256u; slot += 16u) {
            if span + slot >= start && span + slot < end {
                most = max(most, scores[line * 256u + slot]);
            }
        }
        largest[thread] = most;
    }
    workgroupBarrier();
    if line < {{ together }}u {
        var most = largest[line * 16u];
        for (var other = 1u; other < 16u; other++) {
            most = max(most, largest[line * 16u + other]);
        }
        var sum = 0.0f;
        for (var slot = thread % 16u; slot < 256u; slot += 16u) {
            if span + slot >= start && span + slot < end {
                let weight = exp(scores[line * 256u + slot] - most);
                scores[line * 256u + slot] = weight;
                sum += weight;
            }
        }
        sums[thread] = sum;
    }
    workgroupBarrier();
    let partial = ((group.z * {{ heads }}u + first_head) * parameters.spans + group.x) * {{ head_dim + 2 }}u;
    let head_partials = parameters.spans * {{ head_dim + 2 }}u;
    if thread < {{ together }}u {
        var most = largest[thread * 16u];
        var sum = sums[thread * 16u];
        for (var other = 1u; other < 16u; other++) {
            most = max(most, largest[thread * 16u + other]);
            sum += sums[thread * 16u + other];
        }
        partials[partial + thread * head_partials + {{ head_dim }}u] = most;
        partials[partial + thread * head_partials + {{ head_dim + 1 }}u] = sum;
    }
    for (var item = thread; item < {{ split * together * head_words }}u; item += 128u) {
        let index = item % {{ head_words }}u;
        let head = (item / {{ head_words }}u) % {{ together }}u;
        let part = item / {{ together * head_words }}u;
        let part_start = max(start, span + part * {{ 256 // split }}u);
        let part_end = min(end, span + (part + 1u) * {{ 256 // split }}u);
        var first = 0.0f;
{% if half_kv %}
        var second = 0.0f;
{% endif %}
        var key = part_start;
        while key < part_end {
            let block = step[table + key / 16u];
            let tile = (block * {{ kv_heads }}u + kv_head) * {{ 16 * head_words }}u + index;
            let last = min(part_end, (key / 16u + 1u) * 16u);
            for (; key < last; key++) {
                let weight = scores[head * 256u + key - span];
                let word = values[tile + (key % 16u) * {{ head_words }}u];
{% if half_kv %}
                first = fma(weight, half_value(word), first);
                second = fma(weight, half_value(word >> 16u), second);
{% else %}
                first = fma(weight, bitcast<f32>(word), first);
{% endif %}
            }
        }
{% if split > 1 %}
        let at = (part * {{ together }}u + head) * {{ head_dim }}u;
{% if half_kv %}
        parts[at + 2u * index] = first;
        parts[at + 2u * index + 1u] = second;
{% else %}
        parts[at + index] = first;
{% endif %}
{% else %}
        let at = partial + head * head_partials;
{% if half_kv %}
        partials[at + 2u * index] = first;
        partials[at + 2u * index + 1u] = second;
{% else %}
        partials[at + index] = first;
{% endif %}
{% endif %}
    }
{% if split > 1 %}
    workgroupBarrier();
    for (var item = thread; item < {{ together * head_dim }}u; item += 128u) {
        var sum = 0.0f;
        for (var part = 0u; part < {{ split }}u; part++) {
            sum += parts[part * {{ together * head_dim }}u + item];
        }
        partials[partial + (item / {{ head_dim }}u) * head_partials + item % {{ head_dim }}u] = sum;
    }
{% endif %}
}
