//! S3 in this process, s3s over a folder, plain or behind TLS. It verifies signatures.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tiercache_services::Certificates;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

const BUCKET: &str = "cache";
const ACCESS: &str = "AKIDTESTTESTTESTTEST";
pub(crate) const SECRET: &str = "sentinel/5ecret+key";

/// A running server; it ends with this value.
pub(crate) struct S3 {
    url: String,
    dir: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl S3 {
    pub(crate) async fn start() -> Self {
        Self::run(None).await
    }

    /// One that shows a certificate.
    pub(crate) async fn guarded(certificates: &Certificates) -> Self {
        let chain =
            CertificateDer::pem_file_iter(&certificates.server).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&certificates.key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Self::run(Some(TlsAcceptor::from(Arc::new(server)))).await
    }

    async fn run(tls: Option<TlsAcceptor>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(dir.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS, SECRET));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                let (service, tls) = (service.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(socket, service).await,
                        // A client that does not trust the certificate leaves.
                        Some(tls) => {
                            if let Ok(socket) = tls.accept(socket).await {
                                serve(socket, service).await;
                            }
                        }
                    }
                });
            }
        });
        Self { url, dir, _tasks: tasks }
    }

    /// Its level's section, with `more` keys.
    pub(crate) fn section(&self, more: &str) -> String {
        format!(
            "{{ backend: s3, endpoint_url: '{}', bucket: {BUCKET}, region: us-east-1, access_key: {ACCESS}, \
             secret_key: '{SECRET}'{more} }}",
            self.url
        )
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Every file of the bucket, and what is in it.
    pub(crate) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        collect(&self.dir.path().join(BUCKET), &mut files);
        files.sort();
        files
    }
}

fn collect(folder: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => collect(&path, files),
            false => files.push((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
}

async fn serve(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: S3Service) {
    // A client that goes away is none of our business.
    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
}
