//! The account of the memory that requests hold: their bodies, prompts and answers.
//!
//! Code that keeps bytes for a request makes a [`Claim`] of as many first, and drops both together. All claims together stay
//! within one limit, and those of one client within half of it, so that no client can hold everything.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use braidinfer::engine::ClientId;

/// What memory is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Body,
    Prompt,
    Answer,
}

impl Held {
    pub const ALL: [Self; 3] = [Self::Body, Self::Prompt, Self::Answer];

    /// Its name in metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Prompt => "prompt",
            Self::Answer => "answer",
        }
    }
}

/// The memory that all requests together may hold.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    held: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    by_kind: [usize; Held::ALL.len()],
    by_client: HashMap<ClientId, usize>,
}

/// A claim that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverBudget {
    pub kind: Held,
    /// How many bytes were asked for.
    pub bytes: usize,
    pub limit: usize,
    /// Whether the limit is that of one client.
    pub of_client: bool,
}

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { kind, bytes, limit, of_client } = self;
        let whose = if *of_client { "the requests of one client" } else { "all requests" };
        write!(f, "{}: expected {whose} to hold at most {limit} bytes, found {bytes} more than fit", kind.as_str())
    }
}

impl Budget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: Mutex::default() })
    }

    /// Bytes that are held for something.
    pub fn held(&self, kind: Held) -> usize {
        self.account().by_kind[kind as usize]
    }

    /// Most bytes that the requests of one client may hold.
    pub fn limit_of_client(&self) -> usize {
        self.limit / 2
    }

    /// Claims `bytes` for a request of a client.
    pub fn claim(self: &Arc<Self>, client: ClientId, kind: Held, bytes: usize) -> Result<Claim, OverBudget> {
        let mut claim = Claim { budget: Arc::clone(self), client, kind, bytes: 0 };
        claim.grow(bytes)?;
        Ok(claim)
    }

    /// A poisoned lock is ignored: every change leaves the account consistent.
    fn account(&self) -> MutexGuard<'_, Account> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory that a request holds, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    budget: Arc<Budget>,
    client: ClientId,
    kind: Held,
    bytes: usize,
}

impl Claim {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Claims so many bytes more; if they do not fit, nothing changes.
    pub fn grow(&mut self, bytes: usize) -> Result<(), OverBudget> {
        let mut account = self.budget.account();
        let of_client = account.by_client.get(&self.client).copied().unwrap_or(0);
        let total: usize = account.by_kind.iter().sum();
        for (held, limit, of_client) in
            [(total, self.budget.limit, false), (of_client, self.budget.limit_of_client(), true)]
        {
            if held.saturating_add(bytes) > limit {
                return Err(OverBudget { kind: self.kind, bytes, limit, of_client });
            }
        }
        account.by_kind[self.kind as usize] += bytes;
        if bytes > 0 {
            *account.by_client.entry(self.client).or_default() += bytes;
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let freed = self.bytes.saturating_sub(bytes);
        self.bytes -= freed;
        let mut account = self.budget.account();
        account.by_kind[self.kind as usize] -= freed;
        if let Some(held) = account.by_client.get_mut(&self.client) {
            *held -= freed;
            if *held == 0 {
                account.by_client.remove(&self.client);
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_fit_or_change_nothing() {
        let budget = Budget::new(100);
        let [a, b, c] = [1, 2, 3].map(ClientId);
        let mut first = budget.claim(a, Held::Body, 30).expect("there is room");
        first.grow(20).expect("half of it is for one client");
        let over = first.grow(1).expect_err("no more than half");
        assert_eq!((over.of_client, over.limit, first.bytes()), (true, 50, 50));
        let second = budget.claim(b, Held::Answer, 40).expect("there is room");
        let over = budget.claim(c, Held::Prompt, 11).expect_err("10 are left");
        assert_eq!((over.of_client, over.limit), (false, 100));
        assert_eq!(Held::ALL.map(|kind| budget.held(kind)), [50, 0, 40]);
        first.shrink_to(5);
        budget.claim(c, Held::Prompt, 11).expect("some was given back");
        drop((first, second));
        assert_eq!(Held::ALL.map(|kind| budget.held(kind)), [0; 3]);
        assert!(budget.account().by_client.is_empty());
    }
}
