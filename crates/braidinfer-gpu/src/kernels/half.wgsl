// The value of the f16 in the low half of a word. Written out, since drivers may take denormals as zeros, which scales of
// quantized weights often are.
fn half_value(word: u32) -> f32 {
    let exponent = word & 0x7c00u;
    let mantissa = word & 0x3ffu;
    let normal = bitcast<f32>(((word & 0x7fffu) << 13u) + 0x38000000u);
    let denormal = f32(mantissa) * 5.9604644775390625e-8f;
    let infinite = bitcast<f32>(0x7f800000u | (mantissa << 13u));
    let magnitude = select(select(normal, infinite, exponent == 0x7c00u), denormal, exponent == 0u);
    return select(magnitude, -magnitude, (word & 0x8000u) != 0u);
}

// The nearest f16, in the low half of a word; even where two are as near, and infinite beyond the largest.
fn half_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return sign | 0x7e00u;
    }
    if magnitude < 0x38800000u {
        return sign | u32(round(bitcast<f32>(magnitude) * 16777216.0f));
    }
    let rounded = (magnitude + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u;
    return sign | min(rounded - 0x1c000u, 0x7c00u);
}
