//! Bodies across the border: actix-web's stay on their worker, the engine's may go anywhere.

use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, MessageBody};
use actix_web::rt;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::{mpsc, oneshot};

use crate::Body;
use crate::carried::{self, Item};

/// Chunks of the service's that wait for a slow reader.
const AHEAD: usize = 4;

/// A body of the service's. A task on its worker carries what is not there as a whole, and ends with its reader.
pub(super) fn inward<B: MessageBody + 'static>(body: B) -> Body {
    let size = body.size();
    if size.is_eof() {
        return Body::empty();
    }
    let body = match body.try_into_bytes() {
        Ok(bytes) => return bytes.into(),
        Err(body) => body,
    };
    let (items, carried) = mpsc::channel(AHEAD);
    rt::spawn(async move {
        tokio::select! {
            // A body may wait for long, for somebody who has left.
            () = items.closed() => {}
            () = carry(body, &items) => {}
        }
    });
    let hint = match size {
        BodySize::Sized(size) => SizeHint::with_exact(size),
        BodySize::None | BodySize::Stream => SizeHint::default(),
    };
    carried::body(carried, hint)
}

async fn carry<B: MessageBody>(body: B, items: &mpsc::Sender<Item>) {
    let mut body = pin!(body);
    loop {
        let item = match poll_fn(|context| body.as_mut().poll_next(context)).await {
            Some(Ok(chunk)) => Item::Frame(Frame::data(chunk)),
            Some(Err(error)) => Item::Failed(error.into().to_string().into()),
            None => Item::End,
        };
        let last = !matches!(item, Item::Frame(_));
        if items.send(item).await.is_err() || last {
            return;
        }
    }
}

/// A body of the engine's.
pub(super) struct Outward {
    body: Body,
    size: BodySize,
    /// Dropped when the answer has left the app, and with it the request: bodies are read after that.
    held: Option<oneshot::Sender<()>>,
}

impl Outward {
    pub(super) fn new(body: Body, size: BodySize, held: Option<oneshot::Sender<()>>) -> Self {
        Self { body, size, held }
    }
}

impl MessageBody for Outward {
    type Error = Box<dyn Error>;

    fn size(&self) -> BodySize {
        self.size
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Box<dyn Error>>>> {
        drop(self.held.take());
        loop {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
                return Poll::Ready(None);
            };
            match frame {
                // actix-web has no trailers.
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Poll::Ready(Some(Ok(data))),
                    Err(_) => continue,
                },
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Middleware asks for the bytes while it has the request: not where that is waited for. Nor are they what is
    /// announced in an answer to a HEAD.
    fn try_into_bytes(self) -> Result<Bytes, Self> {
        match self.body.whole() {
            Some(bytes) if self.held.is_none() && self.size == BodySize::Sized(bytes.len() as u64) => {
                Ok(bytes)
            }
            _ => Err(self),
        }
    }
}
