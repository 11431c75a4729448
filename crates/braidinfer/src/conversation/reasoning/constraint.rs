//! What answers may consist of where the model reasons first: anything, up to the end of the reasoning; then what is asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{ReasoningFormat, ReasoningSplitter, ReasoningStart, channels};
use crate::conversation::{Reasoning, ShownTokens};
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
        let rules = Arc::new(Rules::new(self.most_tokens, self.answer.is_some(), text, vocab_size, reasoning.format)?);
        Ok(Some(ConstraintFactory::new(move || {
            let answer = self.answer.as_ref().map(ConstraintFactory::begin).transpose()?;
            Ok(Box::new(ReasoningConstraint {
                progress: Progress::new(reasoning, &rules),
                rules: Arc::clone(&rules),
                answer,
                has_answer: false,
                own_masks: Vec::new(),
                opens_with: None,
                draft_reaches_answer: false,
                failed: None,
            }))
        })))
    }
}

/// What holds for all answers to a request.
struct Rules {
    text: Arc<ModelText>,
    most_tokens: usize,
    /// Whether the answer must satisfy something.
    has_form: bool,
    /// The marks as tokens.
    open: Vec<u32>,
    close: Vec<u32>,
    /// With channels, what begins an answer.
    answer_header: Vec<u32>,
    /// With channels, how many tokens of the closing mark end a message; what follows must be an answer.
    end_of_message: Option<usize>,
    /// The mask within the reasoning.
    any: TokenBits,
    /// Tokens that would end the reasoning and begin the answer at once, with the number of bytes of the closing mark before them.
    beyond_close: Vec<(usize, u32)>,
}

/// One bit for each token.
#[derive(Clone)]
struct TokenBits(Vec<u32>);

impl TokenBits {
    fn remove(&mut self, id: u32) {
        if let Some(word) = self.0.get_mut(id as usize / 32) {
            *word &= !(1 << (id % 32));
        }
    }

    /// The same number of tokens, but only one of them.
    fn only(&self, id: u32) -> Self {
        let mut words = vec![0; self.0.len()];
        if let Some(word) = words.get_mut(id as usize / 32) {
            *word = 1 << (id % 32);
        }
        Self(words)
    }
}

impl Rules {
    fn new(
        most_tokens: Option<usize>,
        has_form: bool,
        text: &Arc<ModelText>,
        vocab_size: usize,
        format: ReasoningFormat,
    ) -> Result<Self> {
        let tokenizer = text.require_tokenizer()?;
        let close = match format.has_channels() && !has_form {
            // What comes next, a call or an answer, is the model's choice.
            true => tokenizer.encode(channels::NEXT_HEADER, false)?,
            false => tokenizer.encode(format.close, false)?,
        };
        let mut any = TokenBits(vec![u32::MAX; vocab_size.div_ceil(32)]);
        if has_form {
            text.generation().eos_token_id.iter().for_each(|id| any.remove(*id));
        }
        let end_of_message = match format.has_channels() {
            true => Some(tokenizer.encode(channels::END, false)?.len()),
            false => None,
        };
        if has_form && format.has_channels() {
            // Within the reasoning no other message begins.
            for mark in [channels::START, channels::CHANNEL, channels::MESSAGE, channels::CALL] {
                single(&tokenizer.encode(mark, false)?).into_iter().for_each(|id| any.remove(id));
            }
        }
        let may_go_beyond = has_form && close.len() > 1 && !format.has_channels();
        Ok(Self {
            text: Arc::clone(text),
            most_tokens: most_tokens.unwrap_or(usize::MAX),
            has_form,
            open: tokenizer.encode(format.open, false)?,
            beyond_close: if may_go_beyond { tokens_beyond(format.close, tokenizer) } else { Vec::new() },
            close,
            answer_header: tokenizer.encode(channels::ANSWER_HEADER, false)?,
            end_of_message,
            any,
        })
    }

    fn has_channels(&self) -> bool {
        self.end_of_message.is_some()
    }
}

fn single(tokens: &[u32]) -> Option<u32> {
    <[u32; 1]>::try_from(tokens).ok().map(|[id]| id)
}

/// The tokens that end with more than a mark, with the number of bytes of the mark that must come before them.
fn tokens_beyond(mark: &str, tokenizer: &Tokenizer) -> Vec<(usize, u32)> {
    let mark = mark.as_bytes();
    let goes_beyond = |rest: &[u8]| rest.iter().any(|byte| !byte.is_ascii_whitespace());
    let mut found = Vec::new();
    for id in 0..tokenizer.vocab_size() as u32 {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        let whole = bytes.windows(mark.len()).position(|window| window == mark);
        if whole.is_some_and(|at| goes_beyond(&bytes[at + mark.len()..])) {
            found.push((0, id));
        }
        let ends = (1..mark.len()).filter(|begun| bytes.strip_prefix(&mark[*begun..]).is_some_and(goes_beyond));
        found.extend(ends.map(|begun| (begun, id)));
    }
    found
}

/// How far the reasoning is.
#[derive(Clone)]
struct Progress {
    decoder: StreamDecoder,
    splitter: ReasoningSplitter,
    /// Number of tokens of the reasoning.
    tokens: usize,
    /// The last tokens, as many as the closing mark has.
    last: VecDeque<u32>,
    /// Tokens that must come next.
    forced: VecDeque<u32>,
    has_ended: bool,
}

impl Progress {
    fn new(reasoning: Reasoning, rules: &Rules) -> Self {
        let start = reasoning.start;
        let has_channels = rules.has_channels();
        let is_undecided = start == ReasoningStart::Undecided;
        let mut progress = Self {
            decoder: StreamDecoder::default(),
            splitter: ReasoningSplitter::new(reasoning.format, start),
            tokens: 0,
            last: VecDeque::new(),
            forced: VecDeque::new(),
            has_ended: rules.has_form
                && (start == ReasoningStart::Closed || (is_undecided && reasoning.is_off && !has_channels)),
        };
        // An answer in channels begins with a channel; the model says which, unless a form needs to know it.
        if has_channels && rules.has_form && is_undecided {
            progress.forced.extend(if reasoning.is_off { &rules.answer_header } else { &rules.open });
        }
        progress.force_close(rules);
        progress
    }

    fn take(&mut self, token: u32, rules: &Rules) -> Result<()> {
        let text = ShownTokens::All.decode(&mut self.decoder, token, rules.text.require_tokenizer()?)?;
        let was_in_reasoning = self.splitter.is_in_reasoning();
        self.tokens += usize::from(was_in_reasoning);
        self.splitter.push(&text);
        self.last.push_back(token);
        if self.last.len() > rules.close.len() {
            self.last.pop_front();
        }
        self.has_ended = !self.splitter.is_in_reasoning() && !self.splitter.is_undecided();
        if self.forced.pop_front().is_none() && rules.has_form && was_in_reasoning {
            self.force_rest_of_close(rules);
        }
        self.force_close(rules);
        Ok(())
    }

    /// After too many tokens the closing mark must come.
    fn force_close(&mut self, rules: &Rules) {
        if self.forced.is_empty() && self.splitter.is_in_reasoning() && self.tokens >= rules.most_tokens {
            self.forced.extend(&rules.close[self.begun_close(rules)..]);
        }
    }

    /// With channels, an answer must follow the reasoning.
    fn force_rest_of_close(&mut self, rules: &Rules) {
        let begun = self.begun_close(rules);
        if rules.end_of_message.is_some_and(|end| begun >= end) {
            self.forced.extend(&rules.close[begun..]);
        }
    }

    /// How many tokens of the closing mark were written.
    fn begun_close(&self, rules: &Rules) -> usize {
        let ends_with = |count: &usize| {
            let last = self.last.iter().skip(self.last.len() - count);
            last.eq(&rules.close[..*count])
        };
        (1..rules.close.len()).rev().filter(|count| *count <= self.last.len()).find(ends_with).unwrap_or(0)
    }

    /// Whether the answer may begin here although reasoning may, too.
    fn may_be_answer(&self, rules: &Rules) -> bool {
        self.splitter.is_undecided() && !rules.has_channels() && self.forced.is_empty()
    }

    fn mask(&self, rules: &Rules) -> TokenMask {
        if let Some(next) = self.forced.front() {
            return TokenMask::from_bits(rules.any.only(*next).0);
        }
        let mut bits = rules.any.clone();
        if self.splitter.is_in_reasoning() {
            let begun = self.splitter.begun_close();
            let beyond = rules.beyond_close.iter().filter(|(before, _)| [0, begun].contains(before));
            beyond.for_each(|(_, id)| bits.remove(*id));
        }
        TokenMask::from_bits(bits.0)
    }
}

struct ReasoningConstraint {
    rules: Arc<Rules>,
    progress: Progress,
    /// What comes after the reasoning.
    answer: Option<Box<dyn Constraint>>,
    /// Whether the answer has a token.
    has_answer: bool,
    /// Masks that were asked for, for tokens of the reasoning.
    own_masks: Vec<TokenMask>,
    /// The first token of the opening mark, where it may come next beside what may begin the answer.
    opens_with: Option<u32>,
    /// Whether masks of the answer follow them.
    draft_reaches_answer: bool,
    failed: Option<Error>,
}

impl ReasoningConstraint {
    fn tried<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.failed = Some(error)).ok()
    }
}

impl Constraint for ReasoningConstraint {
    fn ask_masks(&mut self, draft: &[u32]) {
        (self.own_masks, self.draft_reaches_answer) = (Vec::new(), false);
        let (mut progress, rules) = (self.progress.clone(), Arc::clone(&self.rules));
        for index in 0..=draft.len() {
            // Where the model may still decide not to reason, the answer may begin, too.
            if progress.has_ended || (progress.may_be_answer(&rules) && self.answer.is_some()) {
                self.draft_reaches_answer = true;
                let rest = if progress.has_ended { &draft[index..] } else { &[] };
                match &mut self.answer {
                    Some(answer) => answer.ask_masks(rest),
                    None => self.own_masks.resize(draft.len() + 1, TokenMask::from_bits(rules.any.0.clone())),
                }
                return;
            }
            let mask = progress.mask(&rules);
            let Some(next) = draft.get(index).copied().filter(|next| mask.allows(*next)) else {
                self.own_masks.push(mask);
                return;
            };
            self.own_masks.push(mask);
            let taken = progress.take(next, &rules);
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
                && self.progress.may_be_answer(&self.rules)
                && let (Some(open), Some(first)) = (self.rules.open.first(), masks.first_mut())
            {
                // What may begin the answer is no mark.
                self.opens_with = (!first.allows(*open)).then_some(*open);
                first.allow(*open);
            }
        }
        Some(Ok(masks))
    }

    fn take(&mut self, token: u32) {
        if !self.progress.has_ended {
            let may_be_answer = self.progress.may_be_answer(&self.rules) && self.answer.is_some();
            let opens = std::mem::take(&mut self.opens_with) == Some(token);
            if may_be_answer && !opens {
                self.progress.has_ended = true;
            } else {
                let taken = self.progress.take(token, &self.rules);
                if may_be_answer {
                    self.progress.forced.extend(self.rules.open.iter().skip(1));
                }
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
