use std::fmt;
use std::time::Duration;

/// A position in the order values sink through: hot, then cold, then dry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Where values are set and where a hit promotes to.
    Hot,
    /// Where values go that hot gave up.
    Cold,
    /// The last level; what it gives up is gone.
    Dry,
}

impl Level {
    /// Every level, top down.
    pub const ALL: [Self; 3] = [Self::Hot, Self::Cold, Self::Dry];

    /// The level's word in YAML, on the command line and in statistics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Cold => "cold",
            Self::Dry => "dry",
        }
    }

    /// 0 for hot, 1 for cold, 2 for dry.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The level of that word, if it is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of levels an entry may stand at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Levels(u8);

impl Levels {
    /// Hot, cold and dry.
    pub const ALL: Self = Self(0b111);

    /// One level alone.
    pub const fn only(level: Level) -> Self {
        Self(1 << level as u8)
    }

    /// The set without `level`.
    pub const fn without(self, level: Level) -> Self {
        Self(self.0 & !(1 << level as u8))
    }

    /// Whether `level` is in the set.
    pub const fn contains(self, level: Level) -> bool {
        self.0 & (1 << level as u8) != 0
    }

    /// Whether no level is left.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as three bits, hot the lowest.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set of those three bits; higher bits are ignored.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 0b111)
    }
}

/// How long an untouched entry remains at a level before it sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stay {
    /// Until the level needs the room.
    Forever,
    /// At most this long without a use.
    For(Duration),
}

impl Stay {
    /// The stay in milliseconds; `u64::MAX` stands for ever.
    pub fn as_millis(self) -> u64 {
        match self {
            Self::Forever => u64::MAX,
            Self::For(stay) => u64::try_from(stay.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The stay of that many milliseconds; `u64::MAX` stands for ever.
    pub fn from_millis(millis: u64) -> Self {
        if millis == u64::MAX { Self::Forever } else { Self::For(Duration::from_millis(millis)) }
    }
}
