//! The small HTTP client behind `--url`.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::keyname;
use crate::outcome::Failure;

/// How long the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service at an address.
#[derive(Debug)]
pub(crate) struct Client {
    authority: String,
    token: Option<String>,
    namespace: Option<String>,
}

pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Client {
    pub(crate) fn new(url: &str, token: Option<String>) -> Result<Self, Failure> {
        let rest = url.strip_prefix("http://").ok_or_else(|| {
            Failure::usage(format!(
                "--url: `{url}` does not begin with http://, the only way to reach the service"
            ))
        })?;
        let authority = rest.trim_end_matches('/');
        if authority.is_empty() || authority.contains(['/', '?', '#', '@', ' ']) {
            return Err(Failure::usage(format!("--url: `{url}` is not of the form http://host:port")));
        }
        let port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if port { authority.to_owned() } else { format!("{authority}:80") };
        Ok(Self { authority, token, namespace: None })
    }

    /// One that asks for what is in a namespace.
    pub(crate) fn within(self, namespace: Option<&str>) -> Self {
        Self { namespace: namespace.map(str::to_owned), ..self }
    }

    /// Sends one request and reads the whole answer. Answers other than success, and that something is not there, are
    /// failures.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<Response, Failure> {
        let answer = tokio::time::timeout(PATIENCE, self.exchange(method, path, content_type, body)).await;
        let response = answer.map_err(|_| self.failed(format!("no answer within {PATIENCE:?}")))??;
        match response.status {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND if response.headers.contains_key(crate::serve::FOUND) => Ok(response),
            // Who serves a cache knows the paths.
            StatusCode::NOT_FOUND => {
                Err(self.failed(format!("{path} is not found: is it `tiercache serve`?")))
            }
            status => {
                let said: Option<serde_json::Value> = serde_json::from_slice(&response.body).ok();
                let said = said.as_ref().and_then(|said| said["error"].as_str()).unwrap_or_default();
                let message = format!("{}: {status}: {said}", self.authority);
                Err(if status.is_client_error() {
                    Failure::usage(message)
                } else {
                    Failure::backend(message)
                })
            }
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<Response, Failure> {
        let stream = TcpStream::connect(&self.authority).await.map_err(|error| self.failed(error))?;
        stream.set_nodelay(true).map_err(|error| self.failed(error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.failed(error))?;
        // Ends with the sender, at the latest when the command does.
        tokio::spawn(connection);
        let mut request =
            Request::builder().method(method).uri(self.named(path)).header(HOST, &self.authority);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(content_type) = content_type {
            request = request.header(hyper::header::CONTENT_TYPE, content_type);
        }
        let request = request.body(Body::from(body)).map_err(Failure::usage)?;
        let response = sender.send_request(request).await.map_err(|error| self.failed(error))?;
        let (head, body) = response.into_parts();
        let body = to_bytes(Body::new(body), usize::MAX).await.map_err(|error| self.failed(error))?;
        Ok(Response { status: head.status, headers: head.headers, body })
    }

    /// The address with the namespace.
    fn named(&self, path: &str) -> String {
        let Some(namespace) = &self.namespace else { return path.to_owned() };
        let joint = if path.contains('?') { '&' } else { '?' };
        format!("{path}{joint}namespace={}", keyname::encode(namespace.as_bytes()))
    }

    fn failed(&self, why: impl std::fmt::Display) -> Failure {
        Failure::backend(format!("the service at {} cannot be asked: {why}", self.authority))
    }
}
