//! `cargo xtask torture`: the simulator, for as long as one likes.

use crate::run::{self, Outcome, cargo};

pub(crate) fn run(arguments: &[String]) -> Outcome {
    let simulator = ["run", "--release", "--quiet", "--package", "tiercache-tests", "--bin", "torture", "--"];
    run::run(cargo(simulator).args(arguments))
}
