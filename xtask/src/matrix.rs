//! `cargo xtask matrix`: every backend under every fault, as often as one likes.

use crate::run::{self, Outcome, cargo};
use crate::services;

pub(crate) fn run(arguments: &[String]) -> Outcome {
    let rounds = match arguments {
        [] => "10",
        [option, rounds] if option == "--rounds" => rounds,
        other => return Err(format!("unknown arguments {other:?}: it takes --rounds N")),
    };
    services::run()?;
    let mut tests = cargo(["nextest", "run", "--package", "tiercache-matrix", "--no-fail-fast"]);
    run::run(tests.env("TIERCACHE_TEST_VENV", services::venv()).env("TIERCACHE_MATRIX_ROUNDS", rounds))
}
