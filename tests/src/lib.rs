//! What the tests of the whole share: the simulator with its reference model, and the storm.

pub mod sim;
pub mod storm;
