//! Bodies that a task carries to whoever reads them, through a channel.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

use crate::{Body, BoxError};

/// What a carrier sends. A channel that closes without an end belonged to a task that is gone.
pub(crate) enum Item {
    Frame(Frame<Bytes>),
    Failed(BoxError),
    End,
}

/// A body of what comes out of the channel. `hint` is of the whole.
pub(crate) fn body(items: mpsc::Receiver<Item>, hint: SizeHint) -> Body {
    Body::wrap(Carried { items, hint, ended: false })
}

struct Carried {
    items: mpsc::Receiver<Item>,
    /// Of the whole: `Body` counts what is left.
    hint: SizeHint,
    ended: bool,
}

impl http_body::Body for Carried {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = ready!(self.items.poll_recv(context));
        self.ended = !matches!(item, Some(Item::Frame(_)));
        Poll::Ready(match item {
            Some(Item::Frame(frame)) => Some(Ok(frame)),
            Some(Item::Failed(error)) => Some(Err(error)),
            Some(Item::End) => None,
            // What was sent is not the whole.
            None => Some(Err("the body was not carried to its end".into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
