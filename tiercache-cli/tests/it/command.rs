//! The command, run as people run it.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Place, Ran, Server, try_put};

#[test]
fn what_init_writes_is_well() {
    let place = Place::new();
    let ran = place.run(&["init", "fresh.yaml"]).expect(0);
    assert!(ran.out().contains("fresh.yaml"));
    place.run(&["config", "check", "--config", "fresh.yaml"]).expect(0);
    let again = place.run(&["init", "fresh.yaml"]).expect(2);
    assert!(again.err().contains("--force"));
    place.run(&["init", "fresh.yaml", "--force"]).expect(0);
}

#[test]
fn global_options_stand_before_or_after_the_command() {
    let place = Place::new();
    std::fs::rename(place.file("tier.yaml"), place.file("other.yaml")).expect("a move");
    for args in [
        &["--config", "other.yaml", "--json", "config", "show"][..],
        &["config", "show", "--config", "other.yaml", "--json"],
        &["config", "--json", "show", "--config", "other.yaml"],
    ] {
        assert_eq!(place.run(args).expect(0).json()["hot_cache"]["max_size"], "8MiB", "{args:?}");
    }
    let named =
        place.command(&["config", "check"]).env("TIERCACHE_CONFIG", "other.yaml").output().expect("run");
    assert!(named.status.success());
    let missing = place.run(&["config", "check"]).expect(2);
    assert!(
        missing.err().contains("tiercache init") && missing.err().contains("TIERCACHE_CONFIG"),
        "{}",
        missing.err()
    );
}

#[test]
fn a_wrong_configuration_is_told_with_its_place() {
    let place = Place::new();
    place.configure("hot_cache: { backend: rom }\ndry_cache:\n  pth: x\n");
    for command in [&["config", "check"][..], &["get", "k"], &["serve"]] {
        let ran = place.run(command).expect(2);
        assert!(
            ran.err().contains("error: tier.yaml:1:23: hot_cache.backend: unknown backend `rom`"),
            "{}",
            ran.err()
        );
        assert!(ran.err().contains("error: tier.yaml:3:3: dry_cache.pth: unknown key"), "{}", ran.err());
    }
    let json = place.run(&["config", "check", "--json"]).expect(2).json();
    assert!(json["error"].as_str().expect("an error").contains("did you mean `ram`?"));
}

#[test]
fn secrets_are_hidden_where_the_configuration_is_shown() {
    let place = Place::new();
    place.configure("s3: { bucket: b, secret_key: '${KEY}' }\n");
    for args in [&["config", "show"][..], &["config", "show", "--json"]] {
        let shown = place.command(args).env("KEY", "hunter2").output().expect("run");
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("(hidden)") && !shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn values_live_on_between_commands() {
    for backend in ["local", "sqlite"] {
        let place = Place::new();
        place
            .configure(&format!("dry_cache: {{ backend: {backend}, path: ./cache/dry, max_size: 64MiB }}\n"));
        place.run(&["set", "greeting", "hello", "--tag", "type=text", "--ttl", "2h"]).expect(0);
        assert_eq!(place.run(&["get", "greeting"]).expect(0).out(), "hello");
        let about = place.run(&["get", "greeting", "--json"]).expect(0).json();
        assert_eq!(
            (&about["value"], &about["tags"]["type"], &about["level"]),
            (&"hello".into(), &"text".into(), &"dry".into())
        );
        place.run(&["contains", "greeting"]).expect(0);
        place.run(&["touch", "greeting", "--never"]).expect(0);
        assert!(place.run(&["get", "greeting", "--json"]).expect(0).json()["time_left"].is_null());
        place.run(&["delete", "greeting"]).expect(0);
        for command in [
            &["get", "greeting"][..],
            &["contains", "greeting"],
            &["delete", "greeting"],
            &["touch", "greeting", "--never"],
        ] {
            place.run(command).expect(1);
        }
    }
}

#[test]
fn values_come_from_an_argument_a_file_or_standard_input() {
    let place = Place::new();
    let bytes: Vec<u8> = (0..=255).collect();
    std::fs::write(place.file("value.bin"), &bytes).expect("a file");
    place.run(&["set", "file", "--file", "value.bin"]).expect(0);
    place.run_with_input(&["set", "pipe"], &bytes).expect(0);
    assert_eq!(place.run(&["get", "file"]).expect(0).0.stdout, bytes);
    assert_eq!(place.run(&["get", "pipe"]).expect(0).0.stdout, bytes);
    place.run(&["get", "pipe", "--output", "out.bin"]).expect(0);
    assert_eq!(std::fs::read(place.file("out.bin")).expect("a file"), bytes);
    place.run(&["set", "k", "v", "--file", "value.bin"]).expect(2);
    place.run(&["set", "k", "--file", "nowhere.bin"]).expect(2);
    assert!(
        place.run(&["get", "file", "--json"]).expect(0).json()["value_hex"]
            .as_str()
            .expect("hex")
            .starts_with("000102")
    );
}

#[test]
fn keys_are_listed_and_cleared_by_what_they_are() {
    let place = Place::new();
    for (key, value, tag) in
        [("a/1", "x", "type=raw"), ("a/2", "xxxxx", "type=thumb"), ("b/1", "x", "type=raw")]
    {
        place.run(&["set", key, value, "--tag", tag]).expect(0);
    }
    for (filter, listed) in [
        (&["--prefix", "a/"][..], "a/1\na/2\n"),
        (&["--glob", "*/1"], "a/1\nb/1\n"),
        (&["--tag", "type=thumb"], "a/2\n"),
        (&["--min-size", "2B"], "a/2\n"),
        (&["--level", "hot"], ""),
        (&["--older-than", "1h"], ""),
        (&["--newer-than", "1h"], "a/1\na/2\nb/1\n"),
        (&["--limit", "1", "--after", "a/1"], "a/2\n"),
    ] {
        assert_eq!(place.run(&[&["keys"], filter].concat()).expect(0).out(), listed, "{filter:?}");
    }
    place.run(&["clear", "--tag", "type=thumb"]).expect(0);
    place.run(&["get", "a/2"]).expect(1);
    assert_eq!(place.run(&["clear", "--prefix", "a/", "--json"]).expect(0).json()["removed"], 1);
    place.run(&["get", "a/1"]).expect(1);
    place.run(&["get", "b/1"]).expect(0);
    place.run(&["clear", "--level", "dry"]).expect(0);
    place.run(&["get", "b/1"]).expect(1);
    place.run(&["clear", "--level", "dry", "--prefix", "a"]).expect(2);
}

#[test]
fn the_same_commands_work_on_a_running_service() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let url = server.url();
    let run = |args: &[&str]| place.run(&[&["--url", &url], args].concat());
    run(&["set", "a b/ü.png", "v", "--tag", "type=raw", "--ttl", "1h"]).expect(0);
    assert_eq!(run(&["get", "a b/ü.png"]).expect(0).out(), "v");
    let about = run(&["get", "a b/ü.png", "--json"]).expect(0).json();
    assert_eq!((&about["content_type"], &about["level"]), (&"image/png".into(), &"hot".into()));
    run(&["contains", "a b/ü.png"]).expect(0);
    run(&["touch", "a b/ü.png", "--ttl", "2h"]).expect(0);
    assert_eq!(run(&["keys", "--tag", "type=raw", "--prefix", "a b/"]).expect(0).out(), "a b/ü.png\n");
    assert!(run(&["stats", "--json"]).expect(0).json()["hot_hits"].as_u64() >= Some(2));
    run(&["prune"]).expect(0);
    run(&["delete", "a b/ü.png"]).expect(0);
    for args in
        [&["get", "a b/ü.png"][..], &["delete", "a b/ü.png"], &["contains", "x"], &["touch", "x", "--never"]]
    {
        run(args).expect(1);
    }
    run(&["set", "k", "v"]).expect(0);
    run(&["clear"]).expect(0);
    run(&["get", "k"]).expect(1);
    run(&["set", "", "v"]).expect(2);
    run(&["check"]).expect(2);
}

/// Every command that is about keys, in two namespaces beside the one without a name.
fn commands_stay_within_their_namespace(run: &dyn Fn(&[&str]) -> Ran) {
    let within = |namespace: &str, args: &[&str]| run(&[args, &["--namespace", namespace]].concat());
    let odd = "größe & co";
    run(&["set", "k", "of nobody", "--tag", "type=raw"]).expect(0);
    for namespace in ["shop", odd] {
        within(namespace, &["get", "k"]).expect(1);
        within(namespace, &["contains", "k"]).expect(1);
        within(namespace, &["touch", "k", "--never"]).expect(1);
        within(namespace, &["set", "k", namespace, "--tag", "type=raw"]).expect(0);
        within(namespace, &["set", "tmp/1", "v"]).expect(0);
        assert_eq!(within(namespace, &["get", "k"]).expect(0).out(), namespace);
        within(namespace, &["touch", "k", "--ttl", "2h"]).expect(0);
        assert_eq!(within(namespace, &["incr", "n", "--by", "2"]).expect(0).out(), "2\n");
        assert_eq!(within(namespace, &["decr", "n"]).expect(0).out(), "1\n");
        assert_eq!(within(namespace, &["counter", "n"]).expect(0).out(), "1\n");
    }
    run(&["counter", "n"]).expect(1);
    assert_eq!(run(&["keys"]).expect(0).out(), "k\n");
    assert_eq!(within("shop", &["keys"]).expect(0).out(), "k\ntmp/1\n");
    assert_eq!(within("shop", &["keys", "--after", "k"]).expect(0).out(), "tmp/1\n");
    assert_eq!(within("none", &["keys"]).expect(0).out(), "");

    // A prefix, a tag, a level and all of it.
    within("shop", &["clear", "--prefix", "tmp/"]).expect(0);
    assert_eq!(within("shop", &["keys"]).expect(0).out(), "k\n");
    within("shop", &["clear", "--tag", "type=raw"]).expect(0);
    within("shop", &["get", "k"]).expect(1);
    within("shop", &["set", "k", "again"]).expect(0);
    within("shop", &["clear", "--level", "dry"]).expect(0);
    within("shop", &["clear", "--level", "hot"]).expect(0);
    within("shop", &["get", "k"]).expect(1);
    within("shop", &["set", "k", "again"]).expect(0);
    within("shop", &["clear"]).expect(0);
    within("shop", &["get", "k"]).expect(1);
    within("shop", &["counter", "n"]).expect(1);
    assert_eq!(within(odd, &["keys"]).expect(0).out(), "k\ntmp/1\n");
    assert_eq!(within(odd, &["counter", "n"]).expect(0).out(), "1\n");
    within(odd, &["counter", "n", "--reset"]).expect(0);
    within(odd, &["delete", "k", "tmp/1"]).expect(0);
    assert_eq!(run(&["get", "k"]).expect(0).out(), "of nobody");
    for wrong in ["", &"n".repeat(256)] {
        assert!(within(wrong, &["get", "k"]).expect(2).err().contains("namespace"), "{wrong}");
    }
}

#[test]
fn commands_stay_within_their_namespace_here() {
    let place = Place::new();
    place.configure(
        "hot_cache: { backend: ram, max_size: 8MiB }\ncold_cache: { backend: none }\n\
         dry_cache: { backend: sqlite, path: ./cache/dry, max_size: 64MiB }\ncounters: dry\n\
         tracking: { backend: sqlite, path: ./cache/index.db }\n",
    );
    commands_stay_within_their_namespace(&|args| place.run(args));
}

#[test]
fn commands_stay_within_their_namespace_at_a_service() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let url = server.url();
    commands_stay_within_their_namespace(&|args| place.run(&[&["--url", &url], args].concat()));
}

#[test]
fn exit_codes_tell_wrong_use_from_a_backend_that_failed() {
    let place = Place::new();
    for args in [
        &["frobnicate"][..],
        &[],
        &["set"],
        &["touch", "k"],
        &["set", "k", "v", "--ttl", "soon"],
        &["set", "k", "v", "--ttl", "0s"],
        &["set", "k", "v", "--tag", "novalue"],
        &["keys", "--level", "warm"],
        &["--url", "ftp://x", "stats"],
        &["--url", "http://a/b", "stats"],
        &["--url", "http://a", "--config", "b", "stats"],
        &["set", "", "v"],
    ] {
        place.run(args).expect(2);
    }
    // Nobody listens on the discard port of this machine.
    place.run(&["--url", "http://127.0.0.1:9", "stats"]).expect(3);
}

#[test]
fn whoever_stops_listening_takes_nothing_along() {
    let place = Place::new();
    let deaf = |args: &[&str]| {
        let mut child = place.command(args).stdout(Stdio::piped()).spawn().expect("the command");
        drop(child.stdout.take());
        child.wait().expect("its end").code()
    };
    assert_eq!(deaf(&["set", "k", "v", "--json"]), Some(0));
    assert_eq!(deaf(&["keys"]), Some(0));
    assert_eq!(place.run(&["get", "k"]).expect(0).out(), "v");
    let full = std::fs::File::options().write(true).open("/dev/full").expect("a device");
    let mut command = place.command(&["set", "other", "v", "--json"]);
    let ran = Ran(command.stdout(full).stderr(Stdio::piped()).output().expect("the command")).expect(3);
    assert!(ran.err().starts_with("error: standard output: "), "{}", ran.err());
    assert_eq!(place.run(&["get", "other"]).expect(0).out(), "v", "it was done all the same");
}

#[test]
fn an_address_where_no_cache_is_served_is_a_failure() {
    let place = Place::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (mut reader, mut writer) = (std::io::BufReader::new(&stream), &stream);
            // The head, so that nothing is reset that is still on its way.
            let head = std::io::BufRead::lines(&mut reader).map_while(Result::ok);
            head.take_while(|line| !line.is_empty()).for_each(drop);
            let _ =
                writer.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    for command in [
        &["get", "k"][..],
        &["set", "k", "v"],
        &["delete", "k"],
        &["touch", "k", "--ttl", "1h"],
        &["contains", "k"],
        &["counter", "k"],
        &["keys"],
        &["stats"],
        &["prune"],
        &["clear"],
    ] {
        let ran = place.run(&[command, &["--url", &url]].concat()).expect(3);
        assert!(ran.err().contains("is it `tiercache serve`?"), "{command:?}: {}", ran.err());
    }
    assert!(place.run(&["clear", "--prefix", ""]).expect(2).err().contains("--prefix"));
}

#[test]
fn an_orderly_stop_keeps_everything_and_says_how_much() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    for number in 0..100 {
        assert_eq!(
            server.put(&format!("/cache/k{number}"), format!("value {number}").as_bytes()).status,
            204
        );
    }
    let (said, code) = server.stop();
    assert_eq!((said["dropped"].as_u64(), code), (Some(0), 0), "{said}");
    assert_eq!(said["written"].as_u64(), Some(100), "{said}");
    let server = Server::start(&place, &[]);
    for number in 0..100 {
        let answer = server.get(&format!("/cache/k{number}"));
        assert_eq!(answer.text(), format!("value {number}"));
        assert_eq!(answer.header("cache-status"), "tiercache; hit; detail=dry");
    }
}

#[test]
fn whatever_was_answered_before_the_end_is_there_after_it() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let address = server.address.clone();
            std::thread::spawn(move || {
                // Until the service does not answer any more.
                let put = |number: &u32| {
                    let value = format!("value {writer} {number}").repeat(200);
                    try_put(&address, &format!("/cache/w{writer}/{number}"), value.as_bytes())
                };
                (0..100_000).take_while(put).count()
            })
        })
        .collect();
    while server.get("/stats").json()["sets"].as_u64() < Some(200) {}
    let (said, code) = server.stop();
    assert_eq!((said["dropped"].as_u64(), code), (Some(0), 0), "{said}");
    let answered: Vec<usize> = writers.into_iter().map(|writer| writer.join().expect("a writer")).collect();
    assert!(answered.iter().sum::<usize>() >= 200, "{answered:?}");
    let server = Server::start(&place, &[]);
    for (writer, answered) in answered.into_iter().enumerate() {
        for number in 0..answered {
            let found = server.get(&format!("/cache/w{writer}/{number}"));
            assert_eq!(found.text(), format!("value {writer} {number}").repeat(200));
        }
    }
}

#[test]
fn a_second_process_is_told_who_owns_the_folder_and_what_to_do() {
    let place = Place::new();
    let _server = Server::start(&place, &[]);
    let ran = place.run(&["get", "k"]).expect(3);
    assert!(ran.err().contains("dry_cache") && ran.err().contains("--url"), "{}", ran.err());
}

#[test]
fn check_finds_a_healthy_cache_well() {
    let place = Place::new();
    place.run(&["set", "k", "v"]).expect(0);
    place.run(&["check"]).expect(0);
    place.run(&["check", "--repair"]).expect(0);
    assert_eq!(place.run(&["get", "k"]).expect(0).out(), "v");
}

#[test]
fn check_finds_what_is_damaged_and_repair_puts_it_right() {
    let place = Place::new();
    for number in 0..20 {
        place.run(&["set", &format!("k{number}"), &"value ".repeat(100)]).expect(0);
    }
    let segments = std::fs::read_dir(place.file("cache/dry")).expect("the folder").flatten();
    let segment = segments.map(|entry| entry.path()).max_by_key(|path| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(6).filter(|window| window == b"value ").count()
    });
    let segment = segment.expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("a segment");
    let at = bytes.windows(6).position(|window| window == b"value ").expect("a value");
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).expect("damage");
    let found = place.run(&["check", "--json"]).expect(1).lines().remove(0);
    assert_eq!((&found["clean"], &found["damaged"]), (&false.into(), &1.into()), "{found}");
    assert!(place.run(&["check"]).expect(1).out().contains("--repair"));
    assert_eq!(place.run(&["check", "--repair", "--json"]).expect(0).lines()[0]["repaired"], true);
    assert_eq!(place.run(&["check", "--json"]).expect(0).lines()[0]["clean"], true);
    let left = (0..20).filter(|number| place.run(&["get", &format!("k{number}")]).code() == 0).count();
    assert_eq!(left, 19);
}

#[test]
fn a_level_in_sqlite_is_shared_checked_and_repaired() {
    let place = Place::new();
    place.configure(
        "dry_cache: { backend: sqlite, path: ./cache/shared, max_size: 16MiB, inline_max: 1KiB }\n",
    );
    place.run(&["set", "k", "v"]).expect(0);
    place.run(&["set", "large", &"value ".repeat(1_000)]).expect(0);
    let found = place.run(&["check", "--json"]).expect(0).lines().remove(0);
    assert_eq!(
        (&found["clean"], &found["entries"], &found["files"]),
        (&true.into(), &2.into(), &1.into()),
        "{found}"
    );
    let stats = place.run(&["stats", "--json"]).expect(0).json();
    assert_eq!(stats["levels"][2]["entries"], 2, "{stats}");
    let _server = Server::start(&place, &[]);
    assert_eq!(place.run(&["get", "k"]).expect(0).out(), "v", "beside the process that has it open");
    let folders = std::fs::read_dir(place.file("cache/shared")).expect("the folder").flatten();
    let files =
        folders.filter(|entry| entry.path().is_dir()).flat_map(|entry| std::fs::read_dir(entry.path()));
    let file = files.flatten().flatten().next().expect("a file of a large value");
    std::fs::remove_file(file.path()).expect("damage");
    assert_eq!(place.run(&["check", "--json"]).expect(1).lines()[0]["dangling"], 1);
    assert_eq!(place.run(&["check", "--repair", "--json"]).expect(0).lines()[0]["repaired"], true);
    place.run(&["check"]).expect(0);
    place.run(&["get", "large"]).expect(1);
}

#[test]
fn check_tells_what_a_transaction_left_unfinished_and_repair_sees_it_through() {
    let place = Place::new();
    place.configure("dry_cache: { backend: sqlite, path: ./cache/shared, max_size: 16MiB, shards: 2 }\n");
    for number in 0..8 {
        place.run(&["set", &format!("k{number}"), "v"]).expect(0);
    }
    assert!(place.run(&["check"]).expect(0).out().ends_with("well\n"));
    let database = |shard: u32| {
        let file = place.file("cache/shared").join(format!("shard-{shard}.db"));
        rusqlite::Connection::open(file).expect("the database of a shard")
    };
    // What a process leaves that is killed when the first shard has committed: the removal of a key in the second.
    let key: Vec<u8> =
        database(1).query_row("SELECT key FROM entry LIMIT 1", (), |row| row.get(0)).expect("a key");
    let identity: i64 =
        database(1).query_row("SELECT identity FROM state", (), |row| row.get(0)).expect("a state");
    let insert =
        "INSERT INTO redo (number, shard, identity, place, namespace, key, generation, checksum, deadline,
        stay, until, used, size, length) VALUES (1, 1, ?1, 0, '', ?2, 1 << 40, 0, 0, 0, 0, 0, 0, 0)";
    database(0).execute(insert, (identity, &key)).expect("a transaction that is not finished");
    let standing = || -> i64 {
        let count = "SELECT count(*) FROM entry WHERE key = ?1";
        database(1).query_row(count, [&key], |row| row.get(0)).expect("the entries")
    };

    let found = place.run(&["check", "--json"]).expect(0).lines().remove(0);
    assert_eq!((&found["clean"], &found["unfinished"]), (&true.into(), &1.into()), "{found}");
    let told = place.run(&["check"]).expect(0).out();
    assert!(told.contains("  1 unfinished\n") && told.contains("--repair"), "{told}");
    assert_eq!(standing(), 1, "looking changes nothing");
    let repaired = place.run(&["check", "--repair", "--json"]).expect(0).lines().remove(0);
    assert_eq!((&repaired["unfinished"], &repaired["repaired"]), (&1.into(), &true.into()), "{repaired}");
    assert_eq!(standing(), 0);
    assert_eq!(place.run(&["check", "--json"]).expect(0).lines()[0]["unfinished"], 0);
    let name = String::from_utf8(key.clone()).expect("text");
    place.run(&["get", &name]).expect(1);
}

#[test]
fn statistics_and_a_check_do_not_need_the_cache_to_themselves() {
    let place = Place::new();
    assert_eq!(place.run(&["stats", "--json"]).expect(0).json()["dry_size_bytes"], 0);
    assert!(!place.file("cache").exists(), "looking leaves nothing behind");
    place.run(&["set", "k", "v"]).expect(0);
    let stats = place.run(&["stats", "--json"]).expect(0).json();
    assert_eq!((&stats["sets"], &stats["owner"]), (&1.into(), &serde_json::Value::Null));
    assert_eq!(stats["levels"][2]["entries"], 1);
    let server = Server::start(&place, &[]);
    let stats = place.run(&["stats", "--json"]).expect(0).json();
    assert_eq!(stats["owner"], server.pid());
    assert!(place.run(&["stats"]).expect(0).out().contains("--url"));
    place.run(&["check"]).expect(0);
    let refused = place.run(&["check", "--repair"]).expect(3);
    assert!(refused.err().contains("process"), "{}", refused.err());
}

#[test]
fn the_smallest_configuration_works_or_names_the_folder_that_cannot_be_made() {
    let place = Place::new();
    place.configure("write: back\n");
    let run = |home: &str| {
        let mut command = place.command(&["set", "k", "v"]);
        command.env("HOME", home).env_remove("XDG_CACHE_HOME").output().expect("the command")
    };
    let home = place.file("home");
    std::fs::create_dir(&home).expect("a home");
    assert!(run(&home.display().to_string()).status.success());
    assert!(home.join(".cache/tiercache").is_dir());
    let ran = run("/proc/nowhere");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(3), "{said}");
    assert!(said.contains("dry_cache") && said.contains("/proc/nowhere"), "{said}");
}

#[test]
fn a_sender_that_never_ends_does_not_hold_up_the_end() {
    let place = Place::new();
    let server = Server::start(&place, &["--drain", "2s"]);
    server.put("/cache/k", b"v");
    let mut slow = server.connect();
    let head =
        format!("PUT /cache/slow HTTP/1.1\r\nHost: {}\r\nContent-Length: 100\r\n\r\nhalf", server.address);
    slow.write_all(head.as_bytes()).expect("half a request");
    let began = Instant::now();
    let (said, code) = server.stop();
    assert_eq!((said["written"].as_u64(), code), (Some(1), 0), "{said}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn counters_are_added_to_here_and_over_http() {
    let place = Place::new();
    place.configure("hot_cache: { backend: ram, max_size: 8MiB }\ndry_cache: { backend: sqlite, path: ./dry, max_size: 64MiB }\n");
    assert_eq!(place.run(&["incr", "visits"]).expect(0).out().trim(), "1");
    assert_eq!(place.run(&["incr", "visits", "--by", "41"]).expect(0).out().trim(), "42");
    assert_eq!(place.run(&["decr", "visits", "--by", "50"]).expect(0).out().trim(), "-8");
    assert_eq!(place.run(&["decr", "quota", "--start", "100", "--ttl", "1h"]).expect(0).out().trim(), "99");
    let server = Server::start(&place, &[]);
    let url = format!("http://{}", server.address);
    let over = |args: &[&str]| place.run(&[&["--url", &url], args].concat());
    assert_eq!(over(&["incr", "visits", "--by", "10"]).expect(0).out().trim(), "2");
    assert_eq!(over(&["counter", "visits", "--json"]).expect(0).json()["counter"], 2);
    over(&["counter", "visits", "--reset"]).expect(0);
    over(&["counter", "visits"]).expect(1);
    assert_eq!(over(&["counter", "quota"]).expect(0).out().trim(), "99");
    drop(server);
    place.run(&["counter", "visits"]).expect(1);
    place.run(&["counter", "quota", "--reset"]).expect(0);
    place.run(&["counter", "quota", "--reset"]).expect(1);
}
