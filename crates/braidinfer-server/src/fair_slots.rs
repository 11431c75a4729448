//! A bounded number of slots that are given to clients in turns.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Slots for work that only a few requests may do at once. The next free slot goes to the client that holds the fewest; the
/// last quarter of the slots goes only to clients that hold none, so that no client can take all.
#[derive(Debug)]
pub struct FairSlots<K: Eq + Hash + Clone>(Arc<Mutex<State<K>>>);

#[derive(Debug)]
struct State<K: Eq + Hash + Clone> {
    free: usize,
    reserved: usize,
    held: HashMap<K, usize>,
    waiting: VecDeque<(K, oneshot::Sender<Slot<K>>)>,
}

/// A slot, which is free again when this is dropped.
#[derive(Debug)]
pub struct Slot<K: Eq + Hash + Clone> {
    slots: Arc<Mutex<State<K>>>,
    client: K,
}

fn lock<K: Eq + Hash + Clone>(state: &Mutex<State<K>>) -> MutexGuard<'_, State<K>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Eq + Hash + Clone> FairSlots<K> {
    pub fn new(slots: usize) -> Self {
        let state = State { free: slots, reserved: slots / 4, held: HashMap::new(), waiting: VecDeque::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Waits for a slot. If the future is dropped before that, the slot goes to another one.
    pub async fn acquire(&self, client: K) -> Option<Slot<K>> {
        let (sender, granted) = oneshot::channel();
        lock(&self.0).waiting.push_back((client, sender));
        grant(&self.0);
        granted.await.ok()
    }
}

/// Gives free slots to those who wait.
fn grant<K: Eq + Hash + Clone>(slots: &Arc<Mutex<State<K>>>) {
    loop {
        let mut state = lock(slots);
        state.waiting.retain(|(_, sender)| !sender.is_closed());
        let held = |state: &State<K>, client: &K| state.held.get(client).copied().unwrap_or(0);
        let next = (0..state.waiting.len())
            .filter(|index| {
                let of_client = held(&state, &state.waiting[*index].0);
                state.free > if of_client == 0 { 0 } else { state.reserved }
            })
            // The first of those with the fewest: the earliest comes first.
            .min_by_key(|index| held(&state, &state.waiting[*index].0));
        let Some((client, sender)) = next.and_then(|index| state.waiting.remove(index)) else { return };
        state.free -= 1;
        *state.held.entry(client.clone()).or_default() += 1;
        drop(state);
        // If it is not received, it is dropped, and thus free again.
        let _ = sender.send(Slot { slots: Arc::clone(slots), client });
    }
}

impl<K: Eq + Hash + Clone> Drop for Slot<K> {
    fn drop(&mut self) {
        let mut state = lock(&self.slots);
        state.free += 1;
        if let Some(held) = state.held.get_mut(&self.client) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.client);
            }
        }
        drop(state);
        grant(&self.slots);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Polls once.
    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn ready<T>(poll: Poll<Option<T>>) -> Option<T> {
        match poll {
            Poll::Ready(slot) => slot,
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_last_quarter_is_for_clients_that_hold_none() {
        let slots = FairSlots::new(4);
        let mut held: Vec<_> = (0..3).map(|_| ready(poll(pin!(slots.acquire("a")))).expect("three are free")).collect();
        let mut fourth = pin!(slots.acquire("a"));
        assert!(ready(poll(fourth.as_mut())).is_none(), "the last one is reserved");
        let other = ready(poll(pin!(slots.acquire("b"))));
        assert!(other.is_some());
        held.pop();
        assert!(ready(poll(fourth.as_mut())).is_none(), "one is free, and reserved");
        drop(other);
        assert!(ready(poll(fourth.as_mut())).is_some());
    }

    #[test]
    fn a_free_slot_goes_to_the_client_that_holds_the_fewest() {
        let slots = FairSlots::new(2);
        let first = ready(poll(pin!(slots.acquire("a"))));
        let second = ready(poll(pin!(slots.acquire("a"))));
        let (mut third, mut fourth) = (pin!(slots.acquire("a")), pin!(slots.acquire("b")));
        assert!(ready(poll(third.as_mut())).is_none() && ready(poll(fourth.as_mut())).is_none());
        drop(first);
        assert!(ready(poll(third.as_mut())).is_none());
        assert!(ready(poll(fourth.as_mut())).is_some());
        drop(second);
        assert!(ready(poll(third.as_mut())).is_some());
    }

    #[test]
    fn a_client_that_stops_waiting_takes_no_slot() {
        let slots = FairSlots::new(1);
        let first = ready(poll(pin!(slots.acquire("a"))));
        {
            let mut second = pin!(slots.acquire("b"));
            assert!(ready(poll(second.as_mut())).is_none());
        }
        drop(first);
        assert!(ready(poll(pin!(slots.acquire("c")))).is_some());
    }
}
