//! Source bytes per second that packing takes in, for each type: the best of some repetitions on one thread.
//!
//! `cargo run --release -p braidinfer-kernels --example pack_speed [columns] [rows]`

#![allow(clippy::print_stdout, reason = "the report of this program")]

use std::time::Instant;

use braidinfer_kernels::LANES;
use braidinfer_kernels::format::{PanelFormat, WeightType, panel_bytes};
use braidinfer_kernels::pack_panel;

const REPETITIONS: usize = 15;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().expect("a number"));
    let (cols, rows) = (arguments.next().unwrap_or(4096), arguments.next().unwrap_or(2048));
    println!("{cols} columns, {rows} rows");
    for weight_type in WeightType::ALL {
        println!("{:7} {:6.2} GB/s", format!("{weight_type:?}"), speed(weight_type, cols, rows));
    }
}

/// Of a matrix whose bytes are all ones: finite in every type.
fn speed(weight_type: WeightType, cols: usize, rows: usize) -> f64 {
    let source = vec![1; weight_type.row_bytes(cols) * rows];
    let panel = panel_bytes(PanelFormat::of(weight_type), cols);
    let mut panels = vec![0; panel * rows.div_ceil(LANES)];
    let least = (0..REPETITIONS).map(|_| {
        let start = Instant::now();
        let pairs = source.chunks(weight_type.row_bytes(cols) * LANES).zip(panels.chunks_mut(panel));
        for (rows, panel) in pairs {
            assert_eq!(pack_panel(weight_type, rows, cols, panel), None);
        }
        start.elapsed().as_secs_f64()
    });
    source.len() as f64 / least.fold(f64::INFINITY, f64::min) / 1e9
}
