// The largest value of a row, the first one of equals, and whether all are finite.
struct Parameters {
    // Of the rows.
    stride: u32,
    // Values of a row that count.
    width: u32,
    first_row: u32,
}

var<immediate> parameters: Parameters;

@group(0) @binding(0) var<storage, read> input: array<f32>;
// For each row: where its largest value is, and that value; if any is not finite, where the first of these is, and NaN.
@group(0) @binding(1) var<storage, read_write> output: array<u32>;

var<workgroup> values: array<f32, 256>;
var<workgroup> places: array<u32, 256>;
var<workgroup> faults: array<u32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = (parameters.first_row + group.x) * parameters.stride;
    var largest = -3.4028234e38f;
    var place = 0xffffffffu;
    var fault = 0xffffffffu;
    for (var index = thread; index < parameters.width; index += 256u) {
        let value = input[row + index];
        if (bitcast<u32>(value) & 0x7f800000u) == 0x7f800000u {
            fault = min(fault, index);
        } else if value > largest || place == 0xffffffffu {
            largest = value;
            place = index;
        }
    }
    values[thread] = largest;
    places[thread] = place;
    faults[thread] = fault;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if thread < half {
            let other = values[thread + half];
            let there = places[thread + half];
            if other > values[thread] || (other == values[thread] && there < places[thread]) {
                values[thread] = other;
                places[thread] = there;
            }
            faults[thread] = min(faults[thread], faults[thread + half]);
        }
        workgroupBarrier();
    }
    if thread == 0u {
        let is_finite = faults[0] == 0xffffffffu;
        output[2u * group.x] = select(faults[0], places[0], is_finite);
        output[2u * group.x + 1u] = select(0x7fc00000u, bitcast<u32>(values[0]), is_finite);
    }
}
