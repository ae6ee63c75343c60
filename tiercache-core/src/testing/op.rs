/// A call of a tier, for the doubles that interfere with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// [`Tier::get`](crate::Tier::get).
    Get,
    /// [`Tier::put`](crate::Tier::put).
    Put,
    /// [`Tier::remove`](crate::Tier::remove).
    Remove,
    /// [`Tier::get_many`](crate::Tier::get_many), as a whole.
    GetMany,
    /// [`Tier::put_many`](crate::Tier::put_many), as a whole.
    PutMany,
    /// [`Tier::remove_many`](crate::Tier::remove_many), as a whole.
    RemoveMany,
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
    /// [`Counting::add`](crate::tier::Counting::add).
    Add,
    /// [`Counting::counter`](crate::tier::Counting::counter).
    Counter,
    /// [`Counting::remove_counter`](crate::tier::Counting::remove_counter).
    RemoveCounter,
    /// [`Leasing::acquire`](crate::Leasing::acquire).
    Acquire,
    /// [`Leasing::renew`](crate::Leasing::renew).
    Renew,
    /// [`Leasing::release`](crate::Leasing::release).
    Release,
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
            Self::GetMany => "get_many",
            Self::PutMany => "put_many",
            Self::RemoveMany => "remove_many",
            Self::Clear => "clear",
            Self::Usage => "usage",
            Self::Sweep => "sweep",
            Self::Sync => "sync",
            Self::Close => "close",
            Self::List => "list",
            Self::Fence => "fence",
            Self::Add => "add",
            Self::Counter => "counter",
            Self::RemoveCounter => "remove_counter",
            Self::Acquire => "acquire",
            Self::Renew => "renew",
            Self::Release => "release",
            Self::Note => "note",
        }
    }
}
