//! Callbacks for metrics and logs of what the engine does.

use std::time::Duration;

use crate::engine::{EngineStats, StepStats};
use crate::{Error, FinishReason, ShadowCheck, Token};

/// Timing of one token of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenTimes {
    /// Index of the token in the answer, counted from 0.
    pub index: usize,
    /// Time since the request arrived.
    pub since_arrival: Duration,
    /// Time since the first token of the answer; zero for the first token.
    pub since_first_token: Duration,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerEnd {
    /// The answer is complete.
    Finished(FinishReason),
    /// The stream was cancelled or dropped.
    Cancelled,
    /// An error ended the answer.
    Failed,
}

impl AnswerEnd {
    /// The finish reason in vLLM's metrics: `stop`, `length`, `abort` or `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished(FinishReason::Cancelled) | Self::Cancelled => "abort",
            Self::Finished(reason) => reason.as_str(),
            Self::Failed => "error",
        }
    }
}

/// Receives what the engine of a [`Handle`](super::Handle) does. Called on the engine's own thread, so a slow call delays the
/// next step. `()` ignores everything.
pub trait EngineObserver: Send + Sync {
    /// A step was run. Called before its outputs are sent to the streams.
    fn step(&self, step: &StepStats) {
        let _ = step;
    }

    /// State and totals of the engine, after each step and each time requests were submitted or ended.
    fn engine_stats(&self, stats: &EngineStats) {
        let _ = stats;
    }

    /// A new token of an answer. Called before the token is sent to the stream.
    fn token(&self, token: &Token, times: &TokenTimes) {
        let _ = (token, times);
    }

    /// A number of `answers` of one request have ended. An embedding counts as a finished answer.
    fn answers_ended(&self, end: AnswerEnd, answers: usize) {
        let _ = (end, answers);
    }

    /// An error ended one answer.
    fn answer_failed(&self, error: &Error) {
        let _ = error;
    }

    /// The model runs on a device from now on, see [`Llm::device`](crate::Llm::device).
    fn runs_on(&self, device: &str) {
        let _ = device;
    }

    /// Something happened that people should know, such as the loss of a GPU after which the model runs on the CPU.
    fn notice(&self, notice: &str) {
        let _ = notice;
    }

    /// A step failed, which ended all answers.
    fn step_failed(&self, error: &Error) {
        let _ = error;
    }

    /// A shadow check has finished. `bound` is [`Llm::shadow_bound`](crate::Llm::shadow_bound), in nats.
    fn shadow_checked(&self, check: &ShadowCheck, bound: f64) {
        let _ = (check, bound);
    }

    /// A shadow check failed.
    fn shadow_check_failed(&self, error: &Error) {
        let _ = error;
    }
}

impl EngineObserver for () {}
