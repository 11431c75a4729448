//! Speed of products by weights, level and rows of activations.
//!
//! `cargo run --release -p braidinfer-kernels --example matmul_speed [ISA] [THREADS] [WEIGHTS] [ROWS]`, one thread, all
//! types and several numbers of rows if left out; medians of several passes. Few rows read weights from memory, whose own
//! speed, measured between the passes, stands beside them; many multiply them in the cache.

#![allow(clippy::print_stdout, reason = "what an example is for")]

use std::time::Instant;

use braidinfer_kernels::ceilings::ReadPattern;
use braidinfer_kernels::{
    Activations, Buffer, Chunks, Isa, LANES, NumericLevel, Pages, PanelFormat, Panels, Pool, WeightType, ceilings,
    encode_row, matmul, panel_bytes,
};

const COLUMNS: usize = 2048;
/// More than the caches hold.
const MANY_BYTES: usize = 128 << 20;
/// Panels that a thread takes at a time.
const PIECE: usize = 4;
const REPETITIONS: usize = 9;

const ROWS: [usize; 6] = [1, 2, 4, 8, 16, 512];

const CASES: [(WeightType, NumericLevel); 19] = [
    (WeightType::Q8_0, NumericLevel::Int8),
    (WeightType::Q4_0, NumericLevel::Int8),
    (WeightType::Q4K, NumericLevel::Int8),
    (WeightType::Q6K, NumericLevel::Int8),
    (WeightType::Mxfp4, NumericLevel::Int8),
    (WeightType::Nvfp4, NumericLevel::Int8),
    (WeightType::Iq2Xxs, NumericLevel::Int8),
    (WeightType::Q8_0, NumericLevel::Int16),
    (WeightType::Q4_0, NumericLevel::Int16),
    (WeightType::Q4K, NumericLevel::Int16),
    (WeightType::Q6K, NumericLevel::Int16),
    (WeightType::Mxfp4, NumericLevel::Int16),
    (WeightType::Nvfp4, NumericLevel::Int16),
    (WeightType::Bf16, NumericLevel::Bf16),
    (WeightType::Q8_0, NumericLevel::F32),
    (WeightType::Q4K, NumericLevel::F32),
    (WeightType::Mxfp4, NumericLevel::F32),
    (WeightType::Bf16, NumericLevel::F32),
    (WeightType::F16, NumericLevel::F32),
];

fn main() {
    let only = std::env::args().nth(1);
    let wanted = |isa: &Isa| only.as_ref().map_or(isa.name() != "scalar", |name| name == isa.name());
    let threads = std::env::args().nth(2).map_or(1, |threads| threads.parse().expect("a number of threads"));
    let named = std::env::args().nth(3);
    let cases =
        CASES.into_iter().filter(|(weights, _)| named.as_ref().is_none_or(|name| *name == format!("{weights:?}")));
    assert!(cases.clone().next().is_some(), "WEIGHTS: expected one of {:?}, found {named:?}", CASES.map(|case| case.0));
    let rows = std::env::args().nth(4).map_or(ROWS.to_vec(), |rows| vec![rows.parse().expect("a number of rows")]);
    let mut pool = Pool::new(threads).expect("threads start");
    for isa in Isa::available().into_iter().filter(wanted) {
        for (weights, level) in cases.clone() {
            for &rows in &rows {
                measure(isa, &mut pool, weights, level, rows);
            }
        }
    }
}

fn measure(isa: Isa, pool: &mut Pool, weights: WeightType, level: NumericLevel, rows: usize) {
    let format = PanelFormat::of(weights);
    let bytes = panel_bytes(format, COLUMNS);
    let panels = if rows > 16 { 16 * pool.threads() } else { (MANY_BYTES / bytes).next_multiple_of(2) };
    let mut data = Pages::zeroed(bytes * panels).expect("there is memory");
    data.fill(0x11);
    let words = encode(isa, level, rows);
    let x = Activations { level, rows, columns: COLUMNS, words: &words };
    let mut out = Buffer::new();
    out.resize(panels * rows * LANES);
    let others = (pool.threads() - 1) * PIECE * bytes;
    let (mut products, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        products.push(seconds(|| {
            pool.for_each(Chunks::new(&mut out, PIECE * rows * LANES), |piece, out, _| {
                let start = PIECE * piece * bytes;
                let (data, ahead) = data[start..].split_at(out.len() / (rows * LANES) * bytes);
                let ahead = ahead.get(others..).unwrap_or_default();
                matmul(isa, Panels { format, columns: COLUMNS, data, ahead }, &x, out);
            });
        }));
        reads.push(fastest_read(isa, pool, &data));
    }
    let (product, reading) = (median(products), median(reads));
    let (read, operations) = (data.len() as f64, (2 * panels * LANES * COLUMNS * rows) as f64);
    let name = format!("{} {weights:?} at {}", isa.name(), level.name());
    println!(
        "{name:22} {rows:4} rows: {:6.1} GB/s of {:6.1}, {:7.1} GOP/s",
        read / product / 1e9,
        read / reading / 1e9,
        operations / product / 1e9
    );
}

/// Seconds to read all of `data` with the pattern that is the fastest at this moment.
fn fastest_read(isa: Isa, pool: &mut Pool, data: &[u8]) -> f64 {
    let times = ReadPattern::ALL.map(|pattern| seconds(|| ceilings::read_once(isa, pool, data, pattern)));
    times.into_iter().fold(f64::INFINITY, f64::min)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

fn encode(isa: Isa, level: NumericLevel, rows: usize) -> Buffer<u32> {
    let values: Vec<f32> = (0..COLUMNS).map(|column| (column as f32).sin()).collect();
    let row_words = level.words(1, COLUMNS);
    let mut words = Buffer::new();
    words.resize(rows * row_words);
    for tile in isa.tiles(level, rows) {
        let words = &mut words[tile.start * row_words..tile.end * row_words];
        for row in 0..tile.len() {
            encode_row(isa, level, &values, row, tile.len(), words);
        }
    }
    words
}
