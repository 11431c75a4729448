//! What subscribers over ZeroMQ learn of the prefix cache.

use std::path::Path;
use std::time::Duration;

use braidinfer::model::ModelSource;
use braidinfer::{Llm, LoadOptions, SamplingParams};
use braidinfer_server::KvEventPublisher;
use serde_json::{Value, json};
use tokio::time::timeout;
use zeromq::{Socket, SocketRecv, SubSocket};

fn llm() -> Llm {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/llama");
    let options = LoadOptions { threads: Some(1), ..LoadOptions::default() };
    Llm::open(&ModelSource::Directory(folder), &options, &|_, _| {}).expect("the fixture opens")
}

/// Computes a prompt and one token.
fn read(llm: &mut Llm, prompt: &[u32]) {
    let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::default() };
    llm.add(prompt.to_vec(), &params).expect("it is valid");
    while llm.has_unfinished() {
        llm.step().expect("it is computed");
    }
}

/// The next message: its number and its events.
async fn next(socket: &mut SubSocket, topic: &str) -> Option<(u64, Vec<Value>)> {
    let message = timeout(Duration::from_millis(500), socket.recv()).await.ok()?.expect("the publisher is there");
    let parts = message.into_vec();
    assert_eq!((parts.len(), &parts[0][..]), (3, topic.as_bytes()));
    let number = u64::from_be_bytes(parts[1][..].try_into().expect("it has eight bytes"));
    let (_, events, _): (f64, Vec<Value>, u32) = rmp_serde::from_slice(&parts[2]).expect("it is MessagePack");
    Some((number, events))
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_learn_which_blocks_are_kept() {
    let topic = "kv@pod@model";
    let address = "127.0.0.1:0".parse().expect("it is an address");
    let publisher = KvEventPublisher::bind(address, topic.into()).expect("the port is free");
    let address = publisher.address();
    let mut llm = llm();
    llm.listen_to_blocks(publisher.into_listener()).expect("it has a prefix cache");
    let mut socket = SubSocket::new();
    socket.connect(&format!("tcp://{address}")).await.expect("somebody listens");
    socket.subscribe("kv@").await.expect("it can be asked for");
    // A subscription takes effect some time after it was made: until then, messages are for nobody.
    let mut known = None;
    for first in 0..50 {
        read(&mut llm, &[&[first][..], &[1; 16]].concat());
        known = next(&mut socket, topic).await;
        if known.is_some() {
            break;
        }
    }
    let (number, _) = known.expect("the subscription takes effect");

    let prompt: Vec<u32> = (100..140).collect();
    read(&mut llm, &prompt);
    let (following, events) = next(&mut socket, topic).await.expect("blocks were stored");
    assert_eq!((following, events.len()), (number + 1, 2));
    let hashes: Vec<&Value> = events.iter().map(|event| &event[1][0]).collect();
    let stored =
        |hash: &Value, before: Value, tokens: &[u32]| json!(["BlockStored", [hash], before, tokens, 16, null, null]);
    assert_eq!(events[0], stored(hashes[0], Value::Null, &prompt[..16]));
    assert_eq!(events[1], stored(hashes[1], hashes[0].clone(), &prompt[16..32]));

    // Nothing new is stored.
    read(&mut llm, &prompt[..33]);
    llm.decoder_mut().expect("nothing is unfinished");
    read(&mut llm, &prompt[..17]);
    let (last, events) = next(&mut socket, topic).await.expect("blocks were removed and stored");
    assert_eq!(
        (last, &events[..]),
        (number + 2, &[json!(["AllBlocksCleared"]), stored(hashes[0], Value::Null, &prompt[..16])][..])
    );
}
