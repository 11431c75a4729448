//! The projection of latent attention to keys and values, which llama.cpp stores in two tensors: `attn_k_b`
//! `[heads, rank, key width]`, so that queries can be multiplied by it, and `attn_v_b` `[heads, value width, rank]`.
//!
//! It is read as one matrix `attn_kv_b` `[heads * (key width + value width), rank]`, in which the rows of a head's key come
//! before those of its value. Since the former are columns in the file, quantized values are decoded to f32.

use std::ops::Range;

use super::assembled::Assembled;
use super::checkpoint::{Checkpoint, Place};
use crate::Result;
use crate::dtype::{Dtype, TensorView};
use crate::quantization::dequantize;
use crate::rearranged::{LastMatrix, MatrixId, transpose};
use crate::tensor_data::{Computed, TensorData};

const KEYS: &str = "attn_k_b.weight";
const VALUES: &str = "attn_v_b.weight";
const JOINED: &str = "attn_kv_b.weight";

/// Where keys and values are, and how large.
#[derive(Debug)]
pub(super) struct SplitHeads {
    keys: Part,
    values: Part,
    rank: usize,
    /// Of the values that are read.
    dtype: Dtype,
}

#[derive(Debug, Clone)]
struct Part {
    place: Place,
    dtype: Dtype,
    /// Rows of a head in the joined matrix.
    width: usize,
}

/// Replaces the projections to keys and to values of every layer that has both by one.
pub(super) fn join(checkpoint: &mut Checkpoint) -> Result<()> {
    let layers: Vec<String> =
        checkpoint.names().filter_map(|name| name.strip_suffix(KEYS)).map(str::to_owned).collect();
    for layer in layers {
        let [keys, values, joined] = [KEYS, VALUES, JOINED].map(|name| format!("{layer}{name}"));
        if checkpoint.contains(&joined) || !checkpoint.contains(&values) {
            continue;
        }
        if let Some((matrix, shape)) = find(checkpoint, &keys, &values)? {
            let dtype = matrix.dtype;
            checkpoint.replace(joined, &[keys, values], dtype, shape, Assembled::SplitHeads(matrix));
        }
    }
    Ok(())
}

/// The joined matrix and its shape.
fn find(checkpoint: &Checkpoint, keys: &str, values: &str) -> Result<Option<(SplitHeads, Vec<usize>)>> {
    let (Some(key_view), Some(value_view)) = (checkpoint.tensor(keys)?, checkpoint.tensor(values)?) else {
        return Ok(None);
    };
    let [heads, rank, key_width] = shape(&key_view)?;
    let [value_heads, value_width, value_rank] = shape(&value_view)?;
    if (heads, rank) != (value_heads, value_rank) {
        let expected = format!("shape [{heads}, width, {rank}], as `{keys}` has {heads} heads from {rank} values");
        return Err(value_view.error(expected, format!("shape {:?}", value_view.shape)));
    }
    let dtype = match key_view.dtype {
        plain if plain == value_view.dtype && !plain.is_quantized() => plain,
        _ => Dtype::F32,
    };
    let part = |name: &str, dtype, width| {
        let place = checkpoint.part(name)?.place;
        Some(Part { place, dtype, width })
    };
    let parts = part(keys, key_view.dtype, key_width).zip(part(values, value_view.dtype, value_width));
    // Each is a tensor of a file, so that the sum of their sizes cannot overflow.
    let joined =
        |(keys, values)| (SplitHeads { keys, values, rank, dtype }, vec![heads * (key_width + value_width), rank]);
    Ok(parts.map(joined))
}

fn shape(view: &TensorView<'_>) -> Result<[usize; 3]> {
    let shape: Option<[usize; 3]> = view.shape.as_slice().try_into().ok().filter(|_| !view.is_empty());
    shape.ok_or_else(|| view.error("a matrix for each head", format!("shape {:?}", view.shape)))
}

impl SplitHeads {
    pub(super) fn data<'a>(&self, checkpoint: &'a Checkpoint, (name, _): MatrixId) -> TensorData<'a> {
        let half = |part: &Part| Half { data: checkpoint.data(&part.place), dtype: part.dtype, width: part.width };
        TensorData::computed(Joined {
            keys: half(&self.keys),
            values: half(&self.values),
            rank: self.rank,
            dtype: self.dtype,
            name,
            last: checkpoint.last_matrix(),
        })
    }
}

#[derive(Debug)]
struct Half<'a> {
    data: TensorData<'a>,
    dtype: Dtype,
    width: usize,
}

impl Half<'_> {
    /// Some of the stored values, whole blocks, as `dtype`: the stored one or f32.
    fn read(&self, values: Range<usize>, dtype: Dtype) -> Result<Vec<u8>> {
        let bytes = |values: usize| values / self.dtype.block_len() * self.dtype.block_size();
        let stored = self.data.read_part(bytes(values.start)..bytes(values.end))?;
        if self.dtype == dtype {
            return Ok(stored.into_owned());
        }
        let mut exact = vec![0.0; values.len()];
        dequantize(self.dtype, &stored, &mut exact);
        Ok(exact.into_iter().flat_map(f32::to_le_bytes).collect())
    }
}

/// The joined matrix.
#[derive(Debug)]
struct Joined<'a> {
    keys: Half<'a>,
    values: Half<'a>,
    rank: usize,
    dtype: Dtype,
    name: String,
    last: &'a LastMatrix,
}

impl Joined<'_> {
    fn head_rows(&self) -> usize {
        self.keys.width + self.values.width
    }

    /// Some rows of one head.
    fn rows_of_head(&self, head: usize, rows: Range<usize>) -> Result<Vec<u8>> {
        let split = self.keys.width;
        let mut bytes = self.keys_of_head(head, rows.start.min(split)..rows.end.min(split))?;
        let (first, end) = (rows.start.max(split) - split, rows.end.max(split) - split);
        let row = |row: usize| (head * self.values.width + row) * self.rank;
        bytes.extend(self.values.read(row(first)..row(end), self.dtype)?);
        Ok(bytes)
    }

    fn keys_of_head(&self, head: usize, rows: Range<usize>) -> Result<Vec<u8>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let values = self.keys.width * self.rank;
        let row_bytes = self.row_bytes();
        let whole = self.last.get(&(self.name.clone(), head), || {
            let stored = self.keys.read(head * values..(head + 1) * values, self.dtype)?;
            Ok(transpose(&stored, self.keys.width, row_bytes / self.rank))
        })?;
        Ok(whole[rows.start * row_bytes..rows.end * row_bytes].to_vec())
    }
}

impl Computed for Joined<'_> {
    fn rows(&self) -> usize {
        let values = self.values.data.len() / self.values.dtype.block_size() * self.values.dtype.block_len();
        values / (self.values.width * self.rank) * self.head_rows()
    }

    fn row_bytes(&self) -> usize {
        // Numbers that are not in blocks.
        self.rank * self.dtype.block_size()
    }

    fn read_rows(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let (mut row, head_rows) = (rows.start, self.head_rows());
        let mut bytes = Vec::with_capacity(rows.len() * self.row_bytes());
        while row < rows.end {
            let (head, first) = (row / head_rows, row % head_rows);
            let len = (head_rows - first).min(rows.end - row);
            bytes.extend(self.rows_of_head(head, first..first + len)?);
            row += len;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    const HEADS: usize = 3;
    const RANK: usize = 32;
    const WIDTHS: [usize; 2] = [32, 5];

    fn key(head: usize, row: usize, column: usize) -> i8 {
        ((head * 31 + row * 7 + column * 3) % 200) as i8
    }

    fn value(head: usize, row: usize, column: usize) -> i8 {
        ((head * 17 + row * 5 + column * 11) % 190) as i8
    }

    /// Blocks of q8_0 with scale 1.
    fn blocks(codes: &[i8]) -> Vec<u8> {
        let block = |codes: &[i8]| {
            [&f16::ONE.to_le_bytes()[..], &codes.iter().map(|code| *code as u8).collect::<Vec<_>>()].concat()
        };
        codes.chunks(32).flat_map(block).collect()
    }

    fn joined<'a>(keys: &'a [u8], values: &'a [u8], last: &'a LastMatrix) -> Joined<'a> {
        let half = |data: &'a [u8], width| Half { data: data.into(), dtype: Dtype::Q8_0, width };
        let (keys, values) = (half(keys, WIDTHS[0]), half(values, WIDTHS[1]));
        Joined { keys, values, rank: RANK, dtype: Dtype::F32, name: "kv".into(), last }
    }

    #[test]
    fn rows_of_keys_and_values_are_those_of_each_head() {
        let mut codes = [Vec::new(), Vec::new()];
        for head in 0..HEADS {
            codes[0].extend((0..RANK).flat_map(|column| (0..WIDTHS[0]).map(move |row| key(head, row, column))));
            codes[1].extend((0..WIDTHS[1]).flat_map(|row| (0..RANK).map(move |column| value(head, row, column))));
        }
        let (keys, values, last) = (blocks(&codes[0]), blocks(&codes[1]), LastMatrix::default());
        let data = TensorData::computed(joined(&keys, &values, &last));
        let whole = data.read().expect("in memory").into_owned();
        let mut expected = Vec::new();
        for head in 0..HEADS {
            let row =
                |of: fn(usize, usize, usize) -> i8, row| (0..RANK).map(move |column| f32::from(of(head, row, column)));
            expected.extend((0..WIDTHS[0]).flat_map(|index| row(key, index)));
            expected.extend((0..WIDTHS[1]).flat_map(|index| row(value, index)));
        }
        let expected: Vec<u8> = expected.into_iter().flat_map(f32::to_le_bytes).collect();
        assert_eq!(whole, expected);
        let row_bytes = RANK * 4;
        for start in 0..HEADS * (WIDTHS[0] + WIDTHS[1]) {
            for len in [1, 4, 40] {
                let part = start * row_bytes..whole.len().min((start + len) * row_bytes);
                assert_eq!(*data.read_part(part.clone()).expect("in memory"), whole[part]);
            }
        }
    }
}
