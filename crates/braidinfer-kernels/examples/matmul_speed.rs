//! Speed of products on one thread, by weights, level and rows of activations.
//!
//! `cargo run --release -p braidinfer-kernels --example matmul_speed [ISA]`; the best of several passes each. Few rows read
//! weights from memory, many multiply them in the cache.

#![allow(clippy::print_stdout, reason = "what an example is for")]

use std::time::Instant;

use braidinfer_kernels::{
    Activations, Buffer, Isa, LANES, NumericLevel, Pages, PanelFormat, Panels, WeightType, encode_row, matmul,
    panel_bytes,
};

const COLUMNS: usize = 2048;
/// More than the caches hold.
const MANY_BYTES: usize = 128 << 20;
const REPETITIONS: usize = 7;

const CASES: [(WeightType, NumericLevel); 9] = [
    (WeightType::Q8_0, NumericLevel::Int8),
    (WeightType::Q4_0, NumericLevel::Int8),
    (WeightType::Q4K, NumericLevel::Int8),
    (WeightType::Q6K, NumericLevel::Int8),
    (WeightType::Bf16, NumericLevel::Bf16),
    (WeightType::Q8_0, NumericLevel::F32),
    (WeightType::Q4K, NumericLevel::F32),
    (WeightType::Bf16, NumericLevel::F32),
    (WeightType::F16, NumericLevel::F32),
];

fn main() {
    let only = std::env::args().nth(1);
    let wanted = |isa: &Isa| only.as_ref().map_or(isa.name() != "scalar", |name| name == isa.name());
    for isa in Isa::available().into_iter().filter(wanted) {
        for (weights, level) in CASES {
            for rows in [1, 2, 4, 8, 16, 512] {
                measure(isa, weights, level, rows);
            }
        }
    }
}

fn measure(isa: Isa, weights: WeightType, level: NumericLevel, rows: usize) {
    let format = PanelFormat::of(weights);
    let bytes = panel_bytes(format, COLUMNS);
    let panels = if rows > 16 { 16 } else { (MANY_BYTES / bytes).next_multiple_of(2) };
    let mut data = Pages::zeroed(bytes * panels).expect("there is memory");
    data.fill(0x11);
    let words = encode(isa, level, rows);
    let x = Activations { level, rows, columns: COLUMNS, words: &words };
    let mut out = Buffer::new();
    out.resize(panels * rows * LANES);
    let pass = || {
        let started = Instant::now();
        for (piece, out) in out.chunks_mut(2 * rows * LANES).enumerate() {
            let (data, ahead) = data[2 * piece * bytes..].split_at(2 * bytes);
            matmul(isa, Panels { format, columns: COLUMNS, data, ahead }, &x, out);
        }
        started.elapsed().as_secs_f64()
    };
    let best = std::iter::repeat_with(pass).take(REPETITIONS).fold(f64::INFINITY, f64::min);
    let (read, operations) = (data.len() as f64, (2 * panels * LANES * COLUMNS * rows) as f64);
    let name = format!("{} {weights:?} at {}", isa.name(), level.name());
    println!("{name:22} {rows:4} rows: {:6.1} GB/s {:7.1} GOP/s", read / best / 1e9, operations / best / 1e9);
}

fn encode(isa: Isa, level: NumericLevel, rows: usize) -> Vec<u32> {
    let values: Vec<f32> = (0..COLUMNS).map(|column| (column as f32).sin()).collect();
    let row_words = level.words(1, COLUMNS);
    let mut words = vec![0; rows * row_words];
    for tile in isa.tiles(rows) {
        let words = &mut words[tile.start * row_words..tile.end * row_words];
        for row in 0..tile.len() {
            encode_row(isa, level, &values, row, tile.len(), words);
        }
    }
    words
}
