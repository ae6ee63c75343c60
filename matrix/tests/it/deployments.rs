//! The files beside the examples, each opened as it stands, with nothing but addresses from the environment.

use std::path::Path;
use std::time::Duration;

use tiercache::{CacheManager, Config, Registry};
use tiercache_matrix::Backend;

const FILES: [&str; 6] =
    ["tier.yaml", "memcached.yaml", "redis.yaml", "s3.yaml", "mongodb.yaml", "sqlite.yaml"];

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_file_is_one_that_is_tested_and_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let found = std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").file_name());
    let mut found: Vec<String> = found.map(|name| name.to_string_lossy().into_owned()).collect();
    found.retain(|name| name.ends_with(".yaml"));
    found.sort();
    let mut tested = FILES.map(str::to_owned).to_vec();
    tested.sort();
    assert_eq!(found, tested);
    for name in FILES {
        Config::parse(&read(name), &Registry::builtin()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Opens the file with `values` for its variables' defaults.
async fn open(name: &str, values: &[(&str, &str)]) -> CacheManager {
    let mut text = read(name);
    for (default, value) in values {
        assert!(text.contains(default), "{name} says {default}");
        text = text.replace(default, value);
    }
    let config = Config::parse(&text, &Registry::builtin()).unwrap_or_else(|error| panic!("{name}: {error}"));
    config.open().await.unwrap_or_else(|error| panic!("{name}: {error}"))
}

async fn serves(cache: CacheManager, name: &str) {
    cache.set("photo", vec![1u8; 5_000]).tag("type", "thumbnail").await.expect(name);
    assert_eq!(cache.get("photo").await.expect(name).map(|value| value.len()), Some(5_000), "{name}");
    let report = cache.close(Duration::from_secs(10)).await.expect(name);
    assert!(report.is_clean() && report.written == 1, "{name}: {report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ram_and_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display().to_string();
    serves(open("tier.yaml", &[("./cache", &path)]).await, "tier.yaml").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_with_sqlite() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display().to_string();
    serves(open("sqlite.yaml", &[("${CACHE:-./cache}", &path)]).await, "sqlite.yaml").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_with_memcached() {
    let Some(backend) = Backend::start("memcached").await else { return };
    let values = [("${MEMCACHED:-127.0.0.1:11211}", &*backend.proxy().address())];
    let cache = open("memcached.yaml", &values).await;
    serves(cache, "memcached.yaml").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ram_and_redis_with_tracking() {
    let Some(backend) = Backend::start("redis").await else { return };
    let url = format!("redis://{}/0", backend.proxy().address());
    let cache = open("redis.yaml", &[("${REDIS:-redis://127.0.0.1:6379/0}", &url)]).await;
    serves(cache, "redis.yaml").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ram_a_disk_and_a_bucket() {
    let Some(backend) = Backend::start("s3").await else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display().to_string();
    let url = format!("http://{}", backend.proxy().address());
    let values = [
        ("${S3_ENDPOINT:-http://127.0.0.1:9000}", &*url),
        ("${S3_BUCKET:-app-cache}", "matrix"),
        ("${CACHE:-./cache}", &*path),
    ];
    serves(open("s3.yaml", &values).await, "s3.yaml").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ram_and_mongodb_with_tracking() {
    let Some(backend) = Backend::start("mongodb").await else { return };
    let uri = format!("mongodb://{}/?directConnection=true", backend.proxy().address());
    let cache = open("mongodb.yaml", &[("${MONGODB:-mongodb://127.0.0.1:27017}", &uri)]).await;
    serves(cache, "mongodb.yaml").await;
}
