//! Tracking that does not know what the levels hold, found and repaired by `check`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::common::{Place, Server};

const LEVELS: [&str; 2] = [
    "dry_cache: { backend: local, path: ./cache/dry, max_size: 64MiB }\n",
    "dry_cache: { backend: sqlite, path: ./cache/dry, max_size: 64MiB, inline_max: 1KiB, shards: 3 }\n",
];
const ABOVE: &str = "hot_cache: { backend: ram, max_size: 8MiB }\ncold_cache: { backend: none }\n\
                     tracking: { backend: sqlite, path: ./cache/index.db }\n";

fn places() -> impl Iterator<Item = Place> {
    LEVELS.into_iter().map(|level| {
        let place = Place::new();
        place.configure(&format!("{level}{ABOVE}"));
        place
    })
}

impl Place {
    /// What a check says of tracking.
    fn compared(&self, repair: bool, code: i32) -> Value {
        let args: &[&str] = if repair { &["check", "--json", "--repair"] } else { &["check", "--json"] };
        let said = self.run(args).expect(code).lines();
        let told = said.into_iter().find(|line| line["tracking"] == "sqlite");
        told.expect("a line about tracking")
    }

    fn index(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.file("cache/index.db")).expect("the index")
    }

    /// Every record of the index but its uses.
    fn records(&self) -> Vec<(String, i64, i64, i64, i64)> {
        let index = self.index();
        let select = "SELECT CAST(key AS TEXT), generation, level, size, deadline FROM record ORDER BY key";
        let mut select = index.prepare(select).expect("the form of the index");
        let rows =
            select.query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)));
        rows.expect("the records").collect::<Result<_, _>>().expect("records")
    }
}

fn counts(told: &Value) -> [u64; 4] {
    ["records", "entries", "stale", "untracked"].map(|name| told[name].as_u64().expect("a count"))
}

/// Every file below, and what is in it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => drop(files.insert(path.display().to_string(), std::fs::read(&path).expect("a file"))),
        }
    }
    files
}

#[test]
fn what_ordinary_use_leaves_agrees() {
    for place in places() {
        place.run(&["set", "stays", "v", "--tag", "type=text"]).expect(0);
        place.run(&["set", "large", &"value ".repeat(1_000)]).expect(0);
        for key in ["replaced", "replaced", "removed", "tagged"] {
            place.run(&["set", key, "v", "--tag", "kind=some"]).expect(0);
        }
        // A use brings it up to RAM, and the end of the command down again.
        place.run(&["get", "stays"]).expect(0);
        place.run(&["touch", "stays", "--ttl", "2h"]).expect(0);
        place.run(&["delete", "removed"]).expect(0);
        let told = place.compared(false, 0);
        assert_eq!((counts(&told), &told["clean"]), ([4, 4, 0, 0], &true.into()), "{told}");
        place.run(&["clear", "--tag", "kind=some"]).expect(0);
        let told = place.compared(false, 0);
        assert_eq!((counts(&told), &told["clean"]), ([2, 2, 0, 0], &true.into()), "{told}");
        assert_eq!(told["compared"], serde_json::json!(["hot", "dry"]));
        assert_eq!(told["not_compared"], serde_json::json!([]));
    }
}

#[test]
fn both_kinds_of_drift_are_found_and_repaired() {
    for place in places() {
        for key in ["gone", "kept", "old"] {
            place.run(&["set", key, "first"]).expect(0);
        }
        let index = place.file("cache/index.db");
        let earlier = std::fs::read(&index).expect("the index, all of it in one file");
        assert!(!place.file("cache/index.db-wal").exists(), "it was closed in order");
        place.run(&["delete", "gone"]).expect(0);
        place.run(&["set", "old", "second value"]).expect(0);
        place.run(&["set", "new", "v", "--tag", "type=text", "--ttl", "2h"]).expect(0);
        let right = place.records();
        // The index is that of yesterday's backup.
        std::fs::write(&index, earlier).expect("the index");

        let before = files(&place.file("cache"));
        let told = place.compared(false, 1);
        assert_eq!(counts(&told), [3, 3, 1, 2], "`old` has an older generation, `new` none: {told}");
        assert_eq!((&told["clean"], &told["repaired"]), (&false.into(), &false.into()), "{told}");
        let people = place.run(&["check"]).expect(1).out();
        assert!(people.contains("  1 stale\n  2 untracked\n") && people.contains("--repair"), "{people}");
        let after = files(&place.file("cache"));
        let changed = |name: &&String| before.get(*name) != after.get(*name) && !name.ends_with("-shm");
        assert_eq!(before.keys().chain(after.keys()).find(changed), None, "looking changes nothing");

        let told = place.compared(true, 0);
        assert_eq!((counts(&told), &told["repaired"]), ([3, 3, 1, 2], &true.into()), "{told}");
        assert_eq!(place.records(), right);
        let told = place.compared(false, 0);
        assert_eq!((counts(&told), &told["clean"]), ([3, 3, 0, 0], &true.into()), "{told}");
        assert_eq!(place.run(&["keys", "--tag", "type=text"]).expect(0).out(), "new\n");
        assert_eq!(place.run(&["get", "old"]).expect(0).out(), "second value");
        place.run(&["get", "gone"]).expect(1);
    }
}

#[test]
fn an_index_that_is_lost_is_rebuilt_from_the_level() {
    for place in places() {
        let server = Server::start(&place, &[]);
        // Several pages.
        for number in 0..600 {
            let path = format!("/cache/k{number}?ttl=2h&tag.third={}", number % 3);
            assert_eq!(server.put(&path, &vec![b'x'; 1 + number * 4]).status, 204);
        }
        assert_eq!(server.stop().1, 0);
        let right = place.records();
        assert_eq!(right.len(), 600);
        for name in ["index.db", "index.db-wal", "index.db-shm", "index.db.lock"] {
            let _ = std::fs::remove_file(place.file("cache").join(name));
        }
        let told = place.compared(false, 1);
        assert_eq!(counts(&told), [0, 600, 0, 600], "{told}");
        assert!(!place.file("cache/index.db").exists(), "looking makes no index");
        let told = place.compared(true, 0);
        assert_eq!((counts(&told), &told["repaired"]), ([0, 600, 0, 600], &true.into()), "{told}");
        assert_eq!(place.records(), right, "sizes, deadlines and generations too");
        let told = place.compared(false, 0);
        assert_eq!((counts(&told), &told["clean"]), ([600, 600, 0, 0], &true.into()), "{told}");
        let third = place.run(&["keys", "--tag", "third=1", "--limit", "1000"]).expect(0).out();
        assert_eq!(third.lines().count(), 200);
    }
}

#[test]
fn an_index_that_is_damaged_is_told_and_set_aside_by_a_repair() {
    for place in places() {
        place.run(&["set", "k", "v"]).expect(0);
        let right = place.records();
        let index = place.file("cache/index.db");
        let garbage = b"no database at all".repeat(1_000);
        std::fs::write(&index, &garbage).expect("damage");
        let told = place.compared(false, 1);
        assert!(told["damaged"].as_str().is_some_and(|why| why.contains("not a database")), "{told}");
        assert_eq!((counts(&told)[3], std::fs::read(&index).expect("the file")), (1, garbage));
        assert!(place.run(&["check"]).expect(1).out().contains("  damaged: "));
        assert_eq!(place.compared(true, 0)["repaired"], true);
        assert_eq!(place.compared(false, 0)["clean"], true);
        assert_eq!(place.records(), right);
    }
}

#[test]
fn records_of_what_was_in_ram_when_the_process_was_killed_are_stale() {
    for place in places() {
        place.run(&["set", "below", "v"]).expect(0);
        let server = Server::start(&place, &[]);
        assert_eq!(server.get("/cache/below").status, 200);
        assert_eq!(server.put("/cache/lost", b"v").status, 204);
        // To answer, the service tells tracking everything.
        assert_eq!(server.get("/keys").json()["keys"].as_array().map(Vec::len), Some(2));
        let told = place.compared(false, 0);
        assert_eq!((counts(&told), &told["compared"]), ([0; 4], &serde_json::json!([])), "{told}");
        let people = place.run(&["check"]).expect(0).out();
        assert!(people.contains("dry not compared: ") && people.contains("has it open"), "{people}");
        drop(server);
        let told = place.compared(false, 1);
        assert_eq!(counts(&told)[1..], [1, 1 + stale_of_promotion(&place), 0], "{told}");
        place.compared(true, 0);
        assert_eq!(place.compared(false, 0)["clean"], true);
        assert_eq!(place.run(&["keys"]).expect(0).out(), "below\n");
        let level = place.run(&["keys", "--json"]).expect(0).json()["keys"][0]["level"].clone();
        assert_eq!(level, "dry", "the record says again where it stands");
    }
}

/// One if the killed process told that a use had brought the entry up.
fn stale_of_promotion(place: &Place) -> u64 {
    place.records().iter().filter(|(key, _, level, ..)| key == "below" && *level == 0).count() as u64
}

#[test]
fn records_of_what_is_dead_are_nothing_wrong_and_go_with_a_repair() {
    for place in places() {
        place.run(&["set", "k", "v"]).expect(0);
        let dead =
            "INSERT INTO record (namespace, key, generation, level, size, created, used, deadline, hits)
                    VALUES ('', x'61', 1, 2, 1, 1, 1, 2, 0)";
        place.index().execute(dead, ()).expect("a record");
        let told = place.compared(false, 0);
        assert_eq!((&told["clean"], &told["expired"]), (&true.into(), &1.into()), "{told}");
        place.compared(true, 0);
        assert_eq!(place.compared(false, 0)["expired"], 0);
        assert_eq!(place.records().len(), 1);
    }
}

#[test]
fn a_level_that_is_not_well_is_not_compared() {
    let place = places().next().expect("a place");
    for number in 0..5 {
        place.run(&["set", &format!("k{number}"), &"value ".repeat(100)]).expect(0);
    }
    for (file, mut bytes) in files(&place.file("cache/dry")) {
        if let Some(at) = bytes.windows(6).position(|window| window == b"value ") {
            bytes[at] ^= 1;
            std::fs::write(file, bytes).expect("damage");
        }
    }
    let told = place.compared(false, 1);
    let why = &told["not_compared"][1];
    assert_eq!((&why["level"], &why["why"]), (&"dry".into(), &"it is not well itself".into()), "{told}");
    // Whole again, it is what tracking is measured by.
    let told = place.compared(true, 0);
    assert_eq!(counts(&told), [5, 4, 1, 0], "{told}");
    assert_eq!(place.compared(false, 0)["clean"], true);
}

/// Levels of a server, which need not be closed, and one that cannot say what it holds.
#[cfg(feature = "redis")]
mod on_a_server {
    use tiercache_services::{Fault, Proxy, Redis};

    use super::*;

    fn place(url: &str, cold: &str) -> Place {
        let place = Place::new();
        place.configure(&format!(
            "hot_cache: {{ backend: ram, max_size: 8MiB }}\ncold_cache: {cold}\n\
             dry_cache: {{ backend: redis, url: '{url}', connect_timeout: 500ms }}\nwrite: through\n\
             tracking: {{ backend: sqlite, path: ./cache/index.db }}\n"
        ));
        place
    }

    #[test]
    fn drift_is_found_and_repaired() {
        let Some(server) = Redis::own() else { return };
        let place = place(&server.url(), "{ backend: none }");
        for key in ["gone", "kept"] {
            place.run(&["set", key, "v"]).expect(0);
        }
        let told = place.compared(false, 0);
        assert_eq!((counts(&told), &told["clean"]), ([2, 2, 0, 0], &true.into()), "{told}");
        assert_eq!(
            (&told["compared"], &told["failed"]),
            (&serde_json::json!(["dry"]), &serde_json::json!([]))
        );
        let index = place.file("cache/index.db");
        let earlier = std::fs::read(&index).expect("the index, all of it in one file");
        place.run(&["delete", "gone"]).expect(0);
        place.run(&["set", "new", "v", "--tag", "type=text"]).expect(0);
        let right = place.records();
        std::fs::write(&index, earlier).expect("the index");

        let people = place.run(&["check"]).expect(1).out();
        assert!(people.contains("2 records, 2 entries at dry\n  1 stale\n  1 untracked\n"), "{people}");
        let told = place.compared(true, 0);
        assert_eq!((counts(&told), &told["repaired"]), ([2, 2, 1, 1], &true.into()), "{told}");
        assert_eq!(place.records(), right);
        assert!(place.run(&["check"]).expect(0).out().contains("  well\n"));
    }

    #[test]
    fn what_a_service_has_open_is_compared_all_the_same() {
        let Some(server) = Redis::own() else { return };
        let place = place(&server.url(), "{ backend: local, path: ./cache/cold, max_size: 64MiB }");
        let service = Server::start(&place, &[]);
        assert_eq!(service.put("/cache/k", b"v").status, 204);
        // To answer, the service tells tracking everything.
        assert_eq!(service.get("/keys").json()["keys"].as_array().map(Vec::len), Some(1));
        let told = place.compared(false, 0);
        assert_eq!((&told["compared"], &told["entries"]), (&serde_json::json!(["dry"]), &1.into()), "{told}");
        let names = |told: &Value| -> Vec<String> {
            let skipped = told["not_compared"].as_array().expect("levels").iter();
            skipped.map(|level| level["level"].as_str().expect("a name").to_owned()).collect()
        };
        assert_eq!(names(&told), ["hot", "cold"]);
        assert_eq!(service.stop().1, 0);
    }

    #[test]
    fn what_a_server_has_yet_to_remove_is_no_drift() {
        for cold in [
            "{ backend: local, path: ./cache/cold, max_size: 64MiB }",
            "{ backend: sqlite, path: ./cache/cold, max_size: 64MiB }",
        ] {
            let Some(server) = Redis::own() else { return };
            let way = Proxy::to(server.address());
            let place = place(&format!("redis://{}/0", way.address()), cold);
            let service = Server::start(&place, &[]);
            for path in ["/cache/kept", "/cache/gone", "/cache/tagged?tag.type=text"] {
                assert_eq!(service.put(path, b"v").status, 204);
            }
            way.set(Fault::Refuse);
            // Noted at the level on disk, for when the server is back.
            for path in ["/cache/gone", "/cache?tag.type=text"] {
                service.ask("DELETE", path, &[], b"");
            }
            // To answer, the service tells tracking everything.
            assert_eq!(service.get("/keys").json()["keys"].as_array().map(Vec::len), Some(1));
            drop(service);
            way.set(Fault::Pass);
            // What was in RAM is stale, and nothing untracked.
            let told = place.compared(true, 0);
            assert_eq!((&told["entries"], &told["untracked"]), (&1.into(), &0.into()), "{told}");
            let told = place.compared(false, 0);
            assert_eq!((counts(&told), &told["clean"]), ([1, 1, 0, 0], &true.into()), "{told}");
        }
    }

    #[test]
    fn a_server_that_is_away_is_an_error_with_its_section_and_other_levels_are_told_of() {
        let Some(server) = Redis::own() else { return };
        let place = place(&server.url(), "{ backend: local, path: ./cache/cold, max_size: 64MiB }");
        place.run(&["set", "k", "v"]).expect(0);
        server.kill();
        let ran = place.run(&["check"]).expect(3);
        let (out, err) = (ran.out(), ran.err());
        assert!(out.contains("cold, ./cache/cold: ") && out.contains(" entries at hot, cold\n"), "{out}");
        assert!(out.contains("  dry failed: "), "{out}");
        assert!(err.starts_with("error: tier.yaml: dry_cache: ") && err.contains(server.address()), "{err}");
        let lines = place.run(&["check", "--json"]).expect(3).lines();
        let told = lines.iter().find(|line| line["tracking"] == "sqlite").expect("a line about tracking");
        assert_eq!(told["failed"][0]["level"], "dry", "{told}");
        let error = lines.last().expect("a line")["error"].as_str().expect("an error");
        assert!(error.contains("dry_cache"), "{error}");
    }

    #[cfg(feature = "memcached")]
    #[test]
    fn of_memcached_it_is_said_that_it_cannot_list() {
        let place = Place::new();
        place.configure(
            "hot_cache: { backend: ram, max_size: 8MiB }\ncold_cache: { backend: none }\n\
             dry_cache: { backend: memcached, servers: ['127.0.0.1:1'] }\n\
             tracking: { backend: sqlite, path: ./cache/index.db }\n",
        );
        let why = "memcached cannot list what it holds";
        let told = place.compared(false, 0);
        let skipped = told["not_compared"].as_array().expect("levels");
        assert!(skipped.iter().any(|level| level["level"] == "dry" && level["why"] == why), "{told}");
        let people = place.run(&["check"]).expect(0).out();
        assert!(people.contains(&format!("  dry not compared: {why}\n")), "{people}");
    }

    #[test]
    fn where_nothing_outlives_a_process_there_is_nothing_to_check() {
        let place = Place::new();
        let above = "hot_cache: { backend: ram }\ncold_cache: { backend: none }\n";
        for below in [
            "dry_cache: { backend: none }\ntracking: { backend: sqlite, path: ./index.db }\n",
            "dry_cache: { backend: redis, url: 'redis://127.0.0.1:1' }\ntracking: { backend: memory }\n",
        ] {
            place.configure(&format!("{above}{below}"));
            assert!(place.run(&["check"]).expect(2).err().contains("nothing to check"));
        }
    }
}
