//! `export`, `import`, `migrate`, and `serve` on SIGHUP, as processes.

use std::process::{Command, Stdio};

use crate::common::{Place, Server};
use serde_json::json;

fn filled(keys: u32) -> Place {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    for number in 0..keys {
        let path = format!("/cache/k{number}?ttl=2h&tag.type=page");
        assert_eq!(server.put(&path, format!("value {number}").as_bytes()).status, 204);
    }
    assert_eq!(server.stop().1, 0);
    place
}

#[test]
fn what_was_exported_is_imported_with_its_tags_and_time_to_live() {
    let (from, to) = (filled(20), Place::new());
    let ran = from.run(&["export", "--output", "out.tcx", "--json"]).expect(0).json();
    assert_eq!((&ran["entries"], &ran["failed"]), (&json!(20), &json!(0)));
    assert_eq!(
        std::fs::metadata(from.file("out.tcx")).expect("a file").len(),
        ran["written"].as_u64().expect("bytes")
    );
    let refused = from.run(&["export", "--output", "out.tcx"]).expect(2);
    assert!(refused.err().contains("out.tcx is there already, --force replaces it"), "{}", refused.err());
    from.run(&["export", "--output", "out.tcx", "--force"]).expect(0);

    let file = from.file("out.tcx");
    let file = file.to_str().expect("a path");
    let ran = to.run(&["import", file, "--json"]).expect(0).json();
    assert_eq!((&ran["read"], &ran["stored"], &ran["skipped"]), (&json!(20), &json!(20), &json!(0)));
    let got = to.run(&["get", "k7", "--json"]).expect(0).json();
    assert_eq!((&got["value"], &got["tags"]), (&json!("value 7"), &json!({ "type": "page" })));
    assert!(got["time_left"].as_str().expect("a time").starts_with("1h "), "{got}");
    let ran = to.run(&["import", file]).expect(0);
    assert!(
        ran.out().starts_with("20 read: 0 stored") && ran.out().contains("20 there already"),
        "{}",
        ran.out()
    );
    assert!(ran.err().is_empty(), "a pipe sees no progress: {}", ran.err());
}

#[test]
fn an_export_goes_through_a_pipe_and_damage_is_told() {
    let (from, to) = (filled(10), Place::new());
    let stream = from.run(&["export", "--output", "-", "--prefix", "k1"]).expect(0).0;
    assert!(String::from_utf8_lossy(&stream.stderr).starts_with("1 entries"));
    assert!(stream.stdout.starts_with(b"\x89TCX"));
    to.run_with_input(&["import", "-"], &stream.stdout).expect(0);
    assert_eq!(to.run(&["get", "k1"]).expect(0).out(), "value 1");

    let mut stream = from.run(&["export", "--output", "-", "--compress", "zstd"]).expect(0).0.stdout;
    let at = stream.len() / 2;
    stream[at] ^= 1;
    let ran = to.run_with_input(&["import", "-"], &stream).expect(3);
    assert!(
        ran.err().contains("standard input: damaged at offset ") && ran.err().contains("--skip-damaged"),
        "{}",
        ran.err()
    );
    let ran = to.run_with_input(&["import", "-", "--skip-damaged", "--json"], &stream).expect(1).json();
    assert!(ran["stored"].as_u64() >= Some(1) && ran["present"].as_u64() >= Some(1), "{ran}");
    let ran = to.run_with_input(&["import", "-"], b"PK\x03\x04 something else").expect(2);
    assert!(ran.err().contains("standard input: this is no export"), "{}", ran.err());
    let ran = to.run(&["import", "--from-diskcache", "."]).expect(2);
    assert!(ran.err().contains("no cache.db of diskcache"), "{}", ran.err());
    assert_eq!(to.run(&["import"]).expect(2).out(), "");
    assert_eq!(to.run(&["--url", "http://127.0.0.1:1", "export", "-o", "x"]).expect(2).out(), "");
}

#[test]
fn a_migration_goes_between_any_two_configurations() {
    let (from, to) = (filled(30), Place::new());
    to.configure(
        "hot_cache: { backend: ram, max_size: 1MiB }\ncold_cache: { backend: none }\n\
         dry_cache: { backend: sqlite, path: ./cache/sql, max_size: 64MiB }\ntracking: { backend: none }\n",
    );
    // Paths in a configuration are those of the process.
    let absolute = |place: &Place| {
        let text = std::fs::read_to_string(place.file("tier.yaml")).expect("a configuration");
        place.configure(&text.replace("./cache", &place.path().join("cache").display().to_string()));
        place.file("tier.yaml").display().to_string()
    };
    let (a, b) = (absolute(&from), absolute(&to));
    let migrate = ["migrate", "--from", &a, "--to", &b, "--json"];
    let ran = to.run(&migrate).expect(0).json();
    assert_eq!((&ran["read"], &ran["stored"]), (&json!(30), &json!(30)), "{ran}");
    let ran = to.run(&migrate).expect(0).json();
    assert_eq!((&ran["read"], &ran["stored"], &ran["present"]), (&json!(30), &json!(0), &json!(30)), "{ran}");
    let got = to.run(&["get", "k29", "--json"]).expect(0).json();
    assert_eq!((&got["value"], &got["tags"]), (&json!("value 29"), &json!({ "type": "page" })));
    let same = to.run(&["migrate", "--from", &a, "--to", &a]).expect(2);
    assert!(same.err().contains("both configurations name the same"), "{}", same.err());
}

/// Killed at some point of its way, it is completed by the next run, whatever had arrived.
#[test]
fn a_killed_migration_is_completed_by_the_next_run() {
    let (from, to) = (Place::new(), Place::new());
    let absolute = |place: &Place, pending: &str| {
        place.configure(&format!(
            "hot_cache: {{ backend: ram, max_size: 1MiB }}\ncold_cache: {{ backend: none }}\n\
             dry_cache: {{ backend: local, path: {0}/dry, max_size: 256MiB }}\n\
             tracking: {{ backend: none }}\n{pending}",
            place.path().display()
        ));
        place.file("tier.yaml").display().to_string()
    };
    let (a, b) = (absolute(&from, ""), absolute(&to, "pending: 1MiB\n"));
    let server = Server::start(&from, &[]);
    let value = vec![b'v'; 64 << 10];
    for number in 0..400 {
        assert_eq!(server.put(&format!("/cache/k{number}"), &value).status, 204);
    }
    assert_eq!(server.stop().1, 0);
    let mut child =
        to.command(&["migrate", "--from", &a, "--to", &b]).stdout(Stdio::null()).spawn().expect("it runs");
    // Once something has arrived, and not all of it.
    let arrived = || {
        let files = std::fs::read_dir(to.path().join("dry")).into_iter().flatten().flatten();
        files.filter(|file| file.path().extension().is_some_and(|end| end == "seg")).count() > 0
    };
    while !arrived() && child.try_wait().expect("its state").is_none() {
        std::thread::yield_now();
    }
    child.kill().expect("SIGKILL");
    child.wait().expect("its end");
    let ran = to.run(&["migrate", "--from", &a, "--to", &b, "--json"]).expect(0).json();
    let (read, stored, present) = (ran["read"].as_u64(), ran["stored"].as_u64(), ran["present"].as_u64());
    assert_eq!(
        (read, stored.zip(present).map(|(stored, present)| stored + present)),
        (Some(400), Some(400)),
        "{ran}"
    );
    let again = to.run(&["migrate", "--from", &a, "--to", &b, "--json"]).expect(0).json();
    assert_eq!(again["present"], json!(400), "{again}");
}

#[test]
fn sighup_reads_the_configuration_again() {
    let place = Place::new();
    let text = std::fs::read_to_string(place.file("tier.yaml")).expect("a configuration");
    let mut server = Server::start(&place, &[]);
    assert_eq!(server.put("/cache/k", b"v").status, 204);
    let mut hang_up = |text: &str| {
        place.configure(text);
        let killed = Command::new("kill").args(["-HUP", &server.pid().to_string()]).status().expect("kill");
        assert!(killed.success());
        server.line()
    };
    let said = hang_up(&text.replacen("8MiB", "1MiB", 1));
    assert_eq!(said["reloaded"], json!(true), "{said}");
    assert_eq!(said["changed"], json!({ "hot_cache.max_size": { "from": "8MiB", "to": "1MiB" } }));
    let said = hang_up(&text.replacen("8MiB", "2MiB", 1).replace("./cache/dry", "./cache/other"));
    let error = said["error"].as_str().expect("an error");
    assert!(error.contains("dry_cache.path: is ./cache/dry, would become ./cache/other"), "{error}");
    let said = hang_up("hot_cache: { backend: rum }\n");
    assert!(said["error"].as_str().expect("an error").contains("rum"), "{said}");
    assert_eq!(server.get("/cache/k").text(), "v");
    let stats: serde_json::Value = serde_json::from_slice(&server.get("/stats").body).expect("statistics");
    assert_eq!(stats["levels"][0]["capacity_bytes"], json!(1 << 20), "the refused one changed nothing");
    place.configure(&text);
    assert_eq!(server.stop().1, 0);
}
