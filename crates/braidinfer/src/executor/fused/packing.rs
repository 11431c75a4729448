//! Packing parameters: into memory, or piece by piece into a file, or not at all where a file has them already.

use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use braidinfer_kernels::{Chunks, LANES, NotFinite, Pages, PanelFormat, Pool, pack_panel, panel_bytes};
use braidinfer_model::TensorView;

use super::packed::weight_type;
use super::packed_file::PackedWriter;
use crate::{Error, Result};

/// About how many bytes are packed before they are written.
const BATCH: usize = 8 << 20;

/// About how many bytes of rows a thread reads at a time.
const ROWS: usize = 256 << 10;

/// A parameter and its packed form, which consists of units of one size.
#[derive(Debug, Clone)]
pub(super) struct Packable<'a> {
    view: TensorView<'a>,
    form: Form,
    /// Bytes of a packed unit.
    unit: usize,
    units: usize,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    /// A unit is a panel of [`LANES`] rows.
    Panels,
    /// A unit is a row as it is stored.
    Rows,
}

impl<'a> Packable<'a> {
    /// A matrix in panels.
    pub(super) fn panels(view: TensorView<'a>) -> Self {
        let unit = panel_bytes(PanelFormat::of(weight_type(view.dtype)), view.shape[1]);
        Self { form: Form::Panels, unit, units: view.shape[0].div_ceil(LANES), view }
    }

    /// The rows of a matrix.
    pub(super) fn rows(view: TensorView<'a>) -> Self {
        Self { form: Form::Rows, unit: view.data.len() / view.shape[0], units: view.shape[0], view }
    }

    /// Bytes of the packed form.
    pub(super) fn bytes(&self) -> usize {
        self.units * self.unit
    }

    /// Packs some units, in parallel, into zeros.
    ///
    /// Fails on a value that is not finite, naming tensor and index.
    fn pack(&self, units: Range<usize>, out: &mut [u8], pool: &mut Pool) -> Result<()> {
        let together = match self.form {
            Form::Panels => 1,
            Form::Rows => (ROWS / self.unit).max(1),
        };
        let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        pool.for_each(Chunks::new(out, together * self.unit), |index, out, _| {
            let first = units.start + index * together;
            if let Err(error) = self.pack_some(first..first + out.len() / self.unit, out) {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(other, _)| first < *other) {
                    *failed = Some((first, error));
                }
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Packs units that follow each other, on this thread.
    fn pack_some(&self, units: Range<usize>, out: &mut [u8]) -> Result<()> {
        match self.form {
            Form::Panels => {
                units.zip(out.chunks_exact_mut(self.unit)).try_for_each(|(unit, out)| self.panel(unit, out))
            }
            Form::Rows => {
                let data = self.view.data.part(units.start * self.unit..units.end * self.unit);
                let data = data.ok_or_else(|| Error::Internal("rows beyond the end of a matrix".into()))?;
                out.copy_from_slice(&data.read()?);
                let shape = vec![units.len(), self.view.shape[1]];
                let rows = TensorView { shape, data: (&*out).into(), ..self.view.clone() };
                // Looked at again as a whole, so that the error has the index in the whole.
                rows.check().or_else(|error| self.view.check().and(Err(error)))?;
                Ok(())
            }
        }
    }

    fn panel(&self, panel: usize, out: &mut [u8]) -> Result<()> {
        let (rows, columns) = (self.view.shape[0], self.view.shape[1]);
        let row_bytes = self.view.data.len() / rows;
        let first = panel * LANES;
        let count = LANES.min(rows - first);
        let source = self.view.data.read_part(first * row_bytes..(first + count) * row_bytes)?;
        let Some(NotFinite { row, column }) = pack_panel(weight_type(self.view.dtype), &source, columns, out) else {
            return Ok(());
        };
        // `check` names the value in its error.
        self.view.check()?;
        let index = (first + row) * columns + column;
        Err(self.view.error("finite values", format!("a value that is not, at index {index}")).into())
    }

    /// Number of units.
    pub(super) fn units(&self) -> usize {
        self.units
    }

    /// Where a unit lies in the packed form.
    pub(super) fn place(&self, unit: usize) -> Range<usize> {
        unit * self.unit..(unit + 1) * self.unit
    }

    /// Packs one unit and compares it with bytes that should be it.
    pub(super) fn is(&self, unit: usize, packed: &[u8]) -> Result<bool> {
        let mut out = vec![0; self.unit];
        self.pack_some(unit..unit + 1, &mut out)?;
        Ok(out == packed)
    }
}

/// Where packed parameters go.
#[derive(Debug)]
pub(super) enum Destination<'a> {
    /// They are kept in memory.
    Own(Pages),
    /// They are written to a file; a few megabytes of them are in memory at a time.
    File { writer: PackedWriter<'a>, path: &'a Path, buffer: Vec<u8> },
    /// A file has them. Each is noted with its place, so that some can be compared.
    Kept(Vec<(Packable<'a>, usize)>),
}

impl<'a> Destination<'a> {
    /// Packs a parameter to an offset.
    ///
    /// Fails on a value that is not finite, naming tensor and index, and, with [`Error::File`], if the file cannot be written.
    pub(super) fn put(&mut self, parameter: Packable<'a>, at: usize, pool: &mut Pool) -> Result<()> {
        match self {
            Self::Own(pages) => parameter.pack(0..parameter.units, &mut pages[at..at + parameter.bytes()], pool),
            Self::File { writer, path, buffer } => {
                let together = (BATCH / parameter.unit).max(1);
                for first in (0..parameter.units).step_by(together) {
                    let units = first..parameter.units.min(first + together);
                    buffer.clear();
                    buffer.resize(units.len() * parameter.unit, 0);
                    parameter.pack(units, buffer, pool)?;
                    let failed = |source| Error::File { path: path.display().to_string(), source };
                    writer.write(at + first * parameter.unit, buffer).map_err(failed)?;
                }
                Ok(())
            }
            Self::Kept(parameters) => {
                parameters.push((parameter, at));
                Ok(())
            }
        }
    }
}
