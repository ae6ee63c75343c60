//! `cargo xtask bench`: measures beside the peers, which nothing else builds.

use crate::run::{self, Outcome, cargo};

pub(crate) fn run(arguments: &[String]) -> Outcome {
    let bench =
        ["run", "--release", "--quiet", "--package", "tiercache-benches", "--features", "peers", "--"];
    run::run(cargo(bench).args(arguments))
}
