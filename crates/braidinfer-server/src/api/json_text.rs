//! JSON in pieces. A long answer as one text would be copied each time that it grows, and the allocator would keep its memory.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use serde::Serialize;

use crate::http::ApiError;

/// Bytes of a piece.
const PIECE: usize = 64 << 10;

/// The JSON of a value, which is also a body of a response.
#[derive(Debug, Default)]
pub struct JsonText {
    pieces: VecDeque<Bytes>,
    last: Vec<u8>,
    len: usize,
}

impl JsonText {
    pub fn of(value: &impl Serialize) -> Result<Self, ApiError> {
        let mut text = Self::default();
        let written = serde_json::to_writer(&mut text, value);
        written.map_err(|error| ApiError::internal(format!("the answer is no JSON: {error}")))?;
        text.end_piece();
        Ok(text)
    }

    /// Bytes that are left.
    pub fn len(&self) -> usize {
        self.len
    }

    fn end_piece(&mut self) {
        if !self.last.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.last).into());
        }
    }
}

impl Write for JsonText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.last.len() >= PIECE {
            self.end_piece();
        }
        if self.last.capacity() == 0 && !self.pieces.is_empty() {
            self.last.reserve_exact(PIECE);
        }
        let taken = bytes.len().min(PIECE - self.last.len());
        self.last.extend_from_slice(&bytes[..taken]);
        self.len += taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Body for JsonText {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.pop_front();
        self.len -= piece.as_ref().map_or(0, Bytes::len);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn pieces_add_up_to_the_text() {
        for value in [String::new(), "é".repeat(10), "x\n".repeat(PIECE)] {
            let text = JsonText::of(&value).expect("it is JSON");
            let expected = serde_json::to_vec(&value).expect("it is JSON");
            assert_eq!(text.len(), expected.len());
            assert_eq!(text.collect().await.expect("it does not fail").to_bytes(), expected);
        }
    }
}
