//! Standard output.
//!
//! `println!` panics when nobody reads any more, or the disk is full: what a command has left to do, such as to sink what it
//! left in RAM, would not be done.

use std::fmt::Arguments;
use std::io::{Error, ErrorKind, Result, StdoutLock, Write, stdout};
use std::sync::OnceLock;

/// What went wrong first. Nothing is said any more then.
static BROKEN: OnceLock<Error> = OnceLock::new();

/// Says a line, as `println!` does. Whether it could is asked at the end, of [`broken`].
macro_rules! say {
    ($($part:tt)*) => { $crate::say::line(format_args!($($part)*)) };
}
pub(crate) use say;

pub(crate) fn line(line: Arguments<'_>) {
    write(|out| writeln!(out, "{line}"));
}

/// Says bytes as they are.
pub(crate) fn bytes(bytes: &[u8]) {
    write(|out| out.write_all(bytes).and_then(|()| out.flush()));
}

fn write(what: impl FnOnce(&mut StdoutLock<'_>) -> Result<()>) {
    if BROKEN.get().is_none()
        && let Err(error) = what(&mut stdout().lock())
    {
        let _ = BROKEN.set(error);
    }
}

/// Why not everything was said. Whoever closed a pipe has read enough.
pub(crate) fn broken() -> Option<&'static Error> {
    BROKEN.get().filter(|error| error.kind() != ErrorKind::BrokenPipe)
}
