use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tiercache::tracking::Query;
use tiercache::transfer::{Export, Import, Report, TransferError, format};
use tiercache_core::testing::{Fault, FaultTier, Hooked, Hooks, ManualClock, MemoryTier, Op, When};
use tiercache_core::tier::Resident;
use tiercache_core::{CacheManager, Codec, EncryptionConfig, Error, Level, Packing, Stay};
use tiercache_tests::rig::{builder, disk, get, ram};
use tiercache_tracking::{MemoryConfig, MemoryTracking};

use super::{cache, cold_cache, traveller};

async fn exported(cache: &CacheManager) -> Vec<u8> {
    let mut bytes = Vec::new();
    Export::of(cache).to_writer("memory", &mut bytes).await.unwrap();
    bytes
}

async fn imported(cache: &CacheManager, bytes: &[u8]) -> Result<Report, TransferError> {
    Import::into(cache).from_reader("memory", &mut &bytes[..]).await
}

fn adds_up(report: &Report) {
    let unreadable: u64 = report.unreadable.values().sum();
    assert_eq!(report.read, report.stored + report.skipped() + report.failed + unreadable, "{report:?}");
}

#[tokio::test]
async fn everything_of_an_entry_travels_but_its_generation() {
    let clock = ManualClock::new();
    let from = cold_cache(&clock).await;
    from.set("plain", "value").await.unwrap();
    from.set("ttl", "value").ttl(Duration::from_millis(90_123)).await.unwrap();
    from.set("never", "value").never().await.unwrap();
    let full = from.set("full", "value").tag("type", "thumbnail").tag("a", "").content_type("image/png");
    full.user("origin", "here").stay(Level::Cold, Stay::For(Duration::from_secs(7))).await.unwrap();
    from.set("pinned", "value").pin(Level::Dry).await.unwrap();
    from.set("empty", "").await.unwrap();
    from.set("large", vec![7; 3 << 20]).await.unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    from.set(&bytes[..], "value").await.unwrap();
    let tenant = from.namespace("tenant").unwrap();
    tenant.set("plain", "of a tenant").await.unwrap();
    from.set("removed", "value").await.unwrap();
    from.delete("removed").await.unwrap();

    let stream = exported(&from).await;
    // Another cache, which has counted to another number by now.
    let to = cache(&clock).await;
    for _ in 0..100 {
        to.set("other", "x").await.unwrap();
    }
    clock.advance(Duration::from_secs(5));
    let report = imported(&to, &stream).await.unwrap();
    assert_eq!((report.read, report.stored, report.skipped(), report.failed), (9, 9, 0, 0), "{report:?}");
    for key in [&b"plain"[..], b"ttl", b"never", b"full", b"pinned", b"empty", b"large", &bytes] {
        let (there, here) = (traveller(&from, key).await, traveller(&to, key).await);
        assert!(there.is_some() && there == here, "{key:?}: {there:?}, {here:?}");
    }
    assert_eq!(get(&to.namespace("tenant").unwrap(), "plain").await.unwrap(), "of a tenant");
    assert_eq!(get(&to, "removed").await, None);
    assert_eq!(get(&to, "other").await.unwrap(), "x");
    let again = imported(&to, &stream).await.unwrap();
    assert_eq!((again.read, again.present, again.stored), (9, 9, 0));
    clock.advance(Duration::from_millis(85_123));
    assert_eq!(get(&to, "ttl").await, None, "it dies when it would have died where it came from");
}

#[tokio::test]
async fn what_is_there_stays_unless_it_is_to_be_replaced() {
    let clock = ManualClock::new();
    let (from, to) = (cold_cache(&clock).await, cache(&clock).await);
    from.set("k", "theirs").await.unwrap();
    from.set("dies", "value").ttl(Duration::from_secs(10)).await.unwrap();
    let stream = exported(&from).await;
    to.set("k", "ours").await.unwrap();
    clock.advance(Duration::from_secs(10));
    let report = imported(&to, &stream).await.unwrap();
    assert_eq!((report.stored, report.present, report.expired), (0, 1, 1));
    assert_eq!(get(&to, "k").await.unwrap(), "ours");
    let report = Import::into(&to).replace(true).from_reader("memory", &mut &stream[..]).await.unwrap();
    assert_eq!((report.stored, report.present, report.expired), (1, 0, 1));
    assert_eq!(get(&to, "k").await.unwrap(), "theirs");
}

#[tokio::test]
async fn a_confined_handle_reads_and_fills_its_own_namespace_only() {
    let clock = ManualClock::new();
    let (from, to) = (cold_cache(&clock).await, cache(&clock).await);
    from.set("k", "of nobody").await.unwrap();
    from.namespace("a").unwrap().set("k", "of a").await.unwrap();
    let stream = exported(&from.namespace("a").unwrap()).await;
    let report = imported(&to.namespace("b").unwrap(), &stream).await.unwrap();
    assert_eq!(report.stored, 1);
    assert_eq!(get(&to.namespace("b").unwrap(), "k").await.unwrap(), "of a");
    assert_eq!(get(&to, "k").await, None);
    assert_eq!(get(&to.namespace("a").unwrap(), "k").await, None);
}

#[tokio::test]
async fn a_query_picks_what_is_exported() {
    let clock = ManualClock::new();
    let from =
        builder(&clock).cold(MemoryTier::persistent()).dry(MemoryTier::persistent()).build().await.unwrap();
    from.set("thumb:1", "v").tag("type", "thumb").await.unwrap();
    from.set("thumb:2", "v").pin(Level::Dry).await.unwrap();
    from.set("page:1", "v").tag("type", "page").await.unwrap();
    let count = async |query| {
        let mut stream = Vec::new();
        Export::of(&from).query(query).to_writer("memory", &mut stream).await.unwrap().entries
    };
    assert_eq!(count(Query::all()).await, 3);
    assert_eq!(count(Query { prefix: b"thumb:".to_vec(), ..Query::all() }).await, 2);
    assert_eq!(count(Query { glob: Some("*:1".into()), ..Query::all() }).await, 2);
    assert_eq!(count(Query { tags: [("type".into(), "thumb".into())].into(), ..Query::all() }).await, 1);
    assert_eq!(count(Query { level: Some(Level::Dry), ..Query::all() }).await, 1);
    assert_eq!(count(Query { level: Some(Level::Cold), ..Query::all() }).await, 2);
    assert_eq!(count(Query { namespace: Some("none".into()), ..Query::all() }).await, 0);
}

/// Whatever happens to a byte, or behind one, is noticed; nothing that was not written is ever stored.
#[tokio::test]
async fn every_flipped_byte_and_every_truncation_is_an_error_that_says_where() {
    let clock = ManualClock::new();
    let from = cold_cache(&clock).await;
    let written = [("a", "first"), ("b", "second"), ("c", "third")];
    for (key, value) in written {
        from.set(key, value).tag("t", "x").await.unwrap();
    }
    let whole = exported(&from).await;
    let as_written = async |to: &CacheManager| {
        for (key, value) in written {
            let found = to.snapshot(key).await.unwrap();
            assert!(found.is_none_or(|found| found.value == value && found.tags().unwrap()["t"] == "x"));
        }
    };
    let wrong = (0..whole.len()).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x20;
        (at, bytes)
    });
    let short = (0..whole.len()).map(|end| (end, whole[..end].to_vec()));
    let long = (0..1).map(|_| (whole.len(), [&whole[..], b"x"].concat()));
    for (at, bytes) in wrong.chain(short).chain(long) {
        let to = cold_cache(&clock).await;
        match imported(&to, &bytes).await {
            Err(TransferError::Foreign { .. }) => assert!(at < format::HEADER_BYTES, "{at}"),
            Err(TransferError::Damaged { offset, found, .. }) => {
                assert!(offset <= at as u64, "{at}: {found} at {offset}");
            }
            other => panic!("{at}: {other:?}"),
        }
        as_written(&to).await;
        if at >= format::HEADER_BYTES {
            let to = cold_cache(&clock).await;
            let skipping = Import::into(&to).skip_damaged(true).from_reader("memory", &mut &bytes[..]).await;
            let report = skipping.unwrap();
            adds_up(&report);
            as_written(&to).await;
            assert!(!report.is_complete(), "{at}: {report:?}");
            assert!(report.stored >= 2 || bytes.len() < whole.len(), "{at}: {report:?}");
        }
    }
}

#[tokio::test]
async fn damage_costs_the_record_it_is_in_and_no_other() {
    let clock = ManualClock::new();
    let from = cold_cache(&clock).await;
    for number in 0..20 {
        from.set(format!("k{number}"), vec![number; 1000]).await.unwrap();
    }
    let whole = exported(&from).await;
    let record = (whole.len() - format::HEADER_BYTES - format::FRAME_BYTES - format::TRAILER_BYTES) / 20;
    let skip = async |bytes: &[u8]| {
        let to = cold_cache(&clock).await;
        let report =
            Import::into(&to).skip_damaged(true).from_reader("memory", &mut &bytes[..]).await.unwrap();
        adds_up(&report);
        report
    };
    // In the middle of a value.
    let mut bytes = whole.clone();
    bytes[format::HEADER_BYTES + 7 * record + record / 2] ^= 1;
    let report = skip(&bytes).await;
    assert_eq!((report.stored, report.unreadable["damaged"], report.skipped_bytes), (19, 1, 0), "{report:?}");
    // A length: where the record ends is found again.
    let mut bytes = whole.clone();
    bytes[format::HEADER_BYTES + 7 * record + 5] ^= 1;
    let report = skip(&bytes).await;
    assert!((19..=20).contains(&report.stored) && report.missing == Some(1), "{report:?}");
    assert!(report.skipped_bytes >= 1000, "{report:?}");
    // Bytes that are gone, and the rest of the file.
    let cut = format::HEADER_BYTES + 7 * record + 100;
    let report = skip(&[&whole[..cut], &whole[cut + 50..]].concat()).await;
    assert!(report.stored >= 18 && !report.is_complete(), "{report:?}");
    let report = skip(&whole[..cut]).await;
    assert_eq!((report.stored, report.truncated, report.missing), (7, true, None), "{report:?}");
    assert!((90..110).contains(&report.skipped_bytes), "{report:?}");
}

#[tokio::test]
async fn an_export_in_a_value_is_never_taken_for_records() {
    let clock = ManualClock::new();
    let inner = cold_cache(&clock).await;
    inner.set("hidden", "value").await.unwrap();
    let nested = exported(&inner).await;
    let from = cold_cache(&clock).await;
    from.set("outer", nested).await.unwrap();
    let mut stream = exported(&from).await;
    stream[format::HEADER_BYTES + 5] ^= 1;
    let to = cold_cache(&clock).await;
    let report = Import::into(&to).skip_damaged(true).from_reader("memory", &mut &stream[..]).await.unwrap();
    assert_eq!((report.stored, report.missing), (0, Some(1)), "{report:?}");
    assert!(!to.contains("hidden").await.unwrap());
}

#[tokio::test]
async fn a_file_is_written_whole_or_not_at_all_and_replaced_only_when_told() {
    let clock = ManualClock::new();
    let from = cold_cache(&clock).await;
    from.set("k", "v").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.tcx");
    let names = || {
        let files = std::fs::read_dir(folder.path()).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    Export::of(&from).to_file(&file, false).await.unwrap();
    assert_eq!(names(), ["out.tcx"]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let before = std::fs::read(&file).unwrap();
    let refused = Export::of(&from).to_file(&file, false).await;
    assert!(matches!(refused, Err(TransferError::Exists(_))), "{refused:?}");
    from.set("k2", "v").await.unwrap();
    // One that fails on its way leaves what was there.
    let closed = cold_cache(&clock).await;
    closed.close(Duration::from_secs(1)).await.unwrap();
    let failed = Export::of(&closed).to_file(&file, true).await;
    assert!(matches!(failed, Err(TransferError::Cache(Error::Closed))), "{failed:?}");
    assert_eq!((names(), std::fs::read(&file).unwrap()), (vec!["out.tcx".to_owned()], before));
    Export::of(&from).to_file(&file, true).await.unwrap();
    assert_eq!(names(), ["out.tcx"]);
    let to = cold_cache(&clock).await;
    assert_eq!(Import::into(&to).from_file(&file).await.unwrap().stored, 2);
    let absent = Import::into(&to).from_file(Path::new("/nowhere/at.all")).await;
    assert!(matches!(absent, Err(TransferError::Io { .. })), "{absent:?}");
}

#[tokio::test]
async fn a_dropped_export_leaves_no_file() {
    let clock = ManualClock::new();
    let from = cold_cache(&clock).await;
    for number in 0..50 {
        from.set(format!("k{number}"), "v").await.unwrap();
    }
    for polls in 1..40 {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("out.tcx");
        let export = Export::of(&from).to_file(&file, false);
        let ended = tiercache_tests::doubles::poll_at_most(export, polls).await;
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
        match ended {
            Some(ended) => {
                ended.unwrap();
                assert_eq!(left, [file]);
            }
            // It was about to be placed, or a file was about to be made by a thread of its own.
            None => assert!(left.len() <= 1, "{left:?}"),
        }
    }
}

#[tokio::test]
async fn a_sealed_export_is_read_with_its_key_alone() {
    let clock = ManualClock::new();
    let (from, to) = (cold_cache(&clock).await, cold_cache(&clock).await);
    from.set("k", "a value nobody may read".repeat(100)).await.unwrap();
    let codec = |key: &str| {
        let key = Some(tiercache_core::Secret::from(key.to_owned()));
        let encryption = EncryptionConfig { key, ..EncryptionConfig::default() };
        Codec::new(Packing::Zstd).unwrap().with_encryption(&encryption).unwrap()
    };
    let (ours, other) =
        (codec(&format!("{}=", "A".repeat(43))), codec(&format!("{}=", "B".repeat(42) + "A")));
    let mut stream = Vec::new();
    Export::of(&from).codec(ours.clone()).to_writer("memory", &mut stream).await.unwrap();
    assert!(!stream.windows(6).any(|bytes| bytes == b"nobody"));
    for codec in [other, Codec::default()] {
        let mut input = &stream[..];
        let import = Import::into(&to).codec(codec).skip_damaged(true).from_reader("memory", &mut input);
        let report = import.await.unwrap();
        assert_eq!((report.read, report.unreadable["sealed under an unknown key"]), (1, 1), "{report:?}");
    }
    let report = Import::into(&to).codec(ours).from_reader("memory", &mut &stream[..]).await.unwrap();
    assert_eq!(report.stored, 1);
    assert_eq!(get(&to, "k").await, get(&from, "k").await);
}

#[tokio::test]
async fn what_a_level_does_not_give_is_counted_and_not_left_out_in_silence() {
    let clock = ManualClock::new();
    let store = MemoryTier::persistent();
    let faulty = std::sync::Arc::new(FaultTier::new(store));
    let from = builder(&clock).dry(faulty.clone()).build().await.unwrap();
    for key in ["a", "b"] {
        from.set(key, "v").await.unwrap();
    }
    faulty.inject(Op::Get, When::Always, Fault::FailBefore);
    let mut stream = Vec::new();
    let exported = Export::of(&from).to_writer("memory", &mut stream).await.unwrap();
    assert_eq!((exported.entries, exported.gone, exported.failed), (0, 0, 2), "{exported:?}");
    assert!(!exported.is_complete() && exported.failures.len() == 2);
}

#[tokio::test]
async fn an_export_finds_what_tracking_does_not_know_and_what_only_ram_has() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let before = builder(&clock).hot(ram()).dry(disk(folder.path(), &clock).await).build().await.unwrap();
    for number in 0..300 {
        before.set(format!("old{number}"), "v").await.unwrap();
    }
    before.close(Duration::from_secs(5)).await.unwrap();
    // The index of the next process is new.
    let tracking = std::sync::Arc::new(MemoryTracking::new(&MemoryConfig::default()));
    let dry = disk(folder.path(), &clock).await;
    let cache = builder(&clock).hot(ram()).dry(dry).tracking(tracking).build().await.unwrap();
    cache.set("new", "v").await.unwrap();
    assert_eq!(get(&cache, "old7").await.unwrap(), "v", "a copy rises, and the one below stays");
    let stream = exported(&cache).await;
    let to = cold_cache(&clock).await;
    let report = imported(&to, &stream).await.unwrap();
    assert_eq!((report.read, report.stored), (301, 301), "{report:?}");
    cache.close(Duration::from_secs(5)).await.unwrap();

    // Nor is tracking needed for what RAM has.
    let dry = disk(folder.path(), &clock).await;
    let cache = builder(&clock).hot(ram()).dry(dry).build().await.unwrap();
    assert_eq!(exported(&cache).await.len(), stream.len());
    cache.set("newer", "v").await.unwrap();
    assert_eq!(get(&cache, "old8").await.unwrap(), "v");
    let report = imported(&cold_cache(&clock).await, &exported(&cache).await).await.unwrap();
    assert_eq!((report.read, report.stored), (302, 302), "each once: {report:?}");
}

#[derive(Debug)]
struct Unlisted;

impl Hooks for Unlisted {
    fn lists(&self) -> bool {
        false
    }
}

/// That a level cannot tell what it holds is said, not left out.
#[tokio::test]
async fn an_export_without_tracking_is_refused_while_a_level_that_cannot_be_listed_has_something() {
    let clock = ManualClock::new();
    let (hot, dry) = (ram(), Hooked::opaque(MemoryTier::persistent(), Unlisted));
    let cache = builder(&clock).hot(hot.clone()).dry(dry).build().await.unwrap();
    cache.set("k", "v").await.unwrap();
    assert_eq!(imported(&cold_cache(&clock).await, &exported(&cache).await).await.unwrap().stored, 1);
    hot.drain();
    // On its way it can still be told.
    assert_eq!(imported(&cold_cache(&clock).await, &exported(&cache).await).await.unwrap().stored, 1);
    cache.settle().await.unwrap();
    let refused = Export::of(&cache).to_writer("memory", &mut Vec::new()).await;
    assert!(matches!(refused, Err(TransferError::Cache(Error::Unsupported { .. }))), "{refused:?}");
    let refused = cache.keys(Query::all()).next().await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
}

/// Through a pipe of 4 KiB, so that nothing can be gathered on the way.
#[tokio::test]
async fn a_stream_of_any_length_goes_through_a_pipe() {
    let clock = ManualClock::new();
    let (from, to) = (cold_cache(&clock).await, cold_cache(&clock).await);
    for number in 0..2_000u32 {
        from.set(format!("k{number}"), Bytes::from(vec![number as u8; 4_000])).await.unwrap();
    }
    let (mut here, mut there) = tokio::io::duplex(4 << 10);
    let export = async {
        let exported = Export::of(&from).to_writer("a pipe", &mut here).await;
        drop(here);
        exported
    };
    let (exported, report) = tokio::join!(export, Import::into(&to).from_reader("a pipe", &mut there));
    let (exported, report) = (exported.unwrap(), report.unwrap());
    assert_eq!((exported.entries, exported.bytes), (2_000, 8_000_000));
    assert_eq!((report.read, report.stored, report.bytes), (2_000, 2_000, 8_000_000));
}
