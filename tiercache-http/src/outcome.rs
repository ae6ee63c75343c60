/// What the cache did for a request: in the extensions of every response it answers, for logs and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// Answered from what is stored, and fresh.
    Hit,
    /// Answered from what is stored, though stale: while it is revalidated, or because the origin failed.
    Stale,
    /// Answered from what is stored after the origin confirmed it.
    Revalidated,
    /// Answered by the origin; nothing stored could be used.
    Miss,
    /// The cache took no part: its method, its own directives or trouble with the store.
    Bypass,
}

impl Outcome {
    /// The name in lower case, for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
        }
    }
}
