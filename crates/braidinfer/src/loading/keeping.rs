//! Whether packed weights are kept in a file, and how much of them is in memory then.

use braidinfer_kernels::Isa;

use super::{LoadOptions, ModelParts, because, has_fused};
use crate::executor::fused::{Keeping, kept_bytes};
use crate::executor::{Kernels, KvDtype};
use crate::memory::{self, Need, Room, kv_bytes_per_token};
use crate::packed_cache::WeightsKey;
use crate::{Error, Result};

/// Where there is too little memory for all weights, room is left for a sequence of this many tokens, if nobody asks for another
/// context.
const USUAL_CONTEXT: usize = 2048;

/// Where there is too little memory for all weights, the system keeps at least this part of it for those that it reads whenever
/// they are used.
const PART_TO_READ: usize = 4;

/// Where packed weights will lie.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In memory.
    Memory {
        /// Why not in a file, if that was asked for and would need less memory.
        because: Option<String>,
    },
    /// In a file, and partly in memory.
    File(Box<KeptPlace>),
}

#[derive(Debug, Clone)]
pub(super) struct KeptPlace {
    pub(super) keeping: Keeping,
    /// Memory that they take or should be left, in bytes.
    pub(super) needed: usize,
    /// What happens, in words, if there is too little memory for all of them.
    pub(super) scarce: Option<String>,
}

impl Place {
    pub(super) fn memory() -> Self {
        Self::Memory { because: None }
    }

    /// An error of the check of memory, with what stands against a file.
    pub(super) fn explain(&self, error: Error) -> Error {
        match self {
            Self::Memory { because: Some(reason) } => {
                because(error, &format!("packed weights are not kept in a file instead: {reason}"))
            }
            _ => error,
        }
    }
}

impl ModelParts {
    /// Decides where packed weights will lie.
    ///
    /// Fails if a file of the model was written to since it was opened.
    pub(super) fn place(&self, options: &LoadOptions, room: Room) -> Result<Place> {
        let Some(cache) = options
            .packed
            .as_ref()
            .filter(|_| options.kernels != Kernels::Standard && has_fused(options) && self.gpu.is_none())
        else {
            return Ok(Place::memory());
        };
        let in_memory = |because: String| Ok(Place::Memory { because: Some(because) });
        let whole = self.need(options);
        let (bytes, dense) = kept_bytes(&self.weights);
        // Norms, biases and the like.
        let vectors = whole.weights.saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
        let tokens = options.context.unwrap_or(self.context.min(USUAL_CONTEXT));
        let kv = kv_bytes_per_token(&self.spec, KvDtype::F32).saturating_mul(tokens);
        let with = |weights| Need { weights, kv, context: tokens, ..whole };
        let left = |weights| room.bytes.checked_sub(with(weights).fixed().saturating_add(kv));
        let all_fit = left(whole.weights).is_some();
        if all_fit && bytes < cache.least_bytes {
            return Ok(Place::memory());
        }
        if options.quantize.is_some() {
            return in_memory("the model is quantized while it is loaded".into());
        }
        // Of the file, and of what is copied from it.
        if memory::room_for_addresses().is_some_and(|room| bytes.saturating_mul(2) > room as u64) {
            return in_memory("a mapped file takes addresses, which are limited (ulimit -v)".into());
        }
        match cache.bound() {
            Ok(bound) if bytes > bound => return in_memory(cache.too_small(bytes, bound)),
            Ok(_) => {}
            Err(error) => return in_memory(format!("{}: {error}", cache.folder.display())),
        }
        let isa = Isa::detect().map_err(|error| Error::Unsupported(error.to_string()))?;
        let Some(key) = WeightsKey::of(&self.source, &self.spec, &self.weights, isa.name())? else {
            return in_memory("these weights are in memory already".into());
        };
        let to_read = room.bytes / PART_TO_READ;
        // The system knows nothing of layers: left to itself, it would give up each before it is read again.
        let own = dense.min(left(vectors.saturating_add(to_read)).unwrap_or(0));
        let needed = match all_fit {
            true => whole.weights,
            // Half of what is to be read through, so that what else is taken meanwhile is no reason to refuse the model.
            false => own.saturating_add(vectors).saturating_add(to_read / 2),
        };
        let scarce = (!all_fit).then(|| {
            format!(
                "the weights take {}, for which there is too little memory ({} {}): {} of them stay in it, and the others are read from \
                 {} whenever they are used, as fast as the disk is",
                memory::size(whole.weights),
                memory::size(room.bytes),
                room.limit,
                memory::size(own),
                cache.path(&key.name).display()
            )
        });
        let keeping = Keeping { cache: cache.clone(), key, scarce_bytes: (!all_fit).then_some(own) };
        Ok(Place::File(Box::new(KeptPlace { keeping, needed, scarce })))
    }
}
