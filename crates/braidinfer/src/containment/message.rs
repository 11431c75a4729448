//! The form of messages between a process and its workers: MessagePack, and a result in each reply.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;

use super::WorkKind;

/// A message. Fails with a text if a value has no such form.
pub(crate) fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    rmp_serde::to_vec(value).map_err(|error| error.to_string())
}

/// The value of a message.
pub(crate) fn unpack<T: DeserializeOwned>(message: &[u8]) -> Result<T, String> {
    rmp_serde::from_slice(message).map_err(|error| error.to_string())
}

/// The message that a worker is started with: what it is for, and what its service is made of.
pub(crate) fn setup<T: Serialize>(kind: WorkKind, service: &T) -> Result<Vec<u8>, String> {
    pack(&(kind, ByteBuf::from(pack(service)?)))
}

/// Parts of the message that a worker is started with.
pub(crate) fn parts_of_setup(message: &[u8]) -> Result<(WorkKind, ByteBuf), String> {
    unpack(message)
}

/// A reply: what was asked for, or why there is none. Values that have no such form make an empty message, which the reader
/// takes for a fault.
pub(crate) fn of_reply<T: Serialize>(result: &Result<T, String>) -> Vec<u8> {
    pack(result).unwrap_or_default()
}

/// What a reply says.
pub(crate) fn reply<T: DeserializeOwned>(message: &[u8]) -> Result<T, String> {
    unpack::<Result<T, String>>(message)?
}
