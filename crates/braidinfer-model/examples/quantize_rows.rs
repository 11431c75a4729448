//! Quantizes f32 values from stdin (little-endian) and writes the blocks to stdout.
//!
//!     cargo run --release -p braidinfer-model --example quantize_rows -- q4_k < values.f32 > blocks.bin
//!
//! A second argument names a file of f32 values: the importance of each column of the rows.

use std::error::Error;
use std::fs;
use std::io::{Read, Write, stdin, stdout};

use braidinfer_model::Dtype;
use braidinfer_model::quantization::{Importance, QUANTIZABLE, dequantize, quantize, quantize_rows};

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_default();
    let dtype = QUANTIZABLE.iter().find(|dtype| dtype.name() == name);
    let dtype = dtype.ok_or_else(|| format!("expected one of {QUANTIZABLE:?} in lower case, found `{name}`"))?;
    let mut bytes = Vec::new();
    stdin().read_to_end(&mut bytes)?;
    let (values, mut blocks) = (floats(&bytes), Vec::new());
    match std::env::args().nth(2) {
        Some(path) => {
            let importance = Importance::new(floats(&fs::read(path)?));
            let importance = importance.map_err(|index| format!("a wrong number at index {index}"))?;
            quantize_rows(*dtype, &values, &importance, &mut blocks)?;
        }
        None => quantize(*dtype, &values, &mut blocks)?,
    }
    stdout().write_all(&blocks)?;
    Ok(())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / 4];
    dequantize(Dtype::F32, &bytes[..values.len() * 4], &mut values);
    values
}
