//! Many writes in one: the client writes many items at once only with the same flags for all of them, and a
//! condition is of one item.
//!
//! Meta commands are answered in their order, one line each (memcached, doc/protocol.txt, "Meta Commands"), so the n-th
//! line is the n-th item's. None is quiet. A connection whose call was dropped or failed is not used again.

use std::io;

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

use crate::server::Written;

/// No answer to a write is longer.
const LONGEST_LINE: u64 = 2_048;

/// A write of one item, on its own condition.
pub(crate) struct Write<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: &'a [u8],
    /// The CAS of what it replaces; without, there must be nothing.
    pub(crate) cas: Option<u64>,
    /// The flags `F` and `T`.
    pub(crate) flags: [String; 2],
}

/// A connection for such writes.
pub(crate) struct Wire {
    stream: BufStream<Box<dyn Stream>>,
    /// Whether what is read next is the answer to what is written next.
    in_step: bool,
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

impl Wire {
    async fn connect(address: &str) -> io::Result<Self> {
        let stream: Box<dyn Stream> = match address.strip_prefix("unix://") {
            #[cfg(unix)]
            Some(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
            #[cfg(not(unix))]
            Some(_) => return Err(io::ErrorKind::Unsupported.into()),
            None => {
                let stream = TcpStream::connect(address.trim_start_matches("tcp://")).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        Ok(Self { stream: BufStream::new(stream), in_step: true })
    }

    /// Makes the writes in one, and says what became of each.
    pub(crate) async fn set_many(&mut self, writes: &[Write<'_>]) -> io::Result<Vec<Written>> {
        self.in_step = false;
        for Write { name, value, cas, flags: [flags, expiry] } in writes {
            let condition = cas.map_or_else(|| "ME".to_owned(), |cas| format!("C{cas}"));
            let head = format!("ms {name} {} {condition} {flags} {expiry}\r\n", value.len());
            self.stream.write_all(head.as_bytes()).await?;
            self.stream.write_all(value).await?;
            self.stream.write_all(b"\r\n").await?;
        }
        self.stream.flush().await?;
        let mut answers = Vec::with_capacity(writes.len());
        let mut line = Vec::new();
        for _ in writes {
            line.clear();
            (&mut self.stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
            answers.push(answer(&line)?);
        }
        self.in_step = true;
        Ok(answers)
    }
}

/// What a line says became of a write.
fn answer(line: &[u8]) -> io::Result<Written> {
    match line.strip_suffix(b"\r\n") {
        Some(b"HD") => Ok(Written::Stored),
        Some(b"NS" | b"EX" | b"NF") => Ok(Written::Changed),
        Some(said) if said.starts_with(b"SERVER_ERROR ") => match &String::from_utf8_lossy(&said[13..]) {
            said if said.contains("too large") => Ok(Written::TooLarge),
            said if said.contains("out of memory") => Ok(Written::Full),
            said => Err(io::Error::other(format!("the server says: {said}"))),
        },
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to a write makes no sense")),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Makes such connections for a pool.
pub(crate) struct DialWire(pub(crate) String);

impl managed::Manager for DialWire {
    type Type = Wire;
    type Error = io::Error;

    async fn create(&self) -> io::Result<Wire> {
        Wire::connect(&self.0).await
    }

    async fn recycle(&self, wire: &mut Wire, metrics: &Metrics) -> RecycleResult<io::Error> {
        if !wire.in_step {
            return Err(RecycleError::message("a call was given up on it"));
        }
        if metrics.last_used() > crate::server::IDLE {
            wire.in_step = false;
            wire.stream.write_all(b"mn\r\n").await?;
            wire.stream.flush().await?;
            let mut line = Vec::new();
            (&mut wire.stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
            if line != b"MN\r\n" {
                return Err(RecycleError::message("it does not answer as it should"));
            }
            wire.in_step = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(stream: impl Stream + 'static) -> Wire {
        Wire { stream: BufStream::new(Box::new(stream)), in_step: true }
    }

    fn write<'a>(name: &'a str, value: &'a [u8], cas: Option<u64>) -> Write<'a> {
        Write { name, value, cas, flags: ["F7".into(), "T0".into()] }
    }

    #[tokio::test]
    async fn each_line_is_the_answer_to_its_write() {
        let (ours, mut theirs) = tokio::io::duplex(4_096);
        let mut wire = over(ours);
        let answers = b"HD\r\nNS\r\nEX\r\nNF\r\nSERVER_ERROR object too large for cache\r\n\
            SERVER_ERROR out of memory storing object\r\n";
        theirs.write_all(answers).await.unwrap();
        let writes: Vec<_> =
            ["a", "b", "c", "d", "e", "f"].map(|name| write(name, b"\r\nHD", Some(9))).into();
        let said = wire.set_many(&writes).await.unwrap();
        use Written::{Changed, Full, Stored, TooLarge};
        assert_eq!(said, [Stored, Changed, Changed, Changed, TooLarge, Full]);
        assert!(wire.in_step);
        let mut sent = vec![0; 27];
        theirs.read_exact(&mut sent).await.unwrap();
        assert_eq!(String::from_utf8(sent).unwrap(), "ms a 4 C9 F7 T0\r\n\r\nHD\r\nms b");
    }

    #[tokio::test]
    async fn a_connection_that_may_be_out_of_step_is_not_used_again() {
        for answers in [&b"HD\r\n"[..], b"HD\r\nERROR\r\n", b"HD\r\nSERVER_ERROR oops\r\n", b"HD\r\nHD"] {
            let (ours, mut theirs) = tokio::io::duplex(4_096);
            let mut wire = over(ours);
            theirs.write_all(answers).await.unwrap();
            theirs.shutdown().await.unwrap();
            let writes = [write("a", b"1", None), write("b", b"2", None)];
            wire.set_many(&writes).await.map(drop).unwrap_err();
            assert!(!wire.in_step, "{answers:?}");
        }
        let (ours, _theirs) = tokio::io::duplex(4_096);
        let mut wire = over(ours);
        let writes = [write("a", b"1", None)];
        tokio::select! {
            biased;
            _ = wire.set_many(&writes) => panic!("nobody answered"),
            () = tokio::task::yield_now() => {}
        }
        assert!(!wire.in_step, "dropped half-way");
    }
}
