/// A call of a tier, for the doubles that interfere with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// [`Tier::get`](crate::Tier::get).
    Get,
    /// [`Tier::put`](crate::Tier::put).
    Put,
    /// [`Tier::remove`](crate::Tier::remove).
    Remove,
    /// [`Tier::clear`](crate::Tier::clear).
    Clear,
    /// [`Tier::usage`](crate::Tier::usage).
    Usage,
    /// [`Tier::sweep`](crate::Tier::sweep).
    Sweep,
    /// [`Tier::sync`](crate::Tier::sync).
    Sync,
    /// [`Tier::close`](crate::Tier::close).
    Close,
    /// [`Listing::list`](crate::tier::Listing::list).
    List,
    /// [`FenceLog::fence`](crate::tier::FenceLog::fence).
    Fence,
    /// [`Journal::note`](crate::tier::Journal::note).
    Note,
}

impl Op {
    /// The method's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Usage => "usage",
            Self::Sweep => "sweep",
            Self::Sync => "sync",
            Self::Close => "close",
            Self::List => "list",
            Self::Fence => "fence",
            Self::Note => "note",
        }
    }
}
