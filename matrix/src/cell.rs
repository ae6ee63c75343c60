use crate::Trouble;
use Trouble::{
    Corrupt, Cut, Full, Hung, Killed, Late, OneByte, Refused, Reset, Restarted, Stopped, Wiped, WrongPassword,
};

/// What a store under a trouble is tested by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// The trouble itself, while a cache is open over the store.
    Itself,
    /// Its like for a store that is in the process and has no connection.
    Like(&'static str),
    /// It cannot be.
    Nothing(&'static str),
}

/// The rows: levels, and tracking in PostgreSQL.
pub const STORES: [&str; 7] = ["memcached", "redis", "postgres", "s3", "mongodb", "sqlite", "local"];

const NO_CONNECTION: Cell = Cell::Nothing("it has no connection");

impl Cell {
    /// What stands in the table.
    ///
    /// # Panics
    /// For a store that is not one of [`STORES`].
    pub fn of(store: &str, trouble: Trouble) -> Self {
        match (store, trouble) {
            ("memcached", WrongPassword) => Self::Nothing("the protocol as we speak it has none"),
            ("memcached" | "redis" | "postgres" | "s3" | "mongodb", _) => Self::Itself,
            ("sqlite" | "local", Killed) => {
                Self::Like("the process that has it open is killed while it writes")
            }
            ("sqlite", Stopped) => Self::Like("a process that holds its write locks is stopped"),
            ("local", Stopped) => Self::Like("the process that has it open is stopped"),
            ("sqlite" | "local", Refused) => Self::Like("its path becomes a link: it is not opened"),
            ("sqlite" | "local", Full) => Self::Like("its file system is full"),
            ("sqlite" | "local", Wiped) => Self::Like("its files are deleted under it"),
            ("sqlite" | "local", WrongPassword) => Self::Like("it is opened with another encryption key"),
            ("sqlite" | "local", Corrupt) => Self::Like("bytes of its files are turned under it"),
            ("sqlite" | "local", Restarted | Reset | Cut | Hung | Late | OneByte) => NO_CONNECTION,
            _ => panic!("no store of the matrix: {store}"),
        }
    }
}

/// The table of the README, made of what is tested.
pub fn table() -> String {
    let mut text = String::from("|");
    let mut notes: Vec<&str> = Vec::new();
    for store in STORES {
        text += &format!(" | {store}");
    }
    text += " |\n|---";
    text += &"|---".repeat(STORES.len());
    text += "|\n";
    for trouble in Trouble::ALL {
        text += &format!("| {trouble}");
        for store in STORES {
            let (mark, note) = match Cell::of(store, trouble) {
                Cell::Itself => ("✓", None),
                Cell::Like(note) => ("≈", Some(note)),
                Cell::Nothing(note) => ("—", Some(note)),
            };
            text += &format!(" | {mark}");
            if let Some(note) = note {
                let known = notes.iter().position(|known| *known == note);
                let number = known.unwrap_or_else(|| {
                    notes.push(note);
                    notes.len() - 1
                });
                text += &format!(" {}", number + 1);
            }
        }
        text += " |\n";
    }
    text += "\n";
    for (number, note) in (1..).zip(notes) {
        text += &format!("{number}. {note}\n");
    }
    text
}
