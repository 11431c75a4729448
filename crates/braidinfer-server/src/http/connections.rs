//! The open connections: how many there may be, of everybody and of one client, and which of them give way.
//!
//! While all are taken, a connection without a request gives way to a new one: that of the client with the most connections
//! which has been idle for longest. If there is none, the new connection is served as a spare one: it gets `/health`,
//! `/ready` and `/metrics`, and for anything else a refusal. So probes are answered however busy the server is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::ApiError;
use super::client::Peer;
use super::exchange::Exchange;

/// Spare connections beyond the limit. The oldest gives way to a new one.
const SPARE: usize = 16;

/// The open connections of a server.
#[derive(Debug)]
pub struct Connections {
    most: usize,
    most_per_client: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    /// By id, which is the order of arrival.
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    peer: Peer,
    is_spare: bool,
    exchange: Arc<Exchange>,
    gives_way: Arc<Notify>,
}

/// Why a connection is a spare one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// All connections are taken.
    ForAnyone(usize),
    /// The client has as many as one client may have.
    ForClient(usize),
}

impl NoRoom {
    pub fn error(self) -> ApiError {
        match self {
            Self::ForAnyone(most) => ApiError::no_connection(most),
            Self::ForClient(most) => ApiError::no_connection_of_client(most),
        }
    }
}

/// The place of one open connection.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    id: u64,
    gives_way: Arc<Notify>,
    pub exchange: Arc<Exchange>,
    /// Set for a spare connection.
    pub no_room: Option<NoRoom>,
}

impl Place {
    /// Completes when the connection should end as soon as it has no request.
    pub async fn gives_way(&self) {
        self.gives_way.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().entries.remove(&self.id);
    }
}

impl Connections {
    pub fn new(most: usize, most_per_client: usize) -> Arc<Self> {
        Arc::new(Self { most, most_per_client, open: Mutex::default() })
    }

    /// Number of open connections, spare ones included.
    pub fn len(&self) -> usize {
        self.open().entries.len()
    }

    /// A place for a new connection.
    pub fn enter(self: &Arc<Self>, peer: Peer) -> Place {
        let mut open = self.open();
        let no_room = self.make_room(&mut open, peer);
        if no_room.is_some() && open.count(|entry| entry.is_spare) >= SPARE {
            open.end_first(|entry| entry.is_spare.then_some(0));
        }
        let (id, exchange, gives_way) = (open.next_id, Exchange::new(), Arc::new(Notify::new()));
        open.next_id += 1;
        let (is_spare, own) = (no_room.is_some(), (Arc::clone(&exchange), Arc::clone(&gives_way)));
        open.entries.insert(id, Entry { peer, is_spare, exchange: own.0, gives_way: own.1 });
        Place { connections: Arc::clone(self), id, gives_way, exchange, no_room }
    }

    /// Makes room for one more connection of a client, or says why there is none.
    fn make_room(&self, open: &mut Open, peer: Peer) -> Option<NoRoom> {
        let of_client = |entry: &Entry| !entry.is_spare && entry.peer == peer;
        let idle = |entry: &Entry| entry.exchange.idle_since();
        if open.count(of_client) >= self.most_per_client {
            let ended = open.end_first(|entry| of_client(entry).then(|| idle(entry)).flatten());
            return (!ended).then_some(NoRoom::ForClient(self.most_per_client));
        }
        if open.count(|entry| !entry.is_spare) < self.most {
            return None;
        }
        let mut by_peer: BTreeMap<Peer, usize> = BTreeMap::new();
        let regular = open.entries.values().filter(|entry| !entry.is_spare);
        regular.for_each(|entry| *by_peer.entry(entry.peer).or_default() += 1);
        let holds = |entry: &Entry| by_peer.get(&entry.peer).copied().unwrap_or(0);
        let candidates = open.entries.values().filter(|entry| !entry.is_spare && idle(entry).is_some());
        let most = candidates.map(holds).max().unwrap_or(0);
        let ended = open.end_first(|entry| (!entry.is_spare && holds(entry) == most).then(|| idle(entry)).flatten());
        (!ended).then_some(NoRoom::ForAnyone(self.most))
    }

    /// A poisoned lock is ignored: every change leaves the entries consistent.
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn count(&self, is_meant: impl Fn(&Entry) -> bool) -> usize {
        self.entries.values().filter(|entry| is_meant(entry)).count()
    }

    /// Ends the connection for which `order` is smallest, if it is set for any.
    fn end_first(&mut self, order: impl Fn(&Entry) -> Option<u64>) -> bool {
        let first = self.entries.iter().filter_map(|(id, entry)| Some((order(entry)?, *id))).min();
        let Some(entry) = first.and_then(|(_, id)| self.entries.remove(&id)) else { return false };
        entry.gives_way.notify_one();
        true
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use http_body_util::Empty;

    use super::*;
    use crate::http::exchange::Ongoing;

    fn peer(last: u8) -> Peer {
        Peer::of([10, 0, 0, last].into())
    }

    fn busy(place: &Place) -> Ongoing {
        place.exchange.begin(&Request::new(Empty::<axum::body::Bytes>::new()))
    }

    fn was_ended(connections: &Connections, place: &Place) -> bool {
        !connections.open().entries.contains_key(&place.id)
    }

    #[test]
    fn idle_connections_of_the_largest_holder_give_way() {
        let connections = Connections::new(4, 3);
        let own = connections.enter(peer(1));
        let others: Vec<Place> = (0..3).map(|_| connections.enter(peer(2))).collect();
        let _busy = busy(&others[0]);
        let new = connections.enter(peer(3));
        assert!(new.no_room.is_none() && was_ended(&connections, &others[1]), "the one that was idle for longest");
        assert!(!was_ended(&connections, &own) && !was_ended(&connections, &others[0]));
    }

    #[test]
    fn without_idle_connections_new_ones_are_spare_and_the_oldest_spare_gives_way() {
        let connections = Connections::new(2, 2);
        let places: Vec<Place> = (1..3).map(|last| connections.enter(peer(last))).collect();
        let _busy: Vec<Ongoing> = places.iter().map(busy).collect();
        let spare: Vec<Place> = (0..SPARE).map(|_| connections.enter(peer(9))).collect();
        assert!(spare.iter().all(|place| place.no_room == Some(NoRoom::ForAnyone(2))));
        let _probe = connections.enter(peer(8));
        assert!(was_ended(&connections, &spare[0]) && !was_ended(&connections, &spare[1]));
        assert_eq!(connections.len(), 2 + SPARE);
        drop((places, spare));
        assert_eq!(connections.len(), 1);
    }

    #[test]
    fn one_client_has_a_limit_of_its_own() {
        let connections = Connections::new(10, 2);
        let places: Vec<Place> = (0..2).map(|_| connections.enter(peer(1))).collect();
        let _busy: Vec<Ongoing> = places.iter().map(busy).collect();
        assert_eq!(connections.enter(peer(1)).no_room, Some(NoRoom::ForClient(2)));
        assert_eq!(connections.enter(peer(2)).no_room, None);
    }
}
