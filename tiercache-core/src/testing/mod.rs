//! The suites every tier and tracking store passes, and the doubles that inject time and faults.

mod clock;
mod fault;
mod gate;
mod hooked;
pub mod lease;
mod memory;
mod op;
pub mod tier;
pub mod tracking;

pub use clock::ManualClock;
pub use fault::{Fault, FaultTier, When};
pub use gate::{GateTier, Gates, Point};
pub use hooked::{Hooked, Hooks};
pub use memory::MemoryTier;
pub use op::Op;
