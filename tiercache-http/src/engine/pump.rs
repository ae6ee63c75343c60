//! A body on its way from the origin to whoever asked, and into the store.
//!
//! A task carries it, so that a requester who leaves harms nobody who waits for it to be stored. Whoever has seen the
//! end of a body finds it stored: the end, or the frame that completes the announced length, is sent after that.

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use crate::Body;
use crate::carried::{self, Item};
use crate::store::{Content, PieceWriter};

/// Frames that wait for a slow requester.
const AHEAD: usize = 4;

/// Carries `body`, and gives what it was to `publish` if it came whole. `length` is what was announced.
pub(crate) fn carry<P, F>(body: Body, length: Option<u64>, writer: PieceWriter, publish: P) -> Body
where
    P: FnOnce(Content, PieceWriter) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (frames, carried) = mpsc::channel(AHEAD);
    let hint = length.map_or_else(|| body.size_hint(), SizeHint::with_exact);
    let carrier = Carrier { body, length, sent: 0, frames: Some(frames) };
    tokio::spawn(carrier.run(writer, publish));
    carried::body(carried, hint)
}

struct Carrier {
    body: Body,
    length: Option<u64>,
    sent: u64,
    /// `None` once the requester is gone.
    frames: Option<mpsc::Sender<Item>>,
}

impl Carrier {
    async fn run<P, F>(mut self, writer: PieceWriter, publish: P)
    where
        P: FnOnce(Content, PieceWriter) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let mut storing = Some((writer, publish));
        let mut held = None;
        loop {
            if self.frames.is_none() && storing.is_none() {
                return;
            }
            let frame = match self.body.frame().await {
                None => break,
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    drop(storing.take());
                    self.flush(held).await;
                    self.send(Item::Failed(error)).await;
                    return;
                }
            };
            let Some(data) = frame.data_ref() else {
                // Trailers are not kept, and a response without them is another one.
                drop(storing.take());
                self.flush(held.take()).await;
                self.send(Item::Frame(frame)).await;
                continue;
            };
            if let Some((writer, _)) = &mut storing {
                match writer.push(data).await {
                    Ok(true) => {}
                    Ok(false) => drop(storing.take()),
                    Err(error) => {
                        tracing::debug!(%error, "a body is not stored");
                        drop(storing.take());
                    }
                }
            }
            self.sent += data.len() as u64;
            self.flush(held.take()).await;
            if storing.is_some() && self.length.is_some_and(|length| self.sent >= length) {
                held = Some(frame);
            } else {
                self.send(Item::Frame(frame)).await;
            }
        }
        if let Some((writer, publish)) = storing
            && self.length.is_none_or(|length| length == writer.length())
        {
            match writer.finish().await {
                Ok((content, writer)) => publish(content, writer).await,
                Err(error) => tracing::debug!(%error, "a body is not stored"),
            }
        }
        self.flush(held).await;
        self.send(Item::End).await;
    }

    async fn flush(&mut self, held: Option<Frame<Bytes>>) {
        if let Some(frame) = held {
            self.send(Item::Frame(frame)).await;
        }
    }

    async fn send(&mut self, item: Item) {
        if let Some(frames) = &self.frames
            && frames.send(item).await.is_err()
        {
            self.frames = None;
        }
    }
}
