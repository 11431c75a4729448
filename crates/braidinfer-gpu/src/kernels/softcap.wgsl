// The hyperbolic tangent. That of drivers may overflow, or have few right digits near zero.
fn tangent(x: f32) -> f32 {
    let square = x * x;
    let near = x * (1.0f + square * (-1.0f / 3.0f + square * (2.0f / 15.0f + square * (-17.0f / 315.0f + square * (62.0f / 2835.0f)))));
    let far = sign(x) * (1.0f - 2.0f / (exp(2.0f * min(abs(x), 20.0f)) + 1.0f));
    // So that NaN is near, which keeps it: far out, `min` may drop it.
    return select(near, far, abs(x) >= 0.3f);
}

fn softcap(x: f32, cap: f32) -> f32 {
    return cap * tangent(x / cap);
}
