//! `cargo xtask ci`: what must hold before a change is merged.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::run::{self, Outcome, cargo};
use crate::test;

/// How features begin that take peers in: minutes of building what is not ours.
const PEERS: &str = "peers";

pub(crate) fn run() -> Outcome {
    run::run(&mut cargo(["fmt", "--all", "--check"]))?;
    let ours = ["--workspace", "--exclude", "tiercache-benches", "--all-features"];
    run::run(cargo(["clippy", "--all-targets"]).args(ours).args(["--", "-D", "warnings"]))?;
    run::run(&mut cargo(["clippy", "--all-targets", "-p", "tiercache-benches", "--", "-D", "warnings"]))?;
    for (package, features) in packages()? {
        for feature in features.iter().filter(|feature| !feature.starts_with(PEERS)) {
            check_alone(&package, feature)?;
        }
        check_alone(&package, "")?;
    }
    let mut docs =
        cargo(["doc", "--no-deps", "--workspace", "--exclude", "tiercache-benches", "--all-features"]);
    run::run(docs.env("RUSTDOCFLAGS", "-Dwarnings"))?;
    test::run()
}

/// With one feature and no other, not even the default ones.
fn check_alone(package: &str, feature: &str) -> Outcome {
    let mut check = cargo(["check", "--quiet", "--package", package, "--no-default-features"]);
    if !feature.is_empty() {
        check.args(["--features", feature]);
    }
    run::run(&mut check)
}

/// Every package that has features, and which.
fn packages() -> Outcome<Vec<(String, BTreeSet<String>)>> {
    let metadata = cargo(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .map_err(|error| error.to_string())?;
    if !metadata.status.success() {
        return Err(format!("`cargo metadata` failed: {}", String::from_utf8_lossy(&metadata.stderr)));
    }
    let metadata: Value = serde_json::from_slice(&metadata.stdout).map_err(|error| error.to_string())?;
    let packages = metadata["packages"].as_array().ok_or("`cargo metadata` names no packages")?;
    let named = packages.iter().filter_map(|package| {
        let name = package["name"].as_str()?.to_string();
        let features: BTreeSet<String> = package["features"].as_object()?.keys().cloned().collect();
        (!features.is_empty()).then_some((name, features))
    });
    Ok(named.collect())
}
