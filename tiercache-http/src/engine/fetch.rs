//! Asking the origin, and what comes of it: steps 4 and 5.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use tiercache_core::{Result, Timestamp};

use super::{Engine, Lead, Plan, answer, pump};
use crate::policy::conditional::Compared;
use crate::policy::control::ResponseControl;
use crate::policy::fresh::{Freshness, Times};
use crate::policy::status::{Forward, Told};
use crate::policy::{conditional, date, fields, range, storable, update, vary};
use crate::store::{Begun, Content, Found, Keeping, Looked, PieceWriter, Stored, Tags};
use crate::{Body, Origin, Outcome};

/// Parts are put together in RAM, up to this many bytes.
const MOST_COMBINED: u64 = 1 << 20;

/// A request on its way to the origin.
pub(super) struct Fetch {
    pub(super) engine: Arc<Engine>,
    pub(super) parts: Parts,
    pub(super) plan: Plan,
    /// What is stored, and stale.
    pub(super) found: Option<Found>,
    pub(super) forward: Forward,
    /// Others wait until it is dropped.
    pub(super) lead: Option<Lead>,
}

impl Fetch {
    pub(super) async fn run<O: Origin>(mut self, origin: &O) -> Result<Response<Body>, O::Error> {
        let store = &self.engine.store;
        let begun = if self.plan.control.no_store { None } else { store.begin(&self.plan.keys).await };
        if let Some(found) = &self.found
            && !store.has(&self.plan.keys, found).await.unwrap_or(false)
        {
            // Invalidated before the fetch began: that the origin confirms it must not bring it back.
            (self.found, self.forward) = (None, Forward::UriMiss);
        }
        let mut request = Request::new(Body::empty());
        (*request.method_mut(), *request.uri_mut()) = (self.parts.method.clone(), self.parts.uri.clone());
        (*request.version_mut(), *request.headers_mut()) = (self.parts.version, self.parts.headers.clone());
        *request.extensions_mut() = self.parts.extensions.clone();
        let validated = self.found.as_ref().filter(|found| conditional::has_validator(&found.stored.headers));
        if let Some(found) = validated {
            conditional::validate(request.headers_mut(), &found.stored.headers);
        }
        let validates = validated.is_some();
        let asked = store.now();
        let answered = origin.send(request).await;
        let times = Times { asked, came: store.now() };
        let response = match answered {
            Ok(response) => response,
            Err(error) => return self.instead(times.came, None).ok_or(error),
        };
        let status = response.status();
        if validates && status == StatusCode::NOT_MODIFIED {
            return Ok(self.renewed(response, begun, times).await);
        }
        if self.parts.method == Method::HEAD
            && status == StatusCode::OK
            && let Some(Found { stored, .. }) = &self.found
            && stored.status == 200
        {
            match conditional::compare(response.headers(), &stored.headers, stored.length()) {
                Compared::Same => return Ok(self.renewed(response, begun, times).await),
                Compared::Other => self.forget().await,
                Compared::Unknown => {}
            }
        }
        if matches!(status.as_u16(), 500 | 502 | 503 | 504)
            && let Some(stale) = self.instead(times.came, Some(status))
        {
            return Ok(stale);
        }
        Ok(self.replaced(response, begun, times).await)
    }

    /// What is stored is not what there is any more.
    async fn forget(&self) {
        if let Some(found) = &self.found
            && let Err(error) = self.engine.store.forget(found).await
        {
            tracing::debug!(%error, "what is out of date stays until it is stale");
        }
    }

    /// What is stored, where it may stand for an origin that failed.
    fn instead(&self, now: Timestamp, status: Option<StatusCode>) -> Option<Response<Body>> {
        let Self { engine, parts, plan, found, .. } = self;
        let stored = &found.as_ref()?.stored;
        if !stored.fresh.usable_on_error(&plan.control, now, &plan.rules) {
            return None;
        }
        let mut response = answer::from_store(engine.store.manager(), parts, stored.clone(), now);
        let told = Told {
            hit: true,
            forward: Some(self.forward),
            forward_status: status.map(|status| status.as_u16()),
            ttl: Some(stored.fresh.ttl(now)),
            ..Told::default()
        };
        engine.tell(&mut response, Outcome::Stale, &told);
        Some(response)
    }

    /// The origin confirmed what is stored.
    async fn renewed(self, response: Response<Body>, begun: Option<Begun>, times: Times) -> Response<Body> {
        let Self { engine, parts, plan, found, forward, lead } = self;
        // Only what was found is validated.
        let Some(Found { stored, .. }) = found else { return response };
        let mut renewed = stored;
        let confirmed = response.status();
        let mut confirming = response.into_parts().0.headers;
        confirming.entry(header::DATE).or_insert_with(|| date::value(times.came));
        renewed.headers = update::merged(&renewed.headers, confirming);
        let status = StatusCode::from_u16(renewed.status).unwrap_or(StatusCode::OK);
        let control = ResponseControl::of(&renewed.headers);
        renewed.fresh = Freshness::of(status, &renewed.headers, &control, times, &plan.rules);
        let mut kept = false;
        let may_store = storable::may_store(&parts.headers, status, &renewed.headers, times, &plan.rules);
        if let Some(begun) = begun.filter(|_| may_store) {
            let keeping = engine.keeping(&plan, &renewed);
            let mut stored = renewed.clone();
            control.without.iter().for_each(|name| {
                stored.headers.remove(name);
            });
            let selecting = vary::selecting(&parts.headers, &stored.headers);
            let touched = match &renewed.content {
                Content::Pieces(pieces) => engine.store.touch(&pieces.id, pieces.count(), keeping.ttl).await,
                Content::Inline(_) => Ok(()),
            };
            let published = match touched {
                Ok(()) => {
                    engine
                        .store
                        .publish(&plan.keys, begun, &parts.headers, selecting, &stored, &keeping)
                        .await
                }
                Err(error) => Err(error),
            };
            kept = published.unwrap_or_else(|error| {
                tracing::debug!(%error, "what was confirmed is not stored anew");
                false
            });
        }
        drop(lead);
        let now = engine.store.now();
        let told = Told {
            hit: true,
            forward: Some(forward),
            forward_status: Some(confirmed.as_u16()),
            stored: kept,
            ttl: Some(renewed.fresh.ttl(now)),
            ..Told::default()
        };
        let mut answer = answer::from_store(engine.store.manager(), &parts, renewed, now);
        engine.tell(&mut answer, Outcome::Revalidated, &told);
        answer
    }

    /// The origin has another answer.
    async fn replaced(self, response: Response<Body>, begun: Option<Begun>, times: Times) -> Response<Body> {
        let Self { engine, parts, plan, forward, lead, .. } = self;
        let told = |stored: bool, status: StatusCode| Told {
            forward: Some(forward),
            forward_status: (forward == Forward::Stale).then_some(status.as_u16()),
            stored,
            ..Told::default()
        };
        let status = response.status();
        let may_store = parts.method == Method::GET
            && storable::may_store(&parts.headers, status, response.headers(), times, &plan.rules);
        let keeper = begun
            .filter(|_| may_store)
            .and_then(|begun| Keeper::new(&engine, &plan, &parts.headers, &response, begun, times));
        let for_all = parts.method == Method::GET && !parts.headers.contains_key(header::RANGE);
        if for_all && status != StatusCode::NOT_MODIFIED {
            engine.flights.note(plan.keys.name(), keeper.is_some());
        }
        let Some(keeper) = keeper else {
            drop(lead);
            let mut response = response;
            engine.tell(&mut response, Outcome::Miss, &told(false, status));
            return response;
        };
        let (mut response, stored) = keeper.keep(response, lead).await;
        engine.tell(&mut response, Outcome::Miss, &told(stored, status));
        response
    }
}

/// Stores the response to a POST, where it answers later GETs of the same target (RFC 9110 §9.3.3).
pub(super) async fn keep_for_get(
    engine: &Arc<Engine>,
    plan: &Plan,
    begun: Begun,
    asked: Timestamp,
    request: &HeaderMap,
    response: Response<Body>,
) -> Response<Body> {
    let times = Times { asked, came: engine.store.now() };
    let headers = response.headers();
    let of_target = headers
        .get(header::CONTENT_LOCATION)
        .and_then(fields::text)
        .and_then(|location| plan.keys.target.same_origin(location))
        .is_some_and(|location| location == plan.keys.target);
    let keeps = storable::answers_later_get(response.status(), headers, times, of_target, &plan.rules)
        && storable::may_store(request, response.status(), headers, times, &plan.rules);
    if !keeps {
        return response;
    }
    match Keeper::new(engine, plan, request, &response, begun.past_own_invalidation(), times) {
        Some(keeper) => keeper.keep(response, None).await.0,
        None => response,
    }
}

/// Stores a response.
struct Keeper {
    engine: Arc<Engine>,
    plan: Plan,
    request: HeaderMap,
    begun: Begun,
    stored: Stored,
    keeping: Keeping,
    /// Of the body, as announced.
    length: Option<u64>,
}

impl Keeper {
    /// `None` when it cannot be: too long, or of parts that contradict each other.
    fn new(
        engine: &Arc<Engine>,
        plan: &Plan,
        request: &HeaderMap,
        response: &Response<Body>,
        begun: Begun,
        times: Times,
    ) -> Option<Self> {
        let status = response.status();
        let mut lengths = response.headers().get_all(header::CONTENT_LENGTH).iter();
        let mut length = match lengths.next() {
            Some(line) => Some(fields::text(line)?.parse::<u64>().ok()?),
            None => None,
        };
        if lengths.next().is_some() {
            return None;
        }
        let mut part = None;
        if status == StatusCode::PARTIAL_CONTENT {
            let (has, whole) = range::content_range(response.headers())?;
            let long = has.end - has.start;
            if !request.contains_key(header::RANGE) || length.is_some_and(|length| length != long) {
                return None;
            }
            length = Some(long);
            part = Some((has, whole));
        }
        if length.is_some_and(|length| length > engine.settings.max_body) {
            return None;
        }
        let control = ResponseControl::of(response.headers());
        let fresh = Freshness::of(status, response.headers(), &control, times, &plan.rules);
        let mut headers = fields::without_connection(response.headers().clone());
        // What is kept says when it was made (RFC 9110 §6.6.1).
        headers.entry(header::DATE).or_insert_with(|| date::value(times.came));
        control.without.iter().for_each(|name| {
            headers.remove(name);
        });
        if part.is_some() {
            // They are of the part, and written anew for each.
            headers.remove(header::CONTENT_RANGE);
            headers.remove(header::CONTENT_LENGTH);
        }
        let stored =
            Stored { status: status.as_u16(), headers, fresh, part, content: Content::Inline(Bytes::new()) };
        let keeping = engine.keeping(plan, &stored);
        Some(Self {
            engine: engine.clone(),
            plan: plan.clone(),
            request: request.clone(),
            begun,
            stored,
            keeping,
            length,
        })
    }

    /// Stores the response on its way. Whether that is done, or under way.
    async fn keep(self, response: Response<Body>, lead: Option<Lead>) -> (Response<Body>, bool) {
        let (parts, body) = response.into_parts();
        let max = self.engine.settings.max_body;
        if let Some(bytes) = body.whole() {
            let fits =
                bytes.len() as u64 <= max && self.length.is_none_or(|length| length == bytes.len() as u64);
            // One entry has room for it, or else it goes piece by piece like a stream.
            if fits && bytes.len() as u64 <= MOST_COMBINED {
                let stored = self.publish(Content::Inline(bytes)).await;
                drop(lead);
                return (Response::from_parts(parts, body), stored);
            }
            if !fits {
                return (Response::from_parts(parts, body), false);
            }
        }
        let manager = self.engine.store.manager().clone();
        let keeping = &self.keeping;
        let writer = PieceWriter::new(manager, self.begun.id(), keeping.ttl, keeping.tags.clone(), max);
        let body = pump::carry(body, self.length, writer, move |content, writer| async move {
            if self.publish(content).await {
                writer.keep();
            }
            drop(lead);
        });
        (Response::from_parts(parts, body), true)
    }

    async fn publish(mut self, content: Content) -> bool {
        self.stored.content = content;
        let store = &self.engine.store;
        let selecting = vary::selecting(&self.request, &self.stored.headers);
        if let Some((combined, tags)) = self.join_with_stored().await {
            self.stored = combined;
            self.keeping.tags.extend(tags);
        }
        let published = store
            .publish(&self.plan.keys, self.begun, &self.request, selecting, &self.stored, &self.keeping)
            .await;
        published.unwrap_or_else(|error| {
            tracing::debug!(%error, "a response is not stored");
            false
        })
    }

    /// With the part of the same representation that is stored already, and its tags, if they meet (RFC 9110
    /// §15.3.7.3).
    async fn join_with_stored(&self) -> Option<(Stored, Tags)> {
        let new = &self.stored;
        let (has, whole) = new.part.as_ref()?;
        let etag = conditional::strong_etag(&new.headers)?;
        let meets = |old: &Stored| {
            let Some((part, length)) = &old.part else { return false };
            let union = part.end.max(has.end) - part.start.min(has.start);
            length == whole
                && part.start <= has.end
                && has.start <= part.end
                && union <= MOST_COMBINED
                && conditional::strong_etag(&old.headers) == Some(etag)
        };
        let looked = self.engine.store.look_up(&self.plan.keys, &self.request, meets).await;
        let Ok(Looked { found: Some(Found { stored: old, .. }), .. }) = looked else { return None };
        let (part, _) = old.part.as_ref()?;
        let (Content::Inline(older), Content::Inline(newer)) = (&old.content, &new.content) else {
            return None;
        };
        let start = part.start.min(has.start);
        let end = part.end.max(has.end);
        let mut bytes = BytesMut::zeroed(usize::try_from(end - start).ok()?);
        for (range, data) in [(part, older), (has, newer)] {
            let at = usize::try_from(range.start - start).ok()?;
            bytes.get_mut(at..at + data.len())?.copy_from_slice(data);
        }
        let mut combined = Stored { content: Content::Inline(bytes.freeze()), ..new.clone() };
        combined.part = Some((start..end, *whole));
        if start == 0 && end == *whole {
            (combined.part, combined.status) = (None, 200);
        }
        Some((combined, self.engine.keeping(&self.plan, &old).tags))
    }
}

impl Engine {
    /// How long, with what and beside how many others it is kept.
    fn keeping(&self, plan: &Plan, stored: &Stored) -> Keeping {
        let ttl = stored.fresh.keep(conditional::has_validator(&stored.headers), &plan.rules);
        let mut tags = plan.tags.clone();
        for name in &self.settings.tag_headers {
            for line in stored.headers.get_all(name).iter().filter_map(fields::text) {
                let values = line.split([' ', '\t', ',']).filter(|value| !value.is_empty());
                tags.extend(values.map(|value| listed_tag(name, value)));
            }
        }
        Keeping { ttl, tags, most: self.settings.max_variants }
    }
}

/// The tag of a value that a header lists. An entry has one value of each tag, and a header lists many.
pub(crate) fn listed_tag(header: &http::HeaderName, value: &str) -> (String, String) {
    (format!("{header}:{value}"), String::new())
}
