//! The examples do what they say.

use std::process::Command;

fn run(program: &str, args: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = Command::new(program).args(args).current_dir(folder.path()).output().expect("it runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

#[test]
fn quickstart_keeps_and_invalidates() {
    let said = run(env!("CARGO_BIN_EXE_quickstart"), &[]);
    assert_eq!(said, "Some(b\"hello\")\nNone\n1 written, 0 already settled, 0 dropped\n");
}

#[test]
fn the_file_beside_the_examples_wires_a_cache() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tier.yaml");
    let said = run(env!("CARGO_BIN_EXE_from_yaml"), &[file]);
    assert_eq!(said.lines().next(), Some("2 bytes of Some(\"image/png\") from hot"));
}

#[test]
fn code_without_a_runtime_uses_the_same_cache() {
    assert_eq!(run(env!("CARGO_BIN_EXE_blocking"), &[]), "Some(b\"hello\")\n");
}

#[test]
fn a_cached_function_runs_once_for_what_it_is_asked_twice() {
    let said = run(env!("CARGO_BIN_EXE_cached"), &[]);
    let asked = "42: Some(\"Ada\")\n42: Some(\"Ada\")\n7: None\n7: None\n2 queries\n";
    assert_eq!(said, format!("{asked}42: Some(\"Ada Lovelace\")\n3 queries\n"));
}

#[test]
fn a_backend_of_ones_own_takes_fewer_than_80_lines() {
    assert_eq!(run(env!("CARGO_BIN_EXE_custom_backend"), &[]), "Some(Dry)\n");
    assert!(include_str!("../custom_backend.rs").lines().count() < 80);
}

#[test]
fn the_proxy_asks_a_slow_origin_once() {
    let said = run(env!("CARGO_BIN_EXE_proxy"), &["20", "2ms"]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("origin  20 requests, 20 at the origin, p50 "), "{said}");
    assert!(lines[1].starts_with("proxy   20 requests, 1 at the origin, p50 "), "{said}");
    assert_eq!(lines[2], "purged  2 requests, 1 at the origin", "{said}");
}

/// What a service with a policy per route says of itself, and its cache beside it.
const SERVED: &str = "\
GET /products/7: product 7, edition 0 (fwd=uri-miss; stored)
GET /products/7: product 7, edition 0 (hit)
GET /offers: offers, edition 0 (fwd=uri-miss; stored)
GET /offers: offers, edition 0 (hit)
GET /basket: basket, edition 0 (fwd=uri-miss)
GET /basket: basket, edition 0 (fwd=uri-miss)
PUT /products/7: changed (fwd=method)
GET /products/7: product 7, edition 1 (fwd=uri-miss; stored)
GET /offers: offers, edition 1 (fwd=uri-miss; stored)
GET /offers: offers, edition 1 (fwd=uri-miss; stored)
GET /products/7: product 7, edition 1 (fwd=uri-miss; stored)
";

#[test]
fn an_axum_service_stores_by_route_and_removes_by_tag() {
    assert_eq!(run(env!("CARGO_BIN_EXE_axum_service"), &[]), SERVED);
}

#[test]
fn an_actix_service_stores_by_resource_and_removes_by_tag() {
    assert_eq!(run(env!("CARGO_BIN_EXE_actix_service"), &[]), SERVED);
}

#[test]
fn a_client_asks_once_for_each_user_and_again_after_a_change() {
    let said = run(env!("CARGO_BIN_EXE_client"), &[]);
    let expected = "\
page of ann, 0 changes (tiercache; fwd=uri-miss; stored)
page of ann, 0 changes (tiercache; hit)
page of bob, 0 changes (tiercache; fwd=uri-miss; stored)
page of bob, 0 changes (tiercache; hit)
changed (tiercache; fwd=method)
page of ann, 1 changes (tiercache; fwd=uri-miss; stored)
page of ann, 1 changes (tiercache; hit)
";
    assert_eq!(said, expected);
}
