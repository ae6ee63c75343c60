//! Where values are loaded from, as slowly and as badly as the simulator likes.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::judge::Moment;
use super::store::{Fate, Gates};

/// How long loaded values may be answered as stale.
pub(super) const WINDOW: Duration = Duration::from_secs(15);

/// A load, as the origin saw it begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub key: u8,
    pub value: u64,
    pub tag: Option<u8>,
    pub ttl: Option<u64>,
    /// Milliseconds.
    pub stale: u64,
    pub asked: Moment,
}

type Bringing = Pin<Box<dyn Future<Output = Result<HashMap<String, String>, &'static str>> + Send>>;

type Missing = Pin<Box<dyn Future<Output = Result<Option<Bytes>, &'static str>> + Send>>;

#[derive(Debug)]
pub(super) struct Origin {
    pub(super) gates: Arc<Gates>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    now: (Moment, u64),
    /// Not told of yet.
    begun: Vec<Asked>,
    asked: BTreeMap<u64, Moment>,
    /// Likewise, with the time.
    brought: Vec<(u64, u64)>,
}

impl Origin {
    pub(super) fn new(gates: Arc<Gates>) -> Self {
        Self { gates, state: Mutex::default() }
    }

    /// It is that moment, and that time.
    pub(super) fn at(&self, moment: Moment, clock: u64) {
        self.state().now = (moment, clock);
    }

    /// Loads that have begun since the last call.
    pub(super) fn begun(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().begun)
    }

    /// Values brought since the last call, and when.
    pub(super) fn brought(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.state().brought)
    }

    /// When a value was asked for, if it was loaded.
    pub(super) fn asked(&self, value: u64) -> Option<Moment> {
        self.state().asked.get(&value).copied()
    }

    /// A loader of `value`, which the origin has from the moment it is asked.
    pub(super) fn loader(
        self: &Arc<Self>,
        key: u8,
        value: u64,
        ttl: Option<u64>,
        tag: Option<u8>,
        stale: Duration,
    ) -> impl FnOnce() -> Pin<Box<dyn Future<Output = Result<String, &'static str>> + Send>> + Send + 'static + use<>
    {
        let origin = self.clone();
        move || {
            Box::pin(async move {
                {
                    let mut state = origin.state();
                    let (asked, _) = state.now;
                    let stale = stale.as_millis() as u64;
                    state.begun.push(Asked { key, value, tag, ttl, stale, asked });
                    state.asked.insert(value, asked);
                }
                match origin.gates.pass(format!("load of {value}")).await {
                    Fate::Go => {
                        let mut state = origin.state();
                        let (_, clock) = state.now;
                        state.brought.push((value, clock));
                        Ok(value.to_string())
                    }
                    Fate::Fail | Fate::Part => Err("told to fail"),
                    Fate::Hang => std::future::pending().await,
                }
            })
        }
    }

    /// A loader that finds nothing: that is value 0.
    pub(super) fn loader_of_nothing(
        self: &Arc<Self>,
        key: u8,
    ) -> impl FnOnce() -> Missing + Send + 'static + use<> {
        let origin = self.clone();
        move || {
            Box::pin(async move {
                {
                    let mut state = origin.state();
                    let (asked, _) = state.now;
                    state.begun.push(Asked { key, value: 0, tag: None, ttl: None, stale: 0, asked });
                }
                match origin.gates.pass(format!("load of nothing for {key}")).await {
                    Fate::Go => Ok(None),
                    Fate::Fail | Fate::Part => Err("told to fail"),
                    Fate::Hang => std::future::pending().await,
                }
            })
        }
    }

    /// A loader of many keys: what each of them is, and the value it has from the moment it is asked for.
    pub(super) fn loader_of_many(
        self: &Arc<Self>,
        values: BTreeMap<String, (u8, u64)>,
        ttl: Option<u64>,
    ) -> impl Fn(Vec<String>) -> Bringing + Send + Sync + 'static + use<> {
        let origin = self.clone();
        move |names| {
            let origin = origin.clone();
            let wanted: Vec<(String, u8, u64)> = names
                .into_iter()
                .filter_map(|name| values.get(&name).map(|&(key, value)| (name, key, value)))
                .collect();
            Box::pin(async move {
                {
                    let mut state = origin.state();
                    let (asked, _) = state.now;
                    for &(_, key, value) in &wanted {
                        state.begun.push(Asked { key, value, tag: None, ttl, stale: 0, asked });
                        state.asked.insert(value, asked);
                    }
                }
                match origin.gates.pass(format!("load of {wanted:?}")).await {
                    Fate::Go => {
                        let mut state = origin.state();
                        let (_, clock) = state.now;
                        state.brought.extend(wanted.iter().map(|&(_, _, value)| (value, clock)));
                        Ok(wanted.into_iter().map(|(name, _, value)| (name, value.to_string())).collect())
                    }
                    Fate::Fail | Fate::Part => Err("told to fail"),
                    Fate::Hang => std::future::pending().await,
                }
            })
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
