fn logistic(x: f32) -> f32 {
    // Of -x, where the exponential would overflow; what drivers make of infinity they may choose.
    let e = exp(-abs(x));
    return select(1.0f, e, x < 0.0f) / (1.0f + e);
}
{% if activation == "gelu" %}

// Abramowitz and Stegun 1964, 7.1.26: within 1.5e-7.
fn error_function(x: f32) -> f32 {
    let t = 1.0f / (1.0f + 0.3275911f * abs(x));
    let sum = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    return sign(x) * (1.0f - sum * exp(-x * x));
}
{% endif %}

fn activation(x: f32) -> f32 {
{% if activation == "silu" %}
    let scaled = x * parameters.activation_x;
    return scaled * logistic(scaled);
{% elif activation == "gelu_pytorch_tanh" %}
    return 0.5f * x * (1.0f + tangent(0.7978845608028654f * (x + 0.044715f * x * x * x)));
{% elif activation == "gelu" %}
    return 0.5f * x * (1.0f + error_function(x * 0.70710678118654752f));
{% elif activation == "relu" %}
    // Unlike `max`, this keeps NaN, so that it is found.
    return select(x, 0.0f, x < 0.0f);
{% elif activation == "relu2" %}
    let positive = select(x, 0.0f, x < 0.0f);
    return positive * positive;
{% elif activation == "xielu" %}
    let positive = parameters.activation_x * x * x;
    let negative = parameters.activation_y * (exp(min(x, 0.0f)) - 1.0f - x);
    return select(negative, positive, x > 0.0f) + parameters.activation_z * x;
{% endif %}
}
