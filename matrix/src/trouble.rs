use std::fmt;
use std::time::Duration;

use tiercache_services::Fault;

/// What befalls a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is killed, and is back at the end of the trouble.
    Killed,
    /// It is killed and started again at once.
    Restarted,
    /// It stands still where it is: SIGSTOP.
    Stopped,
    /// Nobody listens at its address.
    Refused,
    /// Connections are reset before their answer.
    Reset,
    /// Connections end within an answer.
    Cut,
    /// Nothing passes, in either direction.
    Hung,
    /// Each answer is half a second late.
    Late,
    /// Both directions a byte at a time.
    OneByte,
    /// It has no room.
    Full,
    /// It has forgotten everything.
    Wiped,
    /// It does not let us in any more.
    WrongPassword,
    /// A bit of each connection's answers is turned.
    Corrupt,
}

impl Trouble {
    /// Every one.
    pub const ALL: [Self; 13] = [
        Self::Refused,
        Self::Hung,
        Self::Reset,
        Self::Cut,
        Self::Late,
        Self::OneByte,
        Self::Corrupt,
        Self::Full,
        Self::WrongPassword,
        Self::Stopped,
        Self::Killed,
        Self::Restarted,
        Self::Wiped,
    ];

    /// Whether no write can get through.
    pub const fn is_felt(self) -> bool {
        match self {
            Self::Killed
            | Self::Stopped
            | Self::Refused
            | Self::Reset
            | Self::Hung
            | Self::Full
            | Self::WrongPassword => true,
            Self::Restarted | Self::Cut | Self::Late | Self::OneByte | Self::Wiped | Self::Corrupt => false,
        }
    }

    /// What a proxy does to make it.
    pub const fn fault(self) -> Option<Fault> {
        Some(match self {
            Self::Refused => Fault::Refuse,
            Self::Hung => Fault::Hang,
            Self::Reset => Fault::Reset,
            Self::Cut => Fault::CutAfter(17),
            Self::Late => Fault::Delay(Duration::from_millis(500)),
            Self::OneByte => Fault::OneByte,
            Self::Corrupt => Fault::Corrupt(23),
            _ => return None,
        })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Killed => "killed",
            Self::Restarted => "restarted",
            Self::Stopped => "stopped",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Cut => "cut",
            Self::Hung => "hung",
            Self::Late => "500 ms late",
            Self::OneByte => "byte by byte",
            Self::Full => "full",
            Self::Wiped => "wiped",
            Self::WrongPassword => "wrong password",
            Self::Corrupt => "corrupt",
        })
    }
}
