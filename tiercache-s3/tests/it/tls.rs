//! A service with a certificate, and who is trusted to have signed it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Fake, SECRET, config, noise, open, put, remove, value};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tiercache_core::testing::{ManualClock, tier};
use tiercache_core::tier::{Always, Put};
use tiercache_core::{Entry, Error, Generation, Tier};
use tiercache_s3::{S3Config, S3Tier};
use tiercache_services::Certificates;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// TLS in front of a server, as long as it is held.
struct Guarded {
    url: String,
    _tasks: JoinSet<()>,
}

impl Guarded {
    async fn before(to: std::net::SocketAddr, certificates: &Certificates) -> Self {
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
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    stream.set_nodelay(true).unwrap();
                    // A client that does not trust the certificate leaves.
                    let Ok(mut client) = acceptor.accept(stream).await else { return };
                    let mut server = TcpStream::connect(to).await.unwrap();
                    server.set_nodelay(true).unwrap();
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { url, _tasks: tasks }
    }
}

struct Setup {
    fake: Fake,
    guarded: Guarded,
    certificates: Certificates,
    folder: tempfile::TempDir,
}

impl Setup {
    /// None where certificates cannot be made.
    async fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::make(folder.path())?;
        let fake = Fake::start();
        let guarded = Guarded::before(fake.address().parse().unwrap(), &certificates).await;
        Some(Self { fake, guarded, certificates, folder })
    }

    fn trusting(&self, ca: Option<&Path>) -> S3Config {
        S3Config {
            ca_file: ca.map(Path::to_owned),
            timeout: Duration::from_secs(10),
            ..config(&self.guarded.url)
        }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    }
}

async fn refused(config: S3Config) -> Error {
    S3Tier::open(config, "dry", ManualClock::new()).await.expect_err("it is not to be trusted")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_it_keeps_the_contract() {
    let Some(setup) = Setup::new().await else { return };
    let fresh = || S3Config { max_entry_size: 4 << 20, ..setup.trusting(Some(&setup.certificates.ca)) };
    tier::suite(async || Arc::new(open(fresh()).await) as Arc<dyn Tier>).await;
}

#[tokio::test]
async fn entries_small_and_in_parts_go_over_tls() {
    let Some(setup) = Setup::new().await else { return };
    let parts = S3Config {
        multipart_threshold: 5 << 20,
        part_size: 5 << 20,
        ..setup.trusting(Some(&setup.certificates.ca))
    };
    let tier = open(parts).await;
    assert_eq!(put(&tier, "small", "value", 1).await, Put::Stored);
    let hold = crate::common::hold();
    let large = Entry::new(noise(11 << 20), Generation::new(1), hold.now);
    assert_eq!(tier.put(&crate::common::key("large"), &large, hold, &Always).await.unwrap(), Put::Stored);
    assert_eq!(value(&tier, "small").await, Some("value".into()));
    assert!(tier.get(&crate::common::key("large")).await.unwrap().as_ref() == Some(&large));
    assert!(remove(&tier, "small", 2).await.is_done());
    assert_eq!(value(&tier, "small").await, None);
    tier.close().await.unwrap();
    assert!(!setup.fake.objects().is_empty(), "it was this server");
}

#[tokio::test]
async fn an_authority_among_several_is_enough() {
    let Some(setup) = Setup::new().await else { return };
    let both = [&setup.certificates.other, &setup.certificates.ca];
    let both = both.map(|file| std::fs::read_to_string(file).unwrap()).concat();
    let tier = open(setup.trusting(Some(&setup.file("both.pem", &both)))).await;
    assert_eq!(put(&tier, "k", "v", 1).await, Put::Stored);
}

#[tokio::test]
async fn a_certificate_that_nobody_trusted_has_signed_is_refused() {
    let Some(setup) = Setup::new().await else { return };
    let named = S3Config {
        endpoint_url: Some(setup.guarded.url.replace("127.0.0.1", "localhost").as_str().into()),
        ..setup.trusting(Some(&setup.certificates.ca))
    };
    for (config, why) in [
        // Those of the system have not signed it, nor has the other.
        (setup.trusting(None), "UnknownIssuer"),
        (setup.trusting(Some(&setup.certificates.other)), "UnknownIssuer"),
        // Signed, and for another name.
        (named, "not valid for"),
    ] {
        let error = refused(config.clone()).await;
        assert!(matches!(error, Error::Refused(_)) && !error.is_retryable(), "{error:?}");
        let told = format!("{error} {error:?}");
        let address = setup.guarded.url.rsplit(':').next().unwrap();
        for part in ["bucket `cache` at https://", address, "certificate is not trusted", "ca_file", why] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        assert!(!told.contains(SECRET), "{told}");
        assert!(setup.fake.objects().is_empty());
    }
}

#[tokio::test]
async fn a_file_that_has_no_authorities_is_told_of_by_its_name() {
    let Some(setup) = Setup::new().await else { return };
    let pem = std::fs::read_to_string(&setup.certificates.ca).unwrap();
    let (begin, end) = ("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n");
    for (file, why) in [
        (setup.folder.path().join("nowhere.pem"), "No such file"),
        (setup.folder.path().to_owned(), "directory"),
        (setup.file("empty.pem", ""), "has no certificate in it"),
        (setup.file("text.pem", "trust me\n"), "has no certificate in it"),
        (setup.file("cut.pem", pem.trim_end().trim_end_matches('-')), "is no PEM file"),
        (setup.file("junk.pem", &format!("{begin}!!!!\n{end}")), "is no PEM file"),
        (setup.file("not-der.pem", &format!("{begin}dHJ1c3QgbWU=\n{end}")), "cannot be used"),
        (setup.certificates.key.clone(), "has no certificate in it"),
    ] {
        let error = refused(setup.trusting(Some(&file))).await;
        let Error::Config(told) = &error else { panic!("{error:?}") };
        let begins = format!("ca_file: {}: ", file.display());
        assert!(told.starts_with(&begins) && told.contains(why), "{told}");
        assert!(!told.contains(SECRET));
    }
}
