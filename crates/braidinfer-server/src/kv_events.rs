//! What the prefix cache holds, told to routers over ZeroMQ in vLLM's form, so that they send a prompt to where its beginning is.
//!
//! A message has three parts: the topic; a number that grows by one with each message, in eight bytes, the highest first, by which
//! a gap is noticed; and a batch of events in MessagePack (`vllm/distributed/kv_events.py`): `[seconds since 1970, events, 0]`, with
//! events `["BlockStored", [hash], hash before or nil, token ids, block size, number of the adapter or nil, nil]`, `["BlockRemoved", [hash], nil]` and
//! `["AllBlocksCleared"]`. Hashes are unsigned numbers of 64 bits.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Sender as StdSender, channel as std_channel};
use std::thread;

use braidinfer::engine::{BlockEvent, BlockHash, BlockListener};
use serde::Serialize;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use zeromq::{Endpoint, PubSocket, Socket, SocketSend, ZmqMessage};

use crate::StartError;
use crate::clock::seconds_since_1970;

/// Batches that may wait for the socket; what comes after them is dropped, which leaves a gap in the numbers. The socket itself keeps
/// up to 100,000 for each subscriber that reads slowly.
const MOST_WAITING: usize = 10_000;

/// The data-parallel rank: there is one.
const RANK: u32 = 0;

/// Changes of a prefix cache, with the number of their message.
type Numbered = (u64, Vec<BlockEvent>);

/// Publishes changes of a prefix cache, from a thread of its own.
pub struct KvEventPublisher {
    sender: Sender<Numbered>,
    address: SocketAddr,
}

impl KvEventPublisher {
    /// Listens for subscribers until the publisher, or the listener that is made from it, is dropped. Messages begin with the topic.
    /// There is no key: prompts can be read, as token ids, by all who can reach `address`.
    ///
    /// Fails if the address cannot be bound.
    pub fn bind(address: SocketAddr, topic: String) -> Result<Self, StartError> {
        let failed = |source| StartError::Bind { address, source };
        let (sender, receiver) = channel(MOST_WAITING);
        let (bound, outcome) = std_channel();
        // The caller may be a task of another runtime, which must not be blocked on.
        let publishing = move || publisher(address, topic, receiver, &bound);
        thread::Builder::new().name("kv-events".into()).spawn(publishing).map_err(failed)?;
        let ended = || Err(io::Error::other("the thread that publishes has ended"));
        let address = outcome.recv().unwrap_or_else(|_| ended()).map_err(failed)?;
        Ok(Self { sender, address })
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What an engine tells of its events, for [`braidinfer::Llm::listen_to_blocks`].
    pub fn into_listener(self) -> BlockListener {
        let mut number = 0;
        Box::new(move |events| {
            if self.sender.try_send((number, events)).is_err() {
                tracing::warn!(number, "no room for events of the prefix cache: they are dropped");
            }
            number += 1;
        })
    }
}

/// Binds a socket, says which address it has, and publishes what comes.
fn publisher(
    address: SocketAddr,
    topic: String,
    batches: Receiver<Numbered>,
    outcome: &StdSender<io::Result<SocketAddr>>,
) {
    let work = async {
        match bound(address).await {
            Ok((socket, address)) => {
                // If nobody waits for it, nothing comes either.
                let _ = outcome.send(Ok(address));
                publish(socket, topic, batches).await;
            }
            Err(error) => drop(outcome.send(Err(error))),
        }
    };
    match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => drop(outcome.send(Err(error))),
    }
}

/// A socket, and the address that it has.
async fn bound(address: SocketAddr) -> io::Result<(PubSocket, SocketAddr)> {
    let mut socket = PubSocket::new();
    let endpoint = socket.bind(&format!("tcp://{address}")).await.map_err(io::Error::other)?;
    let port = if let Endpoint::Tcp(_, port) = endpoint { port } else { address.port() };
    Ok((socket, SocketAddr::new(address.ip(), port)))
}

async fn publish(mut socket: PubSocket, topic: String, mut batches: Receiver<Numbered>) {
    while let Some((number, events)) = batches.recv().await {
        let payload = match payload(&events) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!(%error, "events of the prefix cache");
                continue;
            }
        };
        let mut message = ZmqMessage::from(topic.clone());
        message.push_back(number.to_be_bytes().to_vec().into());
        message.push_back(payload.into());
        if let Err(error) = socket.send(message).await {
            tracing::warn!(%error, number, "events of the prefix cache were not sent");
        }
    }
}

/// A batch of events in MessagePack.
fn payload(events: &[BlockEvent]) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let events: Vec<Event> = events.iter().map(Event::new).collect();
    rmp_serde::to_vec(&(seconds_since_1970() as f64, events, RANK))
}

/// vLLM's events. MessagePack has them as arrays.
#[derive(Serialize)]
#[serde(untagged)]
enum Event<'a> {
    /// Name, hashes, hash of the block before, tokens, their number, adapter, medium.
    Stored(&'static str, [u64; 1], Option<u64>, &'a [u32], usize, Option<u32>, Option<&'static str>),
    /// Name, hashes, medium.
    Removed(&'static str, [u64; 1], Option<&'static str>),
    Cleared([&'static str; 1]),
}

impl<'a> Event<'a> {
    fn new(event: &'a BlockEvent) -> Self {
        match event {
            BlockEvent::Stored { hash, before, token_ids, adapter } => {
                let before = before.as_ref().map(number);
                // vLLM counts adapters from one.
                let adapter = adapter.map(|index| index + 1);
                Self::Stored("BlockStored", [number(hash)], before, token_ids, token_ids.len(), adapter, None)
            }
            BlockEvent::Removed(hash) => Self::Removed("BlockRemoved", [number(hash)], None),
            BlockEvent::Cleared => Self::Cleared(["AllBlocksCleared"]),
        }
    }
}

/// The first eight bytes of a hash.
fn number(hash: &BlockHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_those_of_vllm() {
        let (first, second) = ([1; 32], [255; 32]);
        let stored = |hash, before, adapter| BlockEvent::Stored { hash, before, token_ids: vec![7, 300], adapter };
        let events = [
            stored(first, None, None),
            stored(second, Some(first), Some(0)),
            BlockEvent::Removed(first),
            BlockEvent::Cleared,
        ];
        let payload = payload(&events).expect("it can be written");
        let (time, read, rank): (f64, serde_json::Value, u32) =
            rmp_serde::from_slice(&payload).expect("it can be read");
        let hashes = (0x0101_0101_0101_0101_u64, u64::MAX);
        let expected = serde_json::json!([
            ["BlockStored", [hashes.0], null, [7, 300], 2, null, null],
            ["BlockStored", [hashes.1], hashes.0, [7, 300], 2, 1, null],
            ["BlockRemoved", [hashes.0], null],
            ["AllBlocksCleared"],
        ]);
        assert_eq!(read, expected);
        assert!(time > 1.7e9 && rank == 0);
    }
}
