// Four weights of a row: of block `block`, of 32 columns, those from `4 * quarter` on. `lane` is the row's place in its panel.
{% include "half" %}

fn word(base: u32, index: u32, lane: u32) -> u32 {
    return weights[base + index * 32u + lane];
}

// The f16 that a block has beside its words.
fn block_half(base: u32, lane: u32) -> f32 {
    return half_value(weights[base + {{ row_words }}u * 32u + lane / 2u] >> (16u * (lane & 1u)));
}

fn bytes_of(word: u32) -> vec4<u32> {
    return (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
}

{% if format in ["iq4_nl", "iq4_xs"] %}
fn level(code: u32) -> f32 {
    // -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113, each plus 128.
    let low = select(0x3f2d1801u, 0x766a5d4fu, (code & 4u) != 0u);
    let high = select(0xa6998d81u, 0xf1d9c5b5u, (code & 4u) != 0u);
    let levels = select(low, high, (code & 8u) != 0u);
    return f32((levels >> (8u * (code & 3u))) & 0xffu) - 128.0f;
}
{% endif %}
{% if format in ["mxfp4"] %}
fn level(code: u32) -> f32 {
    // Twice 0, 0.5, 1, 1.5, 2, 3, 4 and 6.
    let levels = select(0x03020100u, 0x0c080604u, (code & 4u) != 0u);
    let magnitude = f32((levels >> (8u * (code & 3u))) & 0xffu);
    return select(magnitude, -magnitude, (code & 8u) != 0u);
}
{% endif %}
{% if format in ["q4_k", "q5_k"] %}
// The 6-bit scale and minimum of 32 columns.
fn scale_and_minimum(base: u32, lane: u32, inner: u32) -> vec2<f32> {
    let shift = 8u * (inner & 3u);
    let first = word(base, 1u, lane) >> shift;
    let second = word(base, 2u, lane) >> shift;
    let third = word(base, 3u, lane) >> shift;
    let low = vec2<u32>(first & 63u, second & 63u);
    let high = vec2<u32>((third & 15u) | ((first >> 2u) & 48u), ((third >> 4u) & 15u) | ((second >> 2u) & 48u));
    return vec2<f32>(select(low, high, inner >= 4u));
}
{% endif %}

{% if format in ["q5_0", "q5_1"] %}
// The highest bits of four codes, from those of all 32.
fn fifth_bits(bits: u32, quarter: u32) -> vec4<u32> {
    return ((vec4<u32>(bits >> (4u * quarter)) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u)) << vec4<u32>(4u);
}
{% endif %}

fn weights_of(panel: u32, block: u32, quarter: u32, lane: u32) -> vec4<f32> {
    let base = (panel * (({{ blocks }} + {{ inner_blocks - 1 }}u) / {{ inner_blocks }}u) + block / {{ inner_blocks }}u) * {{ panel_words }}u;
{% if inner_blocks > 1 %}
    let inner = block % {{ inner_blocks }}u;
{% endif %}
{% if format == "f32" %}
    return bitcast<vec4<f32>>(vec4<u32>(
        word(base, 4u * quarter, lane), word(base, 4u * quarter + 1u, lane),
        word(base, 4u * quarter + 2u, lane), word(base, 4u * quarter + 3u, lane),
    ));
{% elif format == "f16" %}
    let first = word(base, 2u * quarter, lane);
    let second = word(base, 2u * quarter + 1u, lane);
    return vec4<f32>(half_value(first), half_value(first >> 16u), half_value(second), half_value(second >> 16u));
{% elif format == "bf16" %}
    let first = word(base, 2u * quarter, lane);
    let second = word(base, 2u * quarter + 1u, lane);
    return bitcast<vec4<f32>>(vec4<u32>(first << 16u, first & 0xffff0000u, second << 16u, second & 0xffff0000u));
{% elif format == "q8_0" %}
    let codes = bitcast<vec4<i32>>(vec4<u32>(word(base, quarter, lane)) << vec4<u32>(24u, 16u, 8u, 0u));
    return block_half(base, lane) * vec4<f32>(codes >> vec4<u32>(24u));
{% elif format == "q4_0" %}
    let codes = (bytes_of(word(base, quarter & 3u, lane)) >> vec4<u32>(quarter & 4u)) & vec4<u32>(15u);
    return block_half(base, lane) * (vec4<f32>(codes) - vec4<f32>(8.0f));
{% elif format == "iq4_nl" %}
    let codes = (bytes_of(word(base, quarter & 3u, lane)) >> vec4<u32>(quarter & 4u)) & vec4<u32>(15u);
    return block_half(base, lane) * vec4<f32>(level(codes.x), level(codes.y), level(codes.z), level(codes.w));
{% elif format == "mxfp4" %}
    let codes = (bytes_of(word(base, quarter & 3u, lane)) >> vec4<u32>(quarter & 4u)) & vec4<u32>(15u);
    let exponent = (weights[base + {{ row_words }}u * 32u + lane / 4u] >> (8u * (lane & 3u))) & 0xffu;
    // 2^(exponent - 128): half of the scale, since levels are twice as large. The smallest two are denormals.
    let scale = bitcast<f32>(select((exponent - 1u) << 23u, 0x200000u << exponent, exponent < 2u));
    return scale * vec4<f32>(level(codes.x), level(codes.y), level(codes.z), level(codes.w));
{% elif format == "q4_1" %}
    let scales = word(base, 0u, lane);
    let codes = (bytes_of(word(base, 1u + (quarter & 3u), lane)) >> vec4<u32>(quarter & 4u)) & vec4<u32>(15u);
    return half_value(scales) * vec4<f32>(codes) + vec4<f32>(half_value(scales >> 16u));
{% elif format == "q5_0" %}
    let low = (bytes_of(word(base, 1u + (quarter & 3u), lane)) >> vec4<u32>(quarter & 4u)) & vec4<u32>(15u);
    let codes = low | fifth_bits(word(base, 0u, lane), quarter);
    return block_half(base, lane) * (vec4<f32>(codes) - vec4<f32>(16.0f));
{% elif format == "q5_1" %}
    let scales = word(base, 0u, lane);
    let low = (bytes_of(word(base, 2u + (quarter & 3u), lane)) >> vec4<u32>(quarter & 4u)) & vec4<u32>(15u);
    let codes = low | fifth_bits(word(base, 1u, lane), quarter);
    return half_value(scales) * vec4<f32>(codes) + vec4<f32>(half_value(scales >> 16u));
{% elif format == "q2_k" %}
    let scales = word(base, 20u, lane);
    let at = inner * 2u + quarter / 4u;
    let own = word(base, at / 4u, lane) >> (8u * (at & 3u));
    let codes = (bytes_of(word(base, 4u + (inner >> 2u) * 8u + quarter, lane)) >> vec4<u32>(2u * (inner & 3u))) & vec4<u32>(3u);
    let minimum = half_value(scales >> 16u) * f32((own >> 4u) & 15u);
    return half_value(scales) * f32(own & 15u) * vec4<f32>(codes) - vec4<f32>(minimum);
{% elif format == "q3_k" %}
    let at = inner * 2u + quarter / 4u;
    let low = (word(base, 24u + ((at & 7u) / 4u), lane) >> (8u * (at & 3u) + 4u * (at / 8u))) & 15u;
    let high = (word(base, 26u, lane) >> (8u * (at & 3u) + 2u * (at / 4u))) & 3u;
    let scale = f32(low | (high << 4u)) - 32.0f;
    let two = (bytes_of(word(base, 8u + (inner >> 2u) * 8u + quarter, lane)) >> vec4<u32>(2u * (inner & 3u))) & vec4<u32>(3u);
    let third = (bytes_of(word(base, quarter, lane)) >> vec4<u32>(inner)) & vec4<u32>(1u);
    return block_half(base, lane) * scale * (vec4<f32>(two | (third << vec4<u32>(2u))) - vec4<f32>(4.0f));
{% elif format == "iq4_xs" %}
    let scales = word(base, 0u, lane);
    let low = (word(base, 1u, lane) >> (4u * inner)) & 15u;
    let high = (scales >> (16u + 2u * inner)) & 3u;
    let codes = (bytes_of(word(base, 2u + inner * 4u + (quarter & 3u), lane)) >> vec4<u32>(quarter & 4u)) & vec4<u32>(15u);
    let scale = half_value(scales) * (f32(low | (high << 4u)) - 32.0f);
    return scale * vec4<f32>(level(codes.x), level(codes.y), level(codes.z), level(codes.w));
{% elif format == "q4_k" %}
    let scales = word(base, 0u, lane);
    let own = scale_and_minimum(base, lane, inner);
    let codes = (bytes_of(word(base, 4u + (inner / 2u) * 8u + quarter, lane)) >> vec4<u32>(4u * (inner & 1u))) & vec4<u32>(15u);
    return half_value(scales) * own.x * vec4<f32>(codes) - vec4<f32>(half_value(scales >> 16u) * own.y);
{% elif format == "q5_k" %}
    let scales = word(base, 0u, lane);
    let own = scale_and_minimum(base, lane, inner);
    let low = (bytes_of(word(base, 12u + (inner / 2u) * 8u + quarter, lane)) >> vec4<u32>(4u * (inner & 1u))) & vec4<u32>(15u);
    let high = (bytes_of(word(base, 4u + quarter, lane)) >> vec4<u32>(inner)) & vec4<u32>(1u);
    let codes = low | (high << vec4<u32>(4u));
    return half_value(scales) * own.x * vec4<f32>(codes) - vec4<f32>(half_value(scales >> 16u) * own.y);
{% elif format == "q6_k" %}
    let half = inner >> 2u;
    let low = (bytes_of(word(base, half * 16u + (inner & 1u) * 8u + quarter, lane)) >> vec4<u32>(2u * (inner & 2u))) & vec4<u32>(15u);
    let high = (bytes_of(word(base, 32u + half * 8u + quarter, lane)) >> vec4<u32>(2u * (inner & 3u))) & vec4<u32>(3u);
    let codes = vec4<f32>(low | (high << vec4<u32>(4u))) - vec4<f32>(32.0f);
    let scale_at = inner * 2u + quarter / 4u;
    let scale = bitcast<i32>(word(base, 48u + scale_at / 4u, lane) << (24u - 8u * (scale_at & 3u))) >> 24u;
    return block_half(base, lane) * f32(scale) * codes;
{% endif %}
}
