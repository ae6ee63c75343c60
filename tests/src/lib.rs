//! What the tests of the whole share: the simulator with its reference model, the storm, and what judges histories.

pub mod history;
pub mod kill;
pub mod sim;
pub mod storm;
pub mod values;
