//! Every operation of every instruction set against [`Scalar`](super::Scalar), on hostile values.

use proptest::prelude::*;

use super::{LANES, Simd};
use crate::isa::{Isa, dispatched_bf16, dispatched_products};

type Lanes = [u32; LANES];

/// The lanes of a result, by the name of the operation.
type Results = Vec<(&'static str, Lanes)>;

/// Zeros, infinities, NaN with and without the quiet bit, denormals, the ends of the range, ones, halves (ties of
/// rounding) and numbers beside them.
const FLOATS: [u32; 24] = [
    0x00000000, 0x7f800000, 0x7fc00000, 0x7f800001, 0x7fffffff, 0x00000001, 0x007fffff, 0x00800000, 0x7f7fffff,
    0x3f800000, 0x3f7fffff, 0x3f800001, 0x3f000000, 0x3effffff, 0x3f000001, 0x3fc00000, 0x40200000, 0x40600000,
    0x4b000000, 0x4affffff, 0x4b7fffff, 0x3f808000, 0x3f818000, 0x40007fff,
];

/// Bytes at the ends of their ranges.
const BYTES: [u8; 8] = [0, 1, 0x3f, 0x7f, 0x80, 0x81, 0xfe, 0xff];

/// The bits of a float: special ones with either sign, or any.
fn float() -> impl Strategy<Value = u32> {
    prop_oneof![
        (0..FLOATS.len(), any::<bool>()).prop_map(|(index, minus)| FLOATS[index] | u32::from(minus) << 31),
        any::<u32>(),
        // Of similar size, so that sums and products are rounded.
        (any::<u32>(), 0..16_u32).prop_map(|(bits, exponent)| bits & 0x807f_ffff | (120 + exponent) << 23),
    ]
}

/// Four bytes, extreme or any.
fn word() -> impl Strategy<Value = u32> {
    let byte = || prop_oneof![(0..BYTES.len()).prop_map(|index| BYTES[index]), any::<u8>()];
    [byte(), byte(), byte(), byte()].prop_map(u32::from_le_bytes)
}

fn lanes(of: impl Strategy<Value = u32>) -> impl Strategy<Value = Lanes> {
    prop::collection::vec(of, LANES).prop_map(|lanes| lanes.try_into().expect("16 lanes"))
}

fn floats(bits: &Lanes) -> [f32; LANES] {
    bits.map(f32::from_bits)
}

fn bytes(words: &Lanes) -> [u8; 4 * LANES] {
    let mut bytes = [0; 4 * LANES];
    for (to, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
    bytes
}

#[inline(always)]
fn of_floats<S: Simd>(simd: S, value: S::F32) -> Lanes {
    let mut lanes = [0.0; LANES];
    simd.store(value, &mut lanes);
    lanes.map(f32::to_bits)
}

#[inline(always)]
fn of_integers<S: Simd>(simd: S, value: S::I32) -> Lanes {
    let mut bytes = [0; 64];
    simd.store_i32(value, &mut bytes);
    let mut lanes = [0; LANES];
    for (lane, bytes) in lanes.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *lane = u32::from_le_bytes(*bytes);
    }
    lanes
}

dispatched_products! {
    fn arithmetic(a: &Lanes, b: &Lanes, c: &Lanes) -> Results = arithmetic_of;
}

/// Operations that round. Which NaN they give is not defined.
#[inline(always)]
fn arithmetic_of<S: Simd>(simd: S, a: &Lanes, b: &Lanes, c: &Lanes) -> Results {
    let (a, b, c) = (simd.load(&floats(a)), simd.load(&floats(b)), simd.load(&floats(c)));
    vec![
        ("add", of_floats(simd, simd.add(a, b))),
        ("sub", of_floats(simd, simd.sub(a, b))),
        ("mul", of_floats(simd, simd.mul(a, b))),
        ("div", of_floats(simd, simd.div(a, b))),
        ("fma", of_floats(simd, simd.fma(a, b, c))),
        ("sum", [simd.sum(a).to_bits(); LANES]),
    ]
}

dispatched_products! {
    fn choices(a: &Lanes, b: &Lanes, c: &Lanes, d: &Lanes) -> Results = choices_of;
}

/// Operations on floats that do not round.
#[inline(always)]
fn choices_of<S: Simd>(simd: S, a: &Lanes, b: &Lanes, c: &Lanes, d: &Lanes) -> Results {
    let first = floats(a)[0];
    let (a, b, c, d) = (simd.load(&floats(a)), simd.load(&floats(b)), simd.load(&floats(c)), simd.load(&floats(d)));
    vec![
        ("splat", of_floats(simd, simd.splat(first))),
        ("load", of_floats(simd, a)),
        ("max", of_floats(simd, simd.max(a, b))),
        ("min", of_floats(simd, simd.min(a, b))),
        ("select_less", of_floats(simd, simd.select_less(a, b, c, d))),
        ("bits_of", of_integers(simd, simd.bits_of(a))),
        ("float_of", of_floats(simd, simd.float_of(simd.bits_of(a)))),
        ("largest", [simd.largest(a).to_bits(); LANES]),
        ("pair_bf16", of_integers(simd, simd.pair_bf16(a, b))),
    ]
}

dispatched_products! {
    fn conversions(halves: &[u16; LANES], small: &Lanes, integers: &Lanes) -> Results = conversions_of;
}

#[inline(always)]
fn conversions_of<S: Simd>(simd: S, halves: &[u16; LANES], small: &Lanes, integers: &Lanes) -> Results {
    let mut half_bytes = [0; 2 * LANES];
    for (to, half) in half_bytes.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
        *to = half.to_le_bytes();
    }
    vec![
        ("load_f16", of_floats(simd, simd.load_f16(halves))),
        ("load_f16_bytes", of_floats(simd, simd.load_f16_bytes(&half_bytes))),
        ("round", of_integers(simd, simd.round(simd.load(&floats(small))))),
        ("to_f32", of_floats(simd, simd.to_f32(simd.load_i32(&bytes(integers))))),
    ]
}

dispatched_products! {
    fn integers(a: &Lanes, b: &Lanes, few: &[u8; LANES], by: u32) -> Results = integers_of;
}

#[inline(always)]
fn integers_of<S: Simd>(simd: S, a: &Lanes, b: &Lanes, few: &[u8; LANES], by: u32) -> Results {
    let first = a[0] as i32;
    let (a, b) = (simd.load_i32(&bytes(a)), simd.load_i32(&bytes(b)));
    let mut lowest = [0; LANES];
    simd.store_i8(a, &mut lowest);
    let nibbles = simd.and(a, simd.splat_i32(0x0f0f_0f0f));
    vec![
        ("splat_i32", of_integers(simd, simd.splat_i32(first))),
        ("load_i32", of_integers(simd, a)),
        ("widen_u8", of_integers(simd, simd.widen_u8(few))),
        ("widen_i8", of_integers(simd, simd.widen_i8(few))),
        ("store_i8", lowest.map(u32::from)),
        ("add_i32", of_integers(simd, simd.add_i32(a, b))),
        ("sub_i32", of_integers(simd, simd.sub_i32(a, b))),
        ("max_i32", of_integers(simd, simd.max_i32(a, b))),
        ("sum_i32", [simd.sum_i32(a) as u32; LANES]),
        ("largest_i32", [simd.largest_i32(a) as u32; LANES]),
        ("and", of_integers(simd, simd.and(a, b))),
        ("or", of_integers(simd, simd.or(a, b))),
        ("shl by 1", of_integers(simd, simd.shl::<1>(a))),
        ("shl by 23", of_integers(simd, simd.shl::<23>(a))),
        ("shr by 4", of_integers(simd, simd.shr::<4>(a))),
        ("shr by 31", of_integers(simd, simd.shr::<31>(a))),
        ("sar", of_integers(simd, simd.sar(a, by))),
        ("look_up", of_integers(simd, simd.look_up(few, nibbles))),
    ]
}

dispatched_products! {
    fn dots(acc: &Lanes, a: &Lanes, b: &Lanes, x: &[u32; 8]) -> Results = dots_of;
}

#[inline(always)]
fn dots_of<S: Simd>(simd: S, acc: &Lanes, a: &Lanes, b: &Lanes, x: &[u32; 8]) -> Results {
    let (acc, a, b) = (simd.load_i32(&bytes(acc)), simd.load_i32(&bytes(a)), simd.load_i32(&bytes(b)));
    let small = simd.and(a, simd.splat_i32(0x7f7f_7f7f));
    // Where 8-bit codes have a sign, those are 128 too small.
    let shifted = simd.splat_i32(0x8080_8080_u32 as i32);
    let correction = if S::SIGNED_BYTES { simd.dot_u8_i8(simd.splat_i32(0), shifted, b) } else { simd.splat_i32(0) };
    let eight_bits = simd.add_i32(simd.dot_codes::<8>(acc, a, b), correction);
    let mut results = vec![
        ("dot_u8_i8", of_integers(simd, simd.dot_u8_i8(acc, a, b))),
        ("dot_codes of 7 bits", of_integers(simd, simd.dot_codes::<7>(acc, small, b))),
        ("dot_codes of 8 bits", of_integers(simd, eight_bits)),
    ];
    tile::<S, 1, 1>(simd, acc, [small; 1], x, &mut results);
    tile::<S, 1, 2>(simd, acc, [small; 1], x, &mut results);
    tile::<S, 1, 4>(simd, acc, [small; 1], x, &mut results);
    // More than four rows are multiplied only by instruction sets with larger tiles, and two panels by those for two.
    if S::TILE >= 8 {
        tile::<S, 2, 8>(simd, acc, [small, nibble_swapped(simd, small)], x, &mut results);
    }
    results
}

/// Other codes below 128.
#[inline(always)]
fn nibble_swapped<S: Simd>(simd: S, codes: S::I32) -> S::I32 {
    simd.and(simd.or(simd.shr::<4>(codes), simd.shl::<4>(codes)), simd.splat_i32(0x7f7f_7f7f))
}

/// Products of a tile, beside those of one vector at a time.
#[inline(always)]
fn tile<S: Simd, const P: usize, const N: usize>(
    simd: S,
    acc: S::I32,
    codes: [S::I32; P],
    x: &[u32; 8],
    results: &mut Results,
) {
    let mut dots = [[acc; N]; P];
    simd.dot_tile::<P, N, 7>(&mut dots, codes, x.first_chunk().expect("a word for each row"));
    let mut wide = dots;
    simd.dot_tile::<P, N, 8>(&mut wide, codes, x.first_chunk().expect("a word for each row"));
    for panel in 0..P {
        for row in 0..N {
            let quad = simd.splat_i32(x[row] as i32);
            let seven = simd.dot_u8_i8(acc, codes[panel], quad);
            let eight = simd.dot_codes::<8>(seven, codes[panel], quad);
            let equal = of_integers(simd, dots[panel][row]) == of_integers(simd, seven)
                && of_integers(simd, wide[panel][row]) == of_integers(simd, eight);
            results.push(("dot_tile", [u32::from(equal); LANES]));
        }
    }
}

dispatched_bf16! {
    fn dot_bf16(acc: &Lanes, a: &Lanes, b: &Lanes) -> Results = dot_bf16_of;
}

#[inline(always)]
fn dot_bf16_of<S: Simd>(simd: S, acc: &Lanes, a: &Lanes, b: &Lanes) -> Results {
    let (a, b) = (simd.load_i32(&bytes(a)), simd.load_i32(&bytes(b)));
    vec![("dot_bf16", of_floats(simd, simd.dot_bf16(simd.load(&floats(acc)), a, b)))]
}

fn is_nan(bits: u32) -> bool {
    f32::from_bits(bits).is_nan()
}

/// Holds every instruction set to the results of plain Rust. Any NaN is as good as another if `any_nan`.
fn compare(any_nan: bool, compute: impl Fn(Isa) -> Results) {
    let expected = compute(Isa::SCALAR);
    for isa in Isa::available() {
        let found = compute(isa);
        for (name, found) in &found {
            let (_, expected) = expected.iter().find(|(other, _)| other == name).expect("the same operations");
            for (lane, (found, expected)) in found.iter().zip(expected).enumerate() {
                let equal = found == expected || any_nan && is_nan(*found) && is_nan(*expected);
                assert!(equal, "{name} on {}, lane {lane}: {found:#x} instead of {expected:#x}", isa.name());
            }
        }
    }
}

/// A bf16 between 2^-8 and 2^8 of either sign.
fn plain_bf16() -> impl Strategy<Value = u32> {
    any::<u32>().prop_map(|bits| bits & 0x807f | (119 + (bits >> 7 & 15)) << 7)
}

fn pair(half: impl Strategy<Value = u32>) -> impl Strategy<Value = u32> {
    prop::collection::vec(half, 2).prop_map(|halves| halves[0] & 0xffff | halves[1] << 16)
}

/// Four bytes of at least -127.
fn balanced() -> impl Strategy<Value = u32> {
    word().prop_map(|word| u32::from_le_bytes(word.to_le_bytes().map(|byte| if byte == 0x80 { 0x81 } else { byte })))
}

proptest! {
    #[test]
    fn arithmetic_is_that_of_plain_rust(a in lanes(float()), b in lanes(float()), c in lanes(float())) {
        compare(true, |isa| arithmetic(isa, &a, &b, &c));
    }

    #[test]
    fn choices_are_those_of_plain_rust(
        a in lanes(float()),
        b in lanes(float()),
        c in lanes(float()),
        d in lanes(float()),
    ) {
        compare(false, |isa| choices(isa, &a, &b, &c, &d));
    }

    #[test]
    fn conversions_are_those_of_plain_rust(
        halves in any::<[u16; LANES]>(),
        quarters in any::<[i16; LANES]>(),
        large in lanes(float()),
        integers in any::<[i32; LANES]>(),
    ) {
        // Quarters of integers, of which every second one is a tie or an integer, and whatever fits in 31 bits.
        let mut small = quarters.map(|quarters| f32::from(quarters) / 4.0);
        for (small, large) in small.iter_mut().zip(floats(&large)).step_by(2) {
            if large.abs() < 2.0_f32.powi(31) {
                *small = large;
            }
        }
        let exact = integers.map(|integer| (integer >> 8) as u32);
        compare(false, |isa| conversions(isa, &halves, &small.map(f32::to_bits), &exact));
    }

    #[test]
    fn integers_are_those_of_plain_rust(
        a in lanes(word()),
        b in lanes(word()),
        few in any::<[u8; LANES]>(),
        by in 0..32_u32,
    ) {
        compare(false, |isa| integers(isa, &a, &b, &few, by));
    }

    #[test]
    fn products_of_bytes_are_those_of_plain_rust(
        acc in lanes(any::<u32>()),
        a in lanes(word()),
        b in lanes(balanced()),
        x in prop::collection::vec(balanced(), 8),
    ) {
        let x = x.try_into().expect("eight words");
        compare(false, |isa| dots(isa, &acc, &a, &b, &x));
    }

    #[test]
    fn products_of_bf16_are_those_of_plain_rust(
        acc in lanes(plain_bf16().prop_map(|bits| bits << 16 | 0x5555)),
        a in lanes(pair(plain_bf16())),
        b in lanes(pair(plain_bf16())),
        hostile in [lanes(float()), lanes(float()), lanes(float())],
    ) {
        compare(true, |isa| dot_bf16(isa, &acc, &a, &b));
        let [acc, a, b] = hostile;
        compare(true, |isa| if takes_denormals_as_zeros(isa) { vec![] } else { dot_bf16(isa, &acc, &a, &b) });
    }
}

fn takes_denormals_as_zeros(isa: Isa) -> bool {
    matches!(isa.name(), "avx512+bf16" | "avx512+amx")
}

/// Every f16, and every byte in every place.
#[test]
fn all_halves_and_bytes_are_widened() {
    for first in (0..=u16::MAX).step_by(LANES) {
        let halves = std::array::from_fn(|lane| first + lane as u16);
        compare(false, |isa| conversions(isa, &halves, &[0; LANES], &[0; LANES]));
    }
    for first in 0..=u8::MAX {
        let few = std::array::from_fn(|lane| first.wrapping_add(lane as u8));
        compare(false, |isa| integers(isa, &[0; LANES], &[0; LANES], &few, 0));
    }
}
