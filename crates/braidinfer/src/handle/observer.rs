//! What the engine does, for whoever counts, measures or logs it.

use std::time::Duration;

use crate::engine::{EngineStats, StepStats};
use crate::{Error, FinishReason, ShadowCheck, Token};

/// When a token of an answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenTimes {
    /// Tokens of the answer before this one.
    pub index: usize,
    /// Since the request arrived.
    pub since_arrival: Duration,
    /// Since the first token of the answer; zero for the first one.
    pub since_first_token: Duration,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerEnd {
    /// It is complete.
    Finished(FinishReason),
    /// Its stream was cancelled or dropped.
    Cancelled,
    /// An error ended it.
    Failed,
}

impl AnswerEnd {
    /// What vLLM's metrics call it: `stop`, `length`, `abort` or `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished(FinishReason::Cancelled) | Self::Cancelled => "abort",
            Self::Finished(reason) => reason.as_str(),
            Self::Failed => "error",
        }
    }
}

/// Told what the engine of a [`Handle`](super::Handle) does, on the engine's own thread: steps wait until a call returns.
/// `()` ignores everything.
pub trait EngineObserver: Send + Sync {
    /// A step was run. Called before its tokens are handed out.
    fn step(&self, step: &StepStats) {
        let _ = step;
    }

    /// What the engine is doing, after each step and each time that something was submitted or ended.
    fn engine_stats(&self, stats: &EngineStats) {
        let _ = stats;
    }

    /// A token of an answer. Called before the token is handed out.
    fn token(&self, token: &Token, times: &TokenTimes) {
        let _ = (token, times);
    }

    /// So many answers of one request have ended; a vector counts as an answer that is finished.
    fn answers_ended(&self, end: AnswerEnd, answers: usize) {
        let _ = (end, answers);
    }

    /// An error ended one answer.
    fn answer_failed(&self, error: &Error) {
        let _ = error;
    }

    /// A step could not be run, which ended all answers.
    fn step_failed(&self, error: &Error) {
        let _ = error;
    }

    /// A step was computed again on standard kernels. `bound` is [`Llm::shadow_bound`](crate::Llm::shadow_bound), in nats.
    fn shadow_checked(&self, check: &ShadowCheck, bound: f64) {
        let _ = (check, bound);
    }

    /// A step could not be computed again.
    fn shadow_check_failed(&self, error: &Error) {
        let _ = error;
    }
}

impl EngineObserver for () {}
