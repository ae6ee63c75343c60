use std::time::Duration;

/// What a proxy takes at most, from clients and from the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Header fields of a request or of a response. Default: 100.
    pub fields: usize,
    /// Bytes of a request's or a response's line and header fields together, at least 8 KiB. Default: 64 KiB.
    pub head_bytes: usize,
    /// Bytes of a request's path and query. Default: 8 KiB.
    pub target_bytes: usize,
    /// Bytes of a request's body. Default: 100 MiB.
    pub body_bytes: u64,
    /// Connections of clients; further ones wait in the system's queue. Default: 4096.
    pub connections: usize,
    /// Requests under way at the origin, and so connections to it; further ones wait as long as for a connection.
    /// Default: 256.
    pub upstream: usize,
    /// Connections to the origin that are kept open for later requests. Default: 64.
    pub idle_connections: usize,
    /// How long such a connection is used again; shorter than the five seconds after which many servers close theirs.
    /// Default: 4 s.
    pub keep_alive: Duration,
    /// How long resolving the origin's name and connecting may take together. Default: 5 s.
    pub connect: Duration,
    /// How long the origin may take to begin its response once it has the request. Default: 60 s.
    pub first_byte: Duration,
    /// How long either side may pause within a body. Default: 30 s.
    pub body_pause: Duration,
    /// How long a client may take for a request's header, its first and every further one. Default: 30 s.
    pub head: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fields: 100,
            head_bytes: 64 << 10,
            target_bytes: 8 << 10,
            body_bytes: 100 << 20,
            connections: 4096,
            upstream: 256,
            idle_connections: 64,
            keep_alive: Duration::from_secs(4),
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(60),
            body_pause: Duration::from_secs(30),
            head: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// What hyper takes as its buffer: it refuses fewer bytes.
    pub(crate) fn buffer(&self) -> usize {
        self.head_bytes.max(8 << 10)
    }

    /// How long a client's connection may stand still: longer than anything that may be waited for in between.
    pub(crate) fn idle(&self) -> Duration {
        self.head.max(self.first_byte + self.connect * 2).max(self.body_pause) + Duration::from_secs(15)
    }
}
