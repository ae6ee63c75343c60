//! The suites every tier and tracking store passes, and the doubles that inject time and faults.

mod clock;
pub mod tracking;

pub use clock::ManualClock;
