//! S3 beside its SDK, against two servers: s3s over a folder in this process, and moto in its own.

use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tiercache_core::{Clock, Secret, SystemClock, Tier};
use tiercache_s3::{S3Config, S3Tier};
use tiercache_services::Moto;
use tokio::net::TcpListener;

use super::{Bench, Writer, skipped};
use crate::Options;

const BUCKET: &str = "bench";
const ACCESS: &str = "AKIDBENCHBENCHBENCHB";
const SECRET: &str = "secret/key";

pub(super) async fn run(options: &Options) {
    if options.wants("backend", "s3-s3s") {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join(BUCKET)).expect("a bucket");
        let url = serve(FileSystem::new(dir.path()).expect("a file system"));
        measure(options, "s3-s3s", &url, &[(4 << 10, 300), (1 << 20, 60), (64 << 20, 3)]).await;
    }
    if options.wants("backend", "s3-moto") {
        let Some(server) = Moto::start() else { return skipped("s3-moto") };
        let url = server.url();
        // One that was left by another run is as good.
        let _ = client(&url).create_bucket().bucket(BUCKET).send().await;
        measure(options, "s3-moto", &url, &[(4 << 10, 40), (1 << 20, 20), (64 << 20, 2)]).await;
    }
}

async fn measure(options: &Options, backend: &'static str, url: &str, sizes: &[(usize, usize)]) {
    let clock: Arc<dyn Clock> = SystemClock::start();
    let raw = client(url);
    for &(size, calls) in sizes {
        let config = S3Config {
            bucket: BUCKET.into(),
            endpoint_url: Some(url.into()),
            prefix: format!("{size}/"),
            access_key: Some(Secret::from(ACCESS.to_owned())),
            secret_key: Some(Secret::from(SECRET.to_owned())),
            max_entry_size: 1 << 30,
            ..S3Config::default()
        };
        let tier = S3Tier::open(config, "dry", clock.clone()).await.expect("the bucket answers");
        let writer = Writer::new(if size > 1 << 20 { 2 } else { 100 }, size);
        let shown = if size < 1 << 20 { format!("{}K", size >> 10) } else { format!("{}M", size >> 20) };
        let bench = Bench { options, backend, client: "aws-sdk-s3", size: shown, calls };
        writer.fill(&tier).await;
        let put = async |number: usize| writer.put(&tier, writer.key(number)).await;
        let raw_put = async |number: usize| {
            let name = format!("raw/{size}/{}", number % writer.keys.len());
            let put = raw.put_object().bucket(BUCKET).key(name).body(writer.value.clone().into());
            put.send().await.expect("PutObject");
        };
        bench.compare("put", put, raw_put).await;
        let raw_get = async |number: usize| {
            let name = format!("raw/{size}/{}", number % writer.keys.len());
            let got = raw.get_object().bucket(BUCKET).key(name).send().await.expect("GetObject");
            assert_eq!(got.body.collect().await.expect("a body").into_bytes().len(), size);
        };
        bench.compare("get", async |number| writer.found(&tier, number).await, raw_get).await;
        if size < 1 << 20 {
            bench.batches(&tier, &writer).await;
        }
        tier.close().await.expect("it closes");
    }
}

/// Serves from a thread of its own.
fn serve(files: FileSystem) -> String {
    let (ready, listening) = std::sync::mpsc::channel();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime of one thread").block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            ready.send(listener.local_addr().expect("an address")).expect("somebody waits");
            let mut builder = S3ServiceBuilder::new(files);
            builder.set_auth(SimpleAuth::from_single(ACCESS, SECRET));
            let service = builder.build();
            while let Ok((socket, _)) = listener.accept().await {
                // A connection that is slower or goes away is measured as it is.
                let _ = socket.set_nodelay(true);
                let service = service.clone();
                tokio::spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
    };
    std::thread::spawn(run);
    format!("http://{}", listening.recv().expect("it listens"))
}

/// The SDK with the settings the level has.
fn client(url: &str) -> Client {
    use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
    let http =
        aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .credentials_provider(Credentials::new(ACCESS, SECRET, None, None, "bench"))
        .region(Region::new("us-east-1"))
        .endpoint_url(url)
        .force_path_style(true)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .build();
    Client::from_conf(config)
}
