//! What the tests of the whole share: the simulator with its reference model, the storm, what judges histories, and
//! small caches over doubles for the tests of single promises.

pub mod counting;
pub mod doubles;
pub mod history;
pub mod kill;
pub mod rig;
pub mod serial;
pub mod sim;
pub mod storm;
pub mod sums;
pub mod transfers;
pub mod values;
