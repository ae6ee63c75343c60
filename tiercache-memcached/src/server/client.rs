//! What goes over the client: counters, leases, the record's changes, what is damaged, statistics.

use async_memcached::{Client, Error as ClientError, ErrorKind, MetaProtocol, MetaValue, Status};
use deadpool::managed::{self, Metrics, Object, RecycleError, RecycleResult};
use tiercache_core::{BoxError, Error, Result};

use super::{IDLE, NAME, Server, Written, hung_up};

impl Server {
    /// The item of that name with what `wanted` asks for, in the client's words.
    pub(crate) async fn get(
        &self,
        op: &'static str,
        name: &str,
        wanted: &[&str],
    ) -> Result<Option<MetaValue>> {
        let asked = async || {
            let mut client = self.client(op).await?;
            self.answer(op, client.meta_get(name, false, None, Some(wanted))).await
        };
        again!(self, asked())
    }

    /// Those of two items that are there, in one round trip.
    pub(crate) async fn pair(
        &self,
        op: &'static str,
        names: [&str; 2],
        wanted: &[&str],
    ) -> Result<[Option<MetaValue>; 2]> {
        let asked = async || {
            let mut client = self.client(op).await?;
            self.answer(op, client.meta_get_multi(&names, Some(wanted))).await
        };
        let mut found = again!(self, asked())?;
        Ok(names.map(|name| {
            let at = found.iter().position(|item| item.key.as_deref() == Some(name.as_bytes()));
            at.map(|at| found.swap_remove(at))
        }))
    }

    /// Writes an item if it is still the one with that CAS; without a CAS, if there is none.
    pub(crate) async fn set(
        &self,
        op: &'static str,
        name: &str,
        value: &[u8],
        cas: Option<u64>,
        flags: [&str; 2],
    ) -> Result<Written> {
        self.set_seen(op, name, value, cas, flags).await.map(|(written, _)| written)
    }

    /// Likewise, with the CAS of what was written.
    pub(crate) async fn set_seen(
        &self,
        op: &'static str,
        name: &str,
        value: &[u8],
        cas: Option<u64>,
        [flags, expiry]: [&str; 2],
    ) -> Result<(Written, Option<u64>)> {
        let condition = cas.map_or_else(|| "ME".to_owned(), |cas| format!("C{cas}"));
        let mut client = self.client(op).await?;
        let meta = [condition.as_str(), flags, expiry, "c"];
        let written = match self.in_time(op, client.meta_set(name, value, false, None, Some(&meta))).await? {
            // With the CAS asked for, a refusal comes as an answer and not as the client's error.
            Ok(Some(answer)) if !matches!(answer.status, None | Some(Status::Stored)) => Ok(Written::Changed),
            Ok(stored) => return Ok((Written::Stored, stored.and_then(|stored| stored.cas))),
            Err(ClientError::Protocol(Status::NotStored | Status::Exists | Status::NotFound)) => {
                Ok(Written::Changed)
            }
            Err(ClientError::Protocol(Status::Error(ErrorKind::Server(said))))
                if said.contains("too large") =>
            {
                Ok(Written::TooLarge)
            }
            Err(ClientError::Protocol(Status::Error(ErrorKind::Server(said))))
                if said.contains("out of memory") =>
            {
                Ok(Written::Full)
            }
            Err(error) => Err(lost(op, error)),
        };
        written.map(|written| (written, None))
    }

    /// Removes an item if it is still the one with that CAS; whether it did.
    pub(crate) async fn delete(&self, op: &'static str, name: &str, cas: u64) -> Result<bool> {
        let mut client = self.client(op).await?;
        match self.in_time(op, client.meta_delete(name, false, None, Some(&[&format!("C{cas}")]))).await? {
            Ok(_) => Ok(true),
            Err(ClientError::Protocol(Status::NotFound | Status::Exists)) => Ok(false),
            Err(error) => Err(lost(op, error)),
        }
    }

    /// Adds to a number if it is still the one with that CAS; `None` when it is not. The sum wraps around.
    pub(crate) async fn add(
        &self,
        op: &'static str,
        name: &str,
        delta: u64,
        cas: u64,
    ) -> Result<Option<MetaValue>> {
        let mut client = self.client(op).await?;
        let meta = [format!("C{cas}"), "v".to_owned()];
        let meta = meta.each_ref().map(String::as_str);
        match self.in_time(op, client.meta_increment(name, false, None, Some(delta), Some(&meta))).await? {
            Ok(sum) => Ok(sum),
            Err(ClientError::Protocol(Status::NotFound | Status::Exists | Status::NotStored)) => Ok(None),
            Err(error) => Err(lost(op, error)),
        }
    }

    /// Figures of the server's own statistics.
    pub(crate) async fn figures<const N: usize>(&self, names: [&str; N]) -> Result<[u64; N]> {
        let asked = async || {
            let mut client = self.client("stats").await?;
            self.answer("stats", client.stats()).await
        };
        let stats = again!(self, asked())?;
        Ok(names.map(|name| stats.get(name).and_then(|figure| figure.parse().ok()).unwrap_or_default()))
    }

    async fn client(&self, op: &'static str) -> Result<Object<Dial>> {
        self.clients.get().await.map_err(|error| self.refused(op, error, |error| lost(op, error)))
    }

    /// What a reading call of the client says, in time.
    async fn answer<T>(
        &self,
        op: &'static str,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T> {
        self.in_time(op, call).await?.map_err(|error| lost(op, error))
    }
}

fn lost(op: &'static str, error: ClientError) -> Error {
    Error::unavailable(NAME, op, BoxError::from(error))
}

/// Makes the client's connections for a pool and says which of them may be used again.
pub(super) struct Dial(pub(super) String);

impl managed::Manager for Dial {
    type Type = Client;
    type Error = ClientError;

    async fn create(&self) -> Result<Client, ClientError> {
        Client::new(&self.0).await
    }

    async fn recycle(&self, client: &mut Client, metrics: &Metrics) -> RecycleResult<ClientError> {
        if client.is_closed() {
            return Err(RecycleError::message("a call was given up on it"));
        }
        if metrics.last_used() > IDLE {
            client.version().await?;
        }
        Ok(())
    }
}
