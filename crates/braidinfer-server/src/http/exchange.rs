//! A connection's current request and its answer, as its socket and its service see them.
//!
//! A client may end its side of the connection after its request (half-close) and still wait for the answer. To the server
//! that looks like a client that went away. So a socket hides the end from hyper until the answer is written. If the answer
//! takes longer than a moment, it writes `100 Continue` from time to time, which clients skip, and which fails if the client
//! is gone; then the request is cancelled. A stream needs no such lines, because its own events do the same.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, Version};
use futures_util::task::AtomicWaker;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Interval, interval_at};

/// Time between the end of a client's side and the first look whether the client is still there, and between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// An interim response, which every client of HTTP/1.1 skips.
const STILL_HERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// No request, or one that is being received.
const IDLE: u8 = 0;
/// The head of a request was received.
const RECEIVING: u8 = 1;
/// The whole request was received.
const RECEIVED: u8 = 2;
/// All of the answer was given to hyper, which has not written it yet.
const WRITING: u8 = 3;

/// What a connection is doing.
#[derive(Debug, Default)]
pub struct Exchange {
    state: AtomicU8,
    /// Whether the service waits for more of the request's body, since this was last set to false.
    is_starved: AtomicBool,
    /// Whether a part of the answer was written.
    has_answer: AtomicBool,
    /// Whether the client understands interim responses.
    takes_interim: AtomicBool,
    /// Rises with every answer of the server, to tell which connection has been idle for longest.
    idle_since: AtomicU64,
    reader: AtomicWaker,
}

impl Exchange {
    pub fn new() -> Arc<Self> {
        let exchange = Self::default();
        exchange.idle_since.store(now(), Ordering::Relaxed);
        Arc::new(exchange)
    }

    /// The time since when there is no request, on a clock of its own; `None` if there is one.
    pub fn idle_since(&self) -> Option<u64> {
        (self.state.load(Ordering::Acquire) == IDLE).then(|| self.idle_since.load(Ordering::Relaxed))
    }

    /// A request has begun; it ends when the guard is dropped.
    pub fn begin<B: HttpBody>(self: &Arc<Self>, request: &Request<B>) -> Ongoing {
        self.takes_interim.store(request.version() >= Version::HTTP_11, Ordering::Relaxed);
        self.state.store(RECEIVING, Ordering::Release);
        if request.body().is_end_stream() {
            self.received();
        }
        Ongoing(Arc::clone(self))
    }

    fn received(&self) {
        self.has_answer.store(false, Ordering::Relaxed);
        let _ = self.state.compare_exchange(RECEIVING, RECEIVED, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether the end of the client's side says nothing about the request: it is complete, or what hyper has of it was not
    /// read yet.
    fn hides_end(&self) -> bool {
        match self.state.load(Ordering::Acquire) {
            IDLE => false,
            RECEIVING => !self.is_starved.load(Ordering::Acquire),
            _ => true,
        }
    }

    /// The service waits for more of the body.
    fn starves(&self) {
        self.is_starved.store(true, Ordering::Release);
        self.reader.wake();
    }

    fn wrote(&self) {
        self.has_answer.store(true, Ordering::Relaxed);
    }

    fn flushed(&self) {
        if self.state.compare_exchange(WRITING, IDLE, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.idle_since.store(now(), Ordering::Relaxed);
            self.reader.wake();
        }
    }

    fn may_look(&self) -> bool {
        let is_open = self.state.load(Ordering::Acquire) == RECEIVED && !self.has_answer.load(Ordering::Relaxed);
        is_open && self.takes_interim.load(Ordering::Relaxed)
    }
}

/// Counts up, so that later is more.
fn now() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A request whose answer is not complete.
#[derive(Debug)]
pub struct Ongoing(Arc<Exchange>);

impl Ongoing {
    /// The body of the request, which says when it is complete.
    pub fn receiving<B>(&self, body: B) -> Body
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<axum::BoxError>,
    {
        Body::new(RequestBody { body, exchange: Arc::clone(&self.0) })
    }

    /// The body of the answer, with which the request ends.
    pub fn answering(self, body: Body) -> Body {
        Body::new(Kept { body, _kept: self })
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        self.0.state.store(WRITING, Ordering::Release);
    }
}

struct RequestBody<B> {
    body: B,
    exchange: Arc<Exchange>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            self.exchange.starves();
            return Poll::Pending;
        };
        if frame.is_none() || self.body.is_end_stream() {
            self.exchange.received();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for RequestBody<B> {
    /// Nobody reads the rest.
    fn drop(&mut self) {
        self.exchange.received();
    }
}

/// A body that keeps something until it is sent or given up.
pub struct Kept<T> {
    body: Body,
    _kept: T,
}

impl<T: Send + Unpin + 'static> Kept<T> {
    /// `body`, which keeps `kept`.
    pub fn within(body: Body, kept: T) -> Body {
        Body::new(Self { body, _kept: kept })
    }
}

impl<T: Unpin> HttpBody for Kept<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that hides the end of the client's side while an answer is due.
pub struct HalfOpen<S> {
    stream: S,
    exchange: Arc<Exchange>,
    /// Set at the end of the client's side; ticks when it is time to look whether the client is there.
    ended: Option<Interval>,
    /// The rest of an interim response that is being written.
    interim: &'static [u8],
}

impl<S: AsyncRead + AsyncWrite + Unpin> HalfOpen<S> {
    pub fn new(stream: S, exchange: Arc<Exchange>) -> Self {
        Self { stream, exchange, ended: None, interim: b"" }
    }

    /// Waits for the end of the answer, or for an error that says that the client is gone.
    fn poll_answered(&mut self, cx: &mut Context) -> Poll<io::Result<()>> {
        self.exchange.reader.register(cx.waker());
        while self.exchange.hides_end() {
            let Some(look) = &mut self.ended else { break };
            ready!(look.poll_tick(cx));
            if self.exchange.may_look() && self.interim.is_empty() {
                self.interim = STILL_HERE;
            }
            match self.poll_interim(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_interim(&mut self, cx: &mut Context) -> Poll<io::Result<()>> {
        while !self.interim.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, self.interim))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim = &self.interim[written..];
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for HalfOpen<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ended.is_none() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            if buffer.filled().len() > before || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            this.ended = Some(interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY));
            // hyper lets the service read what there is of the body, before it reads here again.
            this.exchange.is_starved.store(false, Ordering::Release);
            cx.waker().wake_by_ref();
        }
        this.poll_answered(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HalfOpen<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.interim.is_empty() {
            ready!(self.poll_interim(cx))?;
        }
        self.exchange.wrote();
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.exchange.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
