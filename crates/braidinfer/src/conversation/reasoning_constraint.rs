//! What answers may consist of where the model reasons first: anything, up to the end of the reasoning; then what is asked for.

use std::sync::Arc;
use std::time::Duration;

use super::{Reasoning, ReasoningSplitter, ShownTokens};
use crate::engine::{Constraint, ConstraintFactory, TokenMask};
use crate::llm::ModelText;
use crate::text::{StreamDecoder, Tokenizer};
use crate::{Error, Result};

/// Limits of the reasoning before an answer.
#[derive(Debug, Clone, Default)]
pub struct ReasoningLimits {
    /// Most tokens of it; then the model must close it.
    pub most_tokens: Option<usize>,
    /// What the answer after it must satisfy.
    pub answer: Option<ConstraintFactory>,
}

impl ReasoningLimits {
    /// The constraint for answers of a model with this text and `vocab_size` logits; `None` if nothing is limited.
    ///
    /// Fails without a tokenizer.
    pub fn constraint(
        self,
        text: &Arc<ModelText>,
        vocab_size: usize,
        reasoning: Reasoning,
    ) -> Result<Option<ConstraintFactory>> {
        if self.most_tokens.is_none() && self.answer.is_none() {
            return Ok(None);
        }
        let tokenizer = text.require_tokenizer()?;
        let marks = Marks {
            open: single_token(tokenizer, reasoning.format.open)?,
            close: tokenizer.encode(reasoning.format.close, false)?,
        };
        let text = Arc::clone(text);
        Ok(Some(ConstraintFactory::new(move || {
            let answer = self.answer.as_ref().map(ConstraintFactory::begin).transpose()?;
            let any = any_token(vocab_size, if answer.is_some() { &text.generation().eos_token_id } else { &[] });
            let progress = Progress {
                decoder: StreamDecoder::default(),
                splitter: ReasoningSplitter::new(reasoning.format, reasoning.is_open),
                tokens: 0,
                // A mark of several tokens cannot be allowed beside what the answer begins with.
                has_ended: !reasoning.is_open && answer.is_some() && marks.open.is_none(),
            };
            let constraint = ReasoningConstraint {
                text: Arc::clone(&text),
                marks: marks.clone(),
                most_tokens: self.most_tokens.unwrap_or(usize::MAX),
                any,
                progress,
                answer,
                has_answer: false,
                own_masks: Vec::new(),
                draft_reaches_answer: false,
                failed: None,
            };
            Ok(Box::new(constraint))
        })))
    }
}

/// The marks as tokens.
#[derive(Debug, Clone)]
struct Marks {
    /// The opening mark, if it is one token.
    open: Option<u32>,
    close: Vec<u32>,
}

fn single_token(tokenizer: &Tokenizer, mark: &str) -> Result<Option<u32>> {
    Ok(<[u32; 1]>::try_from(tokenizer.encode(mark, false)?).ok().map(|[id]| id))
}

/// A mask for any token but these.
fn any_token(vocab_size: usize, but: &[u32]) -> Vec<u32> {
    let mut words = vec![u32::MAX; vocab_size.div_ceil(32)];
    for id in but {
        if let Some(word) = words.get_mut(*id as usize / 32) {
            *word &= !(1 << (id % 32));
        }
    }
    words
}

/// How far the reasoning is.
#[derive(Debug, Clone)]
struct Progress {
    decoder: StreamDecoder,
    splitter: ReasoningSplitter,
    /// Number of tokens of the reasoning.
    tokens: usize,
    has_ended: bool,
}

impl Progress {
    fn take(&mut self, token: u32, tokenizer: &Tokenizer) -> Result<()> {
        let text = ShownTokens::All.decode(&mut self.decoder, token, tokenizer)?;
        self.tokens += usize::from(self.splitter.is_in_reasoning());
        self.splitter.push(&text);
        self.has_ended = !self.splitter.is_in_reasoning() && !self.splitter.is_undecided();
        Ok(())
    }
}

struct ReasoningConstraint {
    text: Arc<ModelText>,
    marks: Marks,
    most_tokens: usize,
    /// The mask within the reasoning.
    any: Vec<u32>,
    progress: Progress,
    /// What comes after the reasoning.
    answer: Option<Box<dyn Constraint>>,
    /// Whether the answer has a token.
    has_answer: bool,
    /// Masks that were asked for, for tokens of the reasoning.
    own_masks: Vec<TokenMask>,
    /// Whether masks of the answer follow them.
    draft_reaches_answer: bool,
    failed: Option<Error>,
}

impl ReasoningConstraint {
    /// The mask after this progress, and whether the answer may begin there.
    fn mask(&self, progress: &Progress) -> TokenMask {
        let Some(over) = progress.tokens.checked_sub(self.most_tokens).filter(|_| progress.splitter.is_in_reasoning())
        else {
            return TokenMask::from_bits(self.any.clone());
        };
        let next = self.marks.close.get(over % self.marks.close.len().max(1)).copied().unwrap_or_default();
        let mut words = vec![0; self.any.len()];
        if let Some(word) = words.get_mut(next as usize / 32) {
            *word = 1 << (next % 32);
        }
        TokenMask::from_bits(words)
    }

    fn tried<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.failed = Some(error)).ok()
    }
}

impl Constraint for ReasoningConstraint {
    fn ask_masks(&mut self, draft: &[u32]) {
        (self.own_masks, self.draft_reaches_answer) = (Vec::new(), false);
        let mut progress = self.progress.clone();
        let text = Arc::clone(&self.text);
        for index in 0..=draft.len() {
            // Where the model may still decide not to reason, the answer may begin, too.
            if progress.has_ended || (progress.splitter.is_undecided() && self.answer.is_some()) {
                self.draft_reaches_answer = true;
                let rest = if progress.has_ended { &draft[index..] } else { &[] };
                match &mut self.answer {
                    Some(answer) => answer.ask_masks(rest),
                    None => self.own_masks.resize(draft.len() + 1, TokenMask::from_bits(self.any.clone())),
                }
                return;
            }
            let mask = self.mask(&progress);
            let Some(next) = draft.get(index).copied().filter(|next| mask.allows(*next)) else {
                self.own_masks.push(mask);
                return;
            };
            self.own_masks.push(mask);
            let taken = text.require_tokenizer().and_then(|tokenizer| progress.take(next, tokenizer));
            if self.tried(taken).is_none() {
                return;
            }
        }
    }

    fn masks(&mut self, patience: Duration) -> Option<Result<Vec<TokenMask>>> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let mut masks = self.own_masks.clone();
        if let (true, Some(answer)) = (self.draft_reaches_answer, &mut self.answer) {
            match answer.masks(patience)? {
                Ok(more) => masks.extend(more),
                Err(error) => return Some(Err(error)),
            }
            if !self.progress.has_ended
                && self.progress.splitter.is_undecided()
                && let (Some(open), Some(first)) = (self.marks.open, masks.first_mut())
            {
                first.allow(open);
            }
        }
        Some(Ok(masks))
    }

    fn take(&mut self, token: u32) {
        if !self.progress.has_ended {
            let (may_be_answer, open) = (self.progress.splitter.is_undecided(), self.marks.open);
            if may_be_answer && self.answer.is_some() && Some(token) != open {
                self.progress.has_ended = true;
            } else {
                let text = Arc::clone(&self.text);
                let taken = text.require_tokenizer().and_then(|tokenizer| self.progress.take(token, tokenizer));
                self.tried(taken);
                return;
            }
        }
        self.has_answer = true;
        if let Some(answer) = &mut self.answer {
            answer.take(token);
        }
    }

    fn is_complete(&mut self, patience: Duration) -> Option<Result<bool>> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        match &mut self.answer {
            Some(answer) if self.has_answer => answer.is_complete(patience),
            _ => Some(Ok(false)),
        }
    }
}
