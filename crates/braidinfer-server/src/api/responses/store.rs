//! Responses that later requests go on from, in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use braidinfer::engine::ClientId;
use lru::LruCache;
use serde_json::{Map, Value};

use super::items::Message;

/// Most bytes of all responses together; those that were not used for longest go first.
const MOST_BYTES: usize = 64 << 20;

/// A response, with the conversation that led to it.
#[derive(Debug)]
pub struct StoredResponse {
    /// Whose it is; nobody else can read it.
    pub client: ClientId,
    /// The whole conversation, with the answer.
    pub messages: Vec<Message>,
    /// The response as it was sent.
    pub response: Value,
}

impl StoredResponse {
    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        bytes_of(&self.response) + bytes_of_messages(&self.messages)
    }
}

/// About how much memory messages take.
pub fn bytes_of_messages(messages: &[Message]) -> usize {
    messages.iter().map(bytes_of_fields).sum()
}

/// The responses, by their ids. No two have the same one.
pub struct ResponseStore(Mutex<Account>);

struct Account {
    responses: LruCache<String, (usize, Arc<StoredResponse>)>,
    bytes: usize,
    by_client: HashMap<ClientId, usize>,
}

impl Account {
    fn remove(&mut self, id: &str) -> bool {
        let Some((bytes, stored)) = self.responses.pop(id) else { return false };
        self.bytes -= bytes;
        if let Some(held) = self.by_client.get_mut(&stored.client) {
            *held -= bytes;
            if *held == 0 {
                self.by_client.remove(&stored.client);
            }
        }
        true
    }

    /// Removes the response that was not used for longest: of this client, or of all.
    fn remove_oldest(&mut self, of: Option<ClientId>) -> bool {
        let mut oldest_first = self.responses.iter().rev();
        let oldest = oldest_first.find(|(_, (_, stored))| of.is_none_or(|client| stored.client == client));
        let Some(id) = oldest.map(|(id, _)| id.clone()) else { return false };
        self.remove(&id)
    }
}

impl Default for ResponseStore {
    fn default() -> Self {
        Self(Mutex::new(Account { responses: LruCache::unbounded(), bytes: 0, by_client: HashMap::new() }))
    }
}

impl ResponseStore {
    /// The response of a client.
    pub fn get(&self, client: ClientId, id: &str) -> Option<Arc<StoredResponse>> {
        let mut account = self.account();
        let (_, stored) = account.responses.get(id)?;
        (stored.client == client).then(|| Arc::clone(stored))
    }

    /// Keeps a response. One client may hold half of all; one that is larger is not kept.
    pub fn insert(&self, id: String, stored: StoredResponse) {
        let (client, bytes) = (stored.client, id.len() + stored.bytes());
        if bytes > MOST_BYTES / 2 {
            return;
        }
        let mut account = self.account();
        account.bytes += bytes;
        *account.by_client.entry(client).or_default() += bytes;
        account.responses.put(id, (bytes, Arc::new(stored)));
        while account.by_client.get(&client).is_some_and(|held| *held > MOST_BYTES / 2) {
            if !account.remove_oldest(Some(client)) {
                break;
            }
        }
        while account.bytes > MOST_BYTES && account.remove_oldest(None) {}
    }

    /// Removes a response of a client; returns whether there was one.
    pub fn remove(&self, client: ClientId, id: &str) -> bool {
        let mut account = self.account();
        let is_own = account.responses.peek(id).is_some_and(|(_, stored)| stored.client == client);
        is_own && account.remove(id)
    }

    /// A poisoned lock is ignored: every change leaves the account consistent.
    fn account(&self) -> MutexGuard<'_, Account> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// About how much memory a value takes.
fn bytes_of(value: &Value) -> usize {
    let inside = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(bytes_of).sum(),
        Value::Object(fields) => bytes_of_fields(fields),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    size_of::<Value>() + inside
}

/// About how much memory the fields of an object take.
pub fn bytes_of_fields(fields: &Map<String, Value>) -> usize {
    fields.iter().map(|(name, value)| size_of::<String>() + name.len() + bytes_of(value)).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(client: u64, bytes: usize) -> StoredResponse {
        StoredResponse { client: ClientId(client), messages: Vec::new(), response: json!("x".repeat(bytes)) }
    }

    #[test]
    fn responses_are_their_clients_own_and_the_oldest_give_way() {
        let store = ResponseStore::default();
        store.insert("a".into(), stored(1, MOST_BYTES / 5));
        store.insert("b".into(), stored(1, MOST_BYTES / 5));
        assert!(store.get(ClientId(2), "a").is_none(), "it is another one's");
        assert!(!store.remove(ClientId(2), "a"));
        // The first was used last.
        assert!(store.get(ClientId(1), "a").is_some());
        let has = |id: &str| store.account().responses.contains(id);
        store.insert("c".into(), stored(1, MOST_BYTES / 5));
        assert_eq!(["a", "b", "c"].map(has), [true, false, true], "one client may hold half");
        store.insert("d".into(), stored(2, MOST_BYTES / 5));
        store.insert("e".into(), stored(2, MOST_BYTES / 5));
        store.insert("f".into(), stored(3, MOST_BYTES / 3));
        assert_eq!(["a", "c", "d", "e", "f"].map(has), [false, true, true, true, true]);
        store.insert("g".into(), stored(3, MOST_BYTES / 2 + 1));
        assert!(!has("g"), "it is too large");
        for (client, id) in [(1, "c"), (2, "d"), (2, "e"), (3, "f")] {
            assert!(store.remove(ClientId(client), id) && !store.remove(ClientId(client), id));
        }
        assert_eq!(store.account().bytes, 0, "what is removed is not counted");
        assert!(store.account().by_client.is_empty());
    }
}
