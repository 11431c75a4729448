//! Responses that later requests go on from, in memory.

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

/// The responses, by their ids.
pub struct ResponseStore(Mutex<Account>);

struct Account {
    responses: LruCache<String, (usize, Arc<StoredResponse>)>,
    bytes: usize,
}

impl Default for ResponseStore {
    fn default() -> Self {
        Self(Mutex::new(Account { responses: LruCache::unbounded(), bytes: 0 }))
    }
}

impl ResponseStore {
    /// The response of a client.
    pub fn get(&self, client: ClientId, id: &str) -> Option<Arc<StoredResponse>> {
        let mut account = self.account();
        let (_, stored) = account.responses.get(id)?;
        (stored.client == client).then(|| Arc::clone(stored))
    }

    /// Keeps a response. One that is too large for all is not kept.
    pub fn insert(&self, id: String, stored: StoredResponse) {
        let bytes = id.len() + bytes_of(&stored.response) + stored.messages.iter().map(bytes_of_fields).sum::<usize>();
        if bytes > MOST_BYTES {
            return;
        }
        let mut account = self.account();
        account.bytes += bytes;
        if let Some((before, _)) = account.responses.put(id, (bytes, Arc::new(stored))) {
            account.bytes -= before;
        }
        while account.bytes > MOST_BYTES {
            let Some((_, (freed, _))) = account.responses.pop_lru() else { break };
            account.bytes -= freed;
        }
    }

    /// Removes a response of a client; returns whether there was one.
    pub fn remove(&self, client: ClientId, id: &str) -> bool {
        let mut account = self.account();
        let is_own = account.responses.peek(id).is_some_and(|(_, stored)| stored.client == client);
        let removed = if is_own { account.responses.pop(id) } else { None };
        account.bytes -= removed.as_ref().map_or(0, |(bytes, _)| *bytes);
        removed.is_some()
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

fn bytes_of_fields(fields: &Map<String, Value>) -> usize {
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
        store.insert("a".into(), stored(1, MOST_BYTES / 2));
        store.insert("b".into(), stored(1, MOST_BYTES / 3));
        assert!(store.get(ClientId(2), "a").is_none(), "it is another one's");
        assert!(!store.remove(ClientId(2), "a"));
        // The first was used last.
        assert!(store.get(ClientId(1), "a").is_some());
        store.insert("c".into(), stored(2, MOST_BYTES / 3));
        let has = |id| [1, 2].iter().any(|client| store.get(ClientId(*client), id).is_some());
        assert_eq!(["a", "b", "c"].map(has), [true, false, true]);
        assert!(store.remove(ClientId(1), "a") && !store.remove(ClientId(1), "a"));
        store.insert("d".into(), stored(1, MOST_BYTES + 1));
        assert!(!has("d"), "it is too large");
        assert!(store.remove(ClientId(2), "c"));
        assert_eq!(store.account().bytes, 0, "what is removed is not counted");
    }
}
