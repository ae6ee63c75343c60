//! What happens to a request, in order:
//!
//! 1. Its target and key are told. Where they cannot be, or the cache takes no part, the origin answers. What the
//!    response to an unsafe method makes invalid is removed before that is passed on.
//! 2. What is stored for it answers if it may: fresh, stale within what the request accepts, or stale while a task
//!    revalidates it.
//! 3. Else one request of the same key asks the origin, and the others wait for what it stores; then step 2 again.
//!    Those who still have no answer ask for themselves.
//! 4. A fetch begins: what is invalidated from here on is not stored by it. What is stored and stale is validated.
//! 5. A 304 renews what is stored; an error is answered with what is stored where that is allowed; what may be stored
//!    is stored on its way to the requester.

mod answer;
mod fetch;
mod flights;
mod pump;

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, header};
use http_body::Body as _;
use tiercache_core::{MAX_KEY_BYTES, Timestamp};
use tokio::sync::Semaphore;

use self::fetch::Fetch;
pub(crate) use self::fetch::listed_tag;
use self::flights::{Flights, Lead, Turn};
use crate::cache::{RequestOptions, Settings};
use crate::policy::Rules;
use crate::policy::control::RequestControl;
use crate::policy::fresh::Use;
use crate::policy::status::{Forward, Told};
use crate::policy::target::{self, Target};
use crate::policy::{conditional, storable};
use crate::store::{Found, Keys, Looked, Store, Stored, Tags};
use crate::{Body, Origin, Outcome};

/// Responses revalidated in the background at once; beyond it they stay stale a little longer.
const MOST_REFRESHES: usize = 64;

/// How often one waits for others who end with nothing for it, before it asks the origin itself.
const MOST_WAITS: u32 = 3;

pub(crate) struct Engine {
    pub(crate) store: Store,
    pub(crate) settings: Settings,
    flights: Arc<Flights>,
    refreshes: Arc<Semaphore>,
}

/// What is decided about a request before anything is looked up.
#[derive(Clone)]
pub(crate) struct Plan {
    keys: Keys,
    rules: Rules,
    control: RequestControl,
    tags: Tags,
    /// Whether the store may answer it, and its response be stored.
    meets_store: bool,
}

/// What an unsafe request may have changed. Invalidated in a task of its own, whether or not anybody waits for it.
struct Change {
    engine: Arc<Engine>,
    targets: Vec<Target>,
}

impl Change {
    /// Begins the invalidation if the response says that there was a change.
    fn answered(mut self, response: &Response<Body>) -> Option<tokio::task::JoinHandle<()>> {
        let mut targets = std::mem::take(&mut self.targets);
        if !response.status().is_success() && !response.status().is_redirection() {
            return None;
        }
        let own = targets.first()?.clone();
        // Its own target once: a response to a POST may be stored behind one invalidation.
        targets.extend(own.named_by(response.headers()).filter(|named| *named != own));
        Some(tokio::spawn(invalidate(self.engine.clone(), targets)))
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if self.targets.is_empty() {
            return;
        }
        // Without a runtime the process is about to end.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(invalidate(self.engine.clone(), std::mem::take(&mut self.targets)));
        }
    }
}

async fn invalidate(engine: Arc<Engine>, targets: Vec<Target>) {
    for target in targets {
        if let Err(error) = engine.store.invalidate(target).await {
            tracing::warn!(%error, "what an unsafe request made invalid may not be removed everywhere yet");
        }
    }
}

impl Engine {
    pub(crate) fn new(store: Store, settings: Settings) -> Self {
        let refreshes = Arc::new(Semaphore::new(MOST_REFRESHES));
        Self { store, settings, flights: Arc::default(), refreshes }
    }

    /// Answers a request.
    pub(crate) async fn handle<O: Origin>(
        self: &Arc<Self>,
        request: Request<Body>,
        origin: &O,
    ) -> Result<Response<Body>, O::Error> {
        let (parts, body) = request.into_parts();
        let plan = self.plan(&parts, !body.is_end_stream());
        let Some(plan) = plan else {
            let response = origin.send(Request::from_parts(parts, body)).await?;
            return Ok(self.passed(response, Forward::Bypass));
        };
        if target::is_unsafe(&parts.method) || target::overrides_method(&parts.headers) {
            return self.change(parts, body, &plan, origin).await;
        }
        if !plan.meets_store {
            let forward = if matches!(parts.method, Method::GET | Method::HEAD) {
                Forward::Bypass
            } else {
                Forward::Method
            };
            let response = origin.send(Request::from_parts(parts, body)).await?;
            return Ok(self.passed(response, forward));
        }
        self.read(parts, plan, origin).await
    }

    /// Step 1.
    fn plan(&self, parts: &Parts, has_body: bool) -> Option<Plan> {
        let default = RequestOptions::default();
        let options = parts.extensions.get::<RequestOptions>().unwrap_or(&default);
        let settings = &self.settings;
        let target = Target::of_request(&parts.uri, &parts.headers, &settings.scheme)?;
        let identity = options
            .identity
            .clone()
            .or_else(|| settings.identity.as_ref().and_then(|identity| identity(parts)));
        let mut rules = Rules::new(settings.profile, settings.keep_stale, settings.negative.clone());
        rules.identified = identity.is_some();
        rules.ttl = options.ttl.or(settings.ttl);
        let keys = Keys::new(
            target,
            &self.parts_of_key(&parts.headers, identity.map(|identity| identity.0), options),
        );
        let fits = keys.len() <= MAX_KEY_BYTES;
        let meets_store = fits
            && !options.bypass
            && storable::may_meet_store(&parts.method, &parts.headers, has_body, &rules);
        let control = RequestControl::of(&parts.headers);
        Some(Plan { keys, rules, control, tags: options.tags.clone(), meets_store })
    }

    /// Parts of the key besides the target, each told from the others.
    fn parts_of_key(
        &self,
        headers: &HeaderMap,
        identity: Option<String>,
        options: &RequestOptions,
    ) -> Vec<String> {
        let mut key: Vec<String> =
            identity.map(|identity| format!("identity\0{identity}")).into_iter().collect();
        for name in &self.settings.key_headers {
            for value in headers.get_all(name) {
                key.push(target::part(name.as_str(), value.as_bytes()));
            }
        }
        key.extend(target::named_elsewhere(headers));
        key.extend(options.key.iter().map(|part| format!("part\0{part}")));
        key
    }

    /// A request that may change something (RFC 9111 §4.4).
    async fn change<O: Origin>(
        self: &Arc<Self>,
        parts: Parts,
        body: Body,
        plan: &Plan,
        origin: &O,
    ) -> Result<Response<Body>, O::Error> {
        let may_answer = parts.method == Method::POST && !plan.rules.cautious;
        let asked = match may_answer {
            true => self
                .store
                .begin(&plan.keys)
                .await
                .map(|begun| (begun, self.store.now(), parts.headers.clone())),
            false => None,
        };
        // Should this future be dropped, or the origin not answer, the change may have been made all the same.
        let change = Change { engine: self.clone(), targets: vec![plan.keys.target.clone()] };
        let response = origin.send(Request::from_parts(parts, body)).await?;
        if let Some(invalidated) = change.answered(&response)
            && let Err(error) = invalidated.await
        {
            tracing::warn!(%error, "what an unsafe request made invalid may not be removed");
        }
        let response = match asked {
            Some((begun, at, headers)) => {
                fetch::keep_for_get(self, plan, begun, at, &headers, response).await
            }
            None => response,
        };
        Ok(self.passed(response, Forward::Method))
    }

    /// Steps 2 and 3.
    async fn read<O: Origin>(
        self: &Arc<Self>,
        parts: Parts,
        plan: Plan,
        origin: &O,
    ) -> Result<Response<Body>, O::Error> {
        let mut lead = None;
        let mut waits = 0;
        loop {
            let Looked { found, others } = self.look_up(&parts, &plan).await;
            let collapsed = waits > 0;
            let found = match found {
                Some(found) => {
                    let now = self.store.now();
                    let outcome = match found.stored.fresh.usable(&plan.control, now) {
                        Use::Fresh => Some(Outcome::Hit),
                        Use::Accepted => Some(Outcome::Stale),
                        Use::WhileRevalidating => {
                            self.refresh(&parts, &plan, &found, origin);
                            Some(Outcome::Stale)
                        }
                        Use::Revalidate => None,
                    };
                    if let Some(outcome) = outcome {
                        return Ok(self.stored(&parts, found.stored, now, outcome, collapsed));
                    }
                    Some(found)
                }
                None => None,
            };
            if plan.control.only_if_cached {
                let mut response = answer::nothing_stored();
                self.tell(&mut response, Outcome::Miss, &Told::default());
                return Ok(response);
            }
            if lead.is_none() && waits < MOST_WAITS {
                match self.join(&parts, &plan, found.as_ref()) {
                    Turn::Lead(leading) => {
                        lead = Some(leading);
                        // Another may have led and ended since the look-up.
                        continue;
                    }
                    Turn::Follow(follow) => {
                        waits = if follow.wait().await { waits + 1 } else { MOST_WAITS };
                        continue;
                    }
                    Turn::Alone => {}
                }
            }
            let forward = match found {
                Some(_) if plan.control.no_cache || plan.control.max_age.is_some() => Forward::Request,
                Some(_) => Forward::Stale,
                None if others => Forward::VaryMiss,
                None => Forward::UriMiss,
            };
            let fetch = Fetch { engine: self.clone(), parts, plan, found, forward, lead };
            return fetch.run(origin).await;
        }
    }

    /// Trouble with the store is as if nothing were stored.
    async fn look_up(&self, parts: &Parts, plan: &Plan) -> Looked {
        let wanted = |stored: &Stored| answer::covers(parts, stored);
        let looked = self.store.look_up(&plan.keys, &parts.headers, wanted).await;
        let whole = match looked {
            Ok(Looked { found: Some(found), others }) => {
                match self.store.is_whole(&found.stored.content).await {
                    Ok(whole) => Ok(Looked { found: whole.then_some(found), others }),
                    Err(error) => Err(error),
                }
            }
            other => other,
        };
        whole.unwrap_or_else(|error| {
            tracing::debug!(%error, "the store cannot be read, the request passes through");
            Looked::default()
        })
    }

    /// Whether one asks for all who want the same. Only where the answer may serve others.
    fn join(&self, parts: &Parts, plan: &Plan, found: Option<&Found>) -> Turn {
        let shared = parts.method == Method::GET
            && !parts.headers.contains_key(header::RANGE)
            && !plan.control.no_cache
            && !plan.control.no_store
            // Each of them must be validated on its own.
            && found.is_none_or(|found| !found.stored.fresh.no_cache && found.stored.fresh.lifetime > 0);
        if shared { self.flights.join(plan.keys.name()) } else { Turn::Alone }
    }

    /// Revalidates in the background, one at a time of each key.
    fn refresh<O: Origin>(self: &Arc<Self>, parts: &Parts, plan: &Plan, found: &Found, origin: &O) {
        let Ok(permit) = self.refreshes.clone().try_acquire_owned() else { return };
        let name = [b"refresh\0", plan.keys.name()].concat();
        let Turn::Lead(lead) = self.flights.join(&name) else { return };
        let mut parts = parts.clone();
        // What one requester accepts, has, or wants a part of, is no matter of what is stored for all.
        parts.method = Method::GET;
        for name in [header::RANGE, header::CACHE_CONTROL] {
            parts.headers.remove(name);
        }
        conditional::unconditional(&mut parts.headers);
        let plan = Plan { control: RequestControl::default(), ..plan.clone() };
        let fetch = Fetch {
            engine: self.clone(),
            parts,
            plan,
            found: Some(found.clone()),
            forward: Forward::Stale,
            lead: Some(lead),
        };
        let origin = origin.clone();
        tokio::spawn(async move {
            let _permit = permit;
            // An error leaves what is stored as it is; the next request tries again. The body is read to its end,
            // since that is when it is stored.
            if let Ok(response) = fetch.run(&origin).await {
                let mut body = response.into_body();
                while let Some(Ok(_)) = http_body_util::BodyExt::frame(&mut body).await {}
            }
        });
    }

    /// The answer from the store.
    fn stored(
        &self,
        parts: &Parts,
        stored: Stored,
        now: Timestamp,
        outcome: Outcome,
        collapsed: bool,
    ) -> Response<Body> {
        let told = Told { hit: true, ttl: Some(stored.fresh.ttl(now)), collapsed, ..Told::default() };
        let mut response = answer::from_store(self.store.manager(), parts, stored, now);
        self.tell(&mut response, outcome, &told);
        response
    }

    /// The origin's answer to a request that the store had no part in.
    fn passed(&self, mut response: Response<Body>, forward: Forward) -> Response<Body> {
        self.tell(&mut response, Outcome::Bypass, &Told { forward: Some(forward), ..Told::default() });
        response
    }

    fn tell(&self, response: &mut Response<Body>, outcome: Outcome, told: &Told) {
        response.extensions_mut().insert(outcome);
        if self.settings.status_header {
            answer::tell(response.headers_mut(), &self.settings.name, told);
        }
    }
}
