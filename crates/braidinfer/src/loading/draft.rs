//! Loading a smaller model that drafts the tokens of a larger one.

use braidinfer_model::ModelSource;

use super::{KvCacheRoom, LoadOptions, Loaded, ModelParts, has_fused};
use crate::compat::Precision;
use crate::engine::DraftModel;
use crate::executor::Kernels;
use crate::executor::standard::LoadProgress;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// A smaller model that drafts.
#[derive(Debug, Clone)]
pub struct DraftOptions {
    /// Its files.
    pub source: ModelSource,
    /// How many tokens it drafts at a time; if `None`, as many as are expected to pay off by what was measured.
    pub tokens: Option<usize>,
}

/// A draft model that was loaded.
pub(crate) struct LoadedDraft {
    pub(crate) model: DraftModel,
    /// What it is called.
    pub(crate) label: String,
    /// Most memory in bytes that it takes.
    pub(crate) memory: usize,
}

/// The model that drafts are for.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) label: &'a str,
    pub(crate) tokenizer: Option<&'a Tokenizer>,
    pub(crate) vocab_size: usize,
    /// Memory in bytes that it takes.
    pub(crate) memory: usize,
}

/// Loads a model to draft for `target`, which was loaded with `options`. Whether its kernels change its answers does not
/// matter, since every token is checked by the other model: it is loaded at the fastest level.
///
/// Fails if it has other tokens, or recurrent layers, or if there is too little memory for it.
pub(crate) fn load_draft(
    draft: &DraftOptions,
    target: Target<'_>,
    options: &LoadOptions,
    progress: LoadProgress,
) -> Result<LoadedDraft> {
    let with_fused = has_fused(options);
    let options = LoadOptions {
        kernels: if with_fused { Kernels::Fused } else { Kernels::Auto },
        force: with_fused,
        precision: Precision::Auto,
        draft: None,
        adapters: Vec::new(),
        saved_prefixes: None,
        chat_template: None,
        dtype: None,
        kv_dtype: None,
        quantize: None,
        context: None,
        whole_context: false,
        kv_cache: KvCacheRoom::AllSequences,
        memory: options.memory.map(|memory| memory.saturating_sub(target.memory)),
        shadow_check: 0.0,
        ..options.clone()
    };
    let mut parts = ModelParts::open(&draft.source, &options, progress)?;
    let vocab = common_vocab(target, &parts)?;
    let Loaded { decoder, .. } = parts.load(&options, progress)?;
    let memory = parts.taken(&options, &decoder);
    Ok(LoadedDraft { model: DraftModel::new(decoder, vocab, draft.tokens)?, label: parts.label, memory })
}

/// Number of tokens that both models have.
///
/// Fails if a token of one is another one there.
fn common_vocab(target: Target<'_>, draft: &ModelParts) -> Result<usize> {
    let differ = |expected: String, found: String| Err(Error::bad_request("draft", expected, found));
    let common = target.vocab_size.min(draft.spec.vocab_size);
    let (target_tokens, draft_tokens) = match (target.tokenizer, &draft.tokenizer) {
        (Some(target), Some(draft)) => (target, draft),
        (None, None) if target.vocab_size == draft.spec.vocab_size => return Ok(common),
        _ => {
            let expected = format!("a model with the tokens of {}", target.label);
            return differ(expected, format!("{}, whose tokens cannot be compared with them", draft.label));
        }
    };
    let known = target_tokens.vocab_size().min(draft_tokens.vocab_size()).min(common);
    for id in 0..known as u32 {
        let (ours, theirs) = (target_tokens.id_to_token(id), draft_tokens.id_to_token(id));
        if ours != theirs {
            let word = |token: Option<std::borrow::Cow<'_, str>>| {
                token.map_or("none".to_owned(), |token| format!("{token:?}"))
            };
            let expected = format!("a model with the tokens of {}, where token {id} is {}", target.label, word(ours));
            return differ(expected, format!("{}, where it is {}", draft.label, word(theirs)));
        }
    }
    if known == 0 || known < target_tokens.vocab_size().min(target.vocab_size) / 2 {
        let expected = format!("a model with the {} tokens of {}", target_tokens.vocab_size(), target.label);
        return differ(expected, format!("{}, which has {known} of them", draft.label));
    }
    Ok(common)
}
