//! The SDK's clients, and what their errors mean.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Region, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tiercache_core::{Error, Result};

use crate::S3Config;

/// The backend's name in YAML, logs and errors.
pub(crate) const NAME: &str = "s3";

/// The SDK's defaults as of this release, whatever later ones make of them.
fn behavior() -> BehaviorVersion {
    BehaviorVersion::v2026_01_12()
}

/// One client that tries again once, and one that sends everything once at most: what is sent once can arrive late
/// only once. They share their connections.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) again: Client,
    pub(crate) once: Client,
}

impl Clients {
    pub(crate) async fn of(config: &S3Config) -> Result<Self> {
        let https = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
        let http = match &config.ca_file {
            None => https.build_https(),
            Some(path) => https.tls_context(trusting(path).await?).build_https(),
        };
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(config.connect_timeout)
            .operation_timeout(config.timeout)
            .build();
        let retry = RetryConfig::standard()
            .with_max_attempts(2)
            .with_initial_backoff(Duration::from_millis(20))
            .with_max_backoff(Duration::from_millis(100));

        let given = config.access_key.as_ref().zip(config.secret_key.as_ref()).map(|(key, secret)| {
            let token = config.session_token.as_ref().map(|token| token.reveal().to_owned());
            Credentials::new(key.reveal(), secret.reveal(), token, None, "configuration")
        });
        let mut region = config.region.clone().map(Region::new);
        if region.is_none() && config.endpoint_url.is_some() {
            region = Some(Region::from_static("us-east-1"));
        }
        let credentials = match given {
            Some(given) if region.is_some() => SharedCredentialsProvider::new(given),
            given => {
                let elsewhere = match &config.ca_file {
                    None => http.clone(),
                    Some(_) => aws_smithy_http_client::Builder::new()
                        .tls_provider(Provider::Rustls(CryptoMode::Ring))
                        .build_https(),
                };
                let mut loader = aws_config::defaults(behavior())
                    .http_client(elsewhere)
                    .timeout_config(timeouts.clone())
                    .retry_config(retry.clone());
                if let Some(region) = region.clone() {
                    loader = loader.region(region);
                }
                let loaded = loader.load().await;
                region = loaded.region().cloned().or(region);
                match given {
                    Some(given) => SharedCredentialsProvider::new(given),
                    None => from_environment(&loaded).await?,
                }
            }
        };
        let mut builder = aws_sdk_s3::Config::builder()
            .behavior_version(behavior())
            .http_client(http)
            .credentials_provider(credentials)
            .region(region.unwrap_or(Region::from_static("us-east-1")))
            .force_path_style(config.force_path_style.unwrap_or(config.endpoint_url.is_some()))
            // Envelopes have a checksum of their own, and not every vendor knows these.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // Every request has a timeout of its own, its body included.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(timeouts);
        if let Some(url) = &config.endpoint_url {
            builder = builder.endpoint_url(url.reveal());
        }
        let once = builder.clone().retry_config(RetryConfig::disabled()).build();
        let again = builder.retry_config(retry).build();
        Ok(Self { again: Client::from_conf(again), once: Client::from_conf(once) })
    }
}

/// Trust in the authorities of a file alone. The SDK takes any bytes and panics when it connects, so they are looked at
/// here.
async fn trusting(path: &Path) -> Result<TlsContext> {
    let shown = path.display();
    let wrong = |why: String| Error::Config(format!("ca_file: {shown}: {why}"));
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
    let pem = read
        .map_err(|_| Error::Panicked { what: "reading ca_file" })?
        .map_err(|error| wrong(error.to_string()))?;
    let mut authorities = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| wrong(format!("is no PEM file: {error}")))?;
        authorities
            .add(certificate)
            .map_err(|error| wrong(format!("has a certificate that cannot be used: {error}")))?;
    }
    if authorities.is_empty() {
        return Err(wrong("has no certificate in it".into()));
    }
    TlsContext::builder()
        .with_trust_store(TrustStore::empty().with_pem_certificate(pem))
        .build()
        .map_err(|error| wrong(Chain(&error).to_string()))
}

/// Credentials from the environment, the profile or the machine's role; asked for once, so that their absence is
/// told of here.
async fn from_environment(loaded: &aws_config::SdkConfig) -> Result<SharedCredentialsProvider> {
    let none = "s3: no credentials: give `access_key` and `secret_key`, set AWS_ACCESS_KEY_ID and \
                AWS_SECRET_ACCESS_KEY, or have a profile or role that gives some";
    let provider = loaded.credentials_provider().ok_or_else(|| Error::Refused(none.into()))?;
    match provider.provide_credentials().await {
        Ok(_) => Ok(provider),
        Err(error) => Err(Error::Refused(format!("{none} ({})", Chain(&error)))),
    }
}

/// Why a request did not do what it should.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) kind: Kind,
    /// S3's word for it.
    pub(crate) code: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// There is no such object.
    Absent,
    /// Another write came first.
    Conflict,
    /// The vendor does not know the request, or an option of it.
    Unknown,
    /// Who asks may not.
    Denied,
    /// It was refused for another reason: nothing happened.
    Refused,
    /// It may have happened, or may happen yet.
    Open,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Failure {
    pub(crate) fn of<E>(op: &'static str, error: SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let SdkError::ServiceError(said) = error else {
            let kind = match &error {
                SdkError::ConstructionFailure(_) => Kind::Refused,
                _ => Kind::Open,
            };
            // The response, which may repeat what was sent, is not kept.
            let source = error.into_source().unwrap_or_else(|_| "no answer that could be read".into());
            return Self { error: Error::unavailable(NAME, op, source), kind, code: None };
        };
        let status = said.raw().status().as_u16();
        let error = said.into_err();
        let code = error.meta().code().map(str::to_owned);
        let kind = match (status, code.as_deref()) {
            (404, None | Some("NoSuchKey" | "NotFound" | "NoSuchUpload")) => Kind::Absent,
            (409, Some("ConditionalRequestConflict")) | (412, _) => Kind::Conflict,
            (501, _) | (_, Some("NotImplemented")) => Kind::Unknown,
            (401 | 403, _) => Kind::Denied,
            (400..=499, _) | (503, Some("SlowDown")) => Kind::Refused,
            _ => Kind::Open,
        };
        let source = Said { status, code: code.clone(), source: Box::new(error) };
        Self { error: Error::unavailable(NAME, op, source), kind, code }
    }

    /// A body that broke off.
    pub(crate) fn torn(op: &'static str, source: impl Into<tiercache_core::BoxError>) -> Self {
        Self { error: Error::unavailable(NAME, op, source), kind: Kind::Open, code: None }
    }

    pub(crate) fn late(op: &'static str, after: Duration) -> Self {
        Self { error: Error::TimedOut { backend: NAME, op, after }, kind: Kind::Open, code: None }
    }

    /// What a request that failed when the level was opened says to people.
    pub(crate) fn when_opening(self, config: &S3Config) -> Error {
        let code = self.code.as_deref().unwrap_or("no reason given");
        let place = config.place();
        match self.kind {
            Kind::Denied => Error::Refused(format!(
                "s3: {place}: access denied ({code}), see `access_key` and `secret_key`"
            )),
            // No waiting makes it another.
            _ if let Some(why) = rejected(&self.error) => Error::Refused(format!(
                "s3: {place}: the service's certificate is not trusted ({why}), see `ca_file`"
            )),
            _ if code == "NoSuchBucket" => Error::Refused(format!("s3: {place} does not exist")),
            _ => Error::unavailable(NAME, "open", Place { place, reason: Chain(&self.error).to_string() }),
        }
    }
}

/// What is wrong with the service's certificate, if it was for that that there was no connection.
fn rejected(error: &Error) -> Option<String> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
            return Some(why.to_string());
        }
        // An I/O error does not count what it carries among its sources.
        let carried = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        next = carried.map(|carried| carried as _).or(error.source());
    }
    None
}

/// An answer that says no.
#[derive(Debug)]
struct Said {
    status: u16,
    code: Option<String>,
    source: Box<dyn StdError + Send + Sync>,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.code.as_deref().unwrap_or("no reason given"), self.status)
    }
}

impl StdError for Said {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.source)
    }
}

#[derive(Debug)]
struct Place {
    place: String,
    reason: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

impl StdError for Place {}

/// An error and what lies behind it, in one line.
struct Chain<'a>(&'a dyn StdError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
