//! What a check reads: text for models with a tokenizer, seeded token ids for others.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use crate::Result;
use crate::text::Tokenizer;

/// Plain English, then some of what models meet besides. Written for this purpose, so that no model was trained on it.
const TEXT: &str = include_str!("probe_text.txt");

/// Seed of the ids for models without a tokenizer.
const SEED: u64 = 5;

/// Token ids to compare kernels on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeIds {
    pub(super) ids: Vec<u32>,
    /// Whether they are text, so that a loss says something.
    pub(super) text: bool,
}

/// The first `count` tokens; a short text is read again from its beginning.
pub(super) fn probe_ids(tokenizer: Option<&Tokenizer>, vocab_size: usize, count: usize) -> Result<ProbeIds> {
    let known = |ids: &Vec<u32>| !ids.is_empty() && ids.iter().all(|id| (*id as usize) < vocab_size);
    let text = tokenizer.map(|tokenizer| tokenizer.encode_prompt(TEXT)).transpose()?.filter(known);
    let ids = match &text {
        Some(ids) => ids.iter().copied().cycle().take(count).collect(),
        None => {
            let mut rng = Pcg64::seed_from_u64(SEED);
            (0..count).map(|_| rng.random_range(0..vocab_size) as u32).collect()
        }
    };
    Ok(ProbeIds { ids, text: text.is_some() })
}
