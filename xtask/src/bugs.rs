//! `cargo xtask bugs`: proof that the simulator catches what it is there to catch.

use crate::run::{self, Outcome, cargo};

/// Runs every seeded bug, or the one that is named. They are compiled in by a `--cfg` that no other build has, into
/// a folder of its own.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let target = run::root().join("target/bugs");
    let proof =
        ["run", "--quiet", "--profile", "test", "--package", "tiercache-tests", "--bin", "bugs", "--"];
    let mut command = cargo(proof);
    command.args(arguments).env("RUSTFLAGS", "--cfg tiercache_bugs").env("CARGO_TARGET_DIR", target);
    run::run(&mut command)
}
