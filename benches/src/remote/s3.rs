//! S3 beside its SDK, against two servers: s3s over a folder in this process, and moto in its own.

use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
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
        let raw_put = async |client: usize, number: usize| {
            let name = format!("raw/{size}/{}", number % writer.keys.len());
            if client > 0 {
                return put_parts(&raw, &name, &writer.value).await;
            }
            let put = raw.put_object().bucket(BUCKET).key(name).body(writer.value.clone().into());
            put.send().await.expect("PutObject");
        };
        // In parts as the level puts what is so large, and the SDK by itself nothing.
        let clients = ["aws-sdk-s3", "aws-sdk-s3-parts"];
        let in_parts = size as u64 > S3Config::default().multipart_threshold;
        bench.compare_with("put", &clients[..1 + usize::from(in_parts)], put, raw_put).await;
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

/// Uploads in parts of the level's size, as many at once.
async fn put_parts(client: &Client, name: &str, value: &Bytes) {
    const AT_ONCE: usize = 4;
    let begun = client.create_multipart_upload().bucket(BUCKET).key(name).send().await;
    let begun = begun.expect("CreateMultipartUpload");
    let id = begun.upload_id().expect("an id");
    let size = S3Config::default().part_size as usize;
    let part = |(number, from): (i32, usize)| {
        let part = value.slice(from..value.len().min(from + size));
        let request = client.upload_part().bucket(BUCKET).key(name).upload_id(id).part_number(number);
        let request = request.body(part.into()).customize().disable_payload_signing();
        async move {
            let sent = request.send().await.expect("UploadPart");
            CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag().map(str::to_owned)).build()
        }
    };
    let parts = stream::iter((1..).zip((0..value.len()).step_by(size))).map(part).buffered(AT_ONCE);
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.collect().await)).build();
    let complete = client.complete_multipart_upload().bucket(BUCKET).key(name).upload_id(id);
    complete.multipart_upload(parts).send().await.expect("CompleteMultipartUpload");
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
