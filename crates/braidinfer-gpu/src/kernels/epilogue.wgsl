// What becomes of a sum of products.
struct Parameters {
    // Rows of activations.
    tokens: u32,
    // Of the activations that are read, in groups of four.
    input_stride: u32,
    // Of what is written.
    output_stride: u32,
    // Where the rows of the matrix begin in what is written.
    output_column: u32,
    // Blocks of 32 columns.
    blocks: u32,
    // Blocks of a range.
    range: u32,
    // The first panel of this part of the matrix.
    first_panel: u32,
    // Number of panels of this part.
    panels: u32,
    // Rows of the output, at most.
    rows: u32,
    // Of what is added to the residual stream.
    factor: f32,
    activation_x: f32,
    activation_y: f32,
    activation_z: f32,
    // Of logits.
    scaling: f32,
    cap: f32,
}

var<immediate> parameters: Parameters;

@group(0) @binding(0) var<storage, read> weights: array<u32>;
@group(0) @binding(1) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

{% include "weights" %}

{% if has_softcap or activation == "gelu_pytorch_tanh" %}
{% include "softcap" %}
{% endif %}
{% if epilogue == "gated" or epilogue == "activated" %}
{% include "activation" %}
{% endif %}

fn with_bias(sum: f32, row: u32) -> f32 {
{% if has_bias %}
    return sum + bias[row];
{% else %}
    return sum;
{% endif %}
}

{% if epilogue == "gated" %}
// Rows of gate and up projection alternate.
fn finish_pair(gate: f32, up: f32, row: u32, token: u32) {
    let value = activation(with_bias(gate, row)) * with_bias(up, row + 1u);
    output[token * parameters.output_stride + parameters.output_column + row / 2u] = value;
}
{% else %}
fn finish(sum: f32, row: u32, token: u32) {
    let value = with_bias(sum, row);
    let at = token * parameters.output_stride + parameters.output_column + row;
{% if epilogue == "added" %}
    output[at] = fma(parameters.factor, value, output[at]);
{% elif epilogue == "activated" %}
    output[at] = activation(value);
{% elif epilogue == "logits" %}
    let scaled = value / parameters.scaling;
{% if has_softcap %}
    output[at] = softcap(scaled, parameters.cap);
{% else %}
    output[at] = scaled;
{% endif %}
{% else %}
    output[at] = value;
{% endif %}
}
{% endif %}
