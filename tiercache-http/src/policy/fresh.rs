//! How long a response is fresh, how old it is, and what may be done with it then (RFC 9111 §4.2).

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use tiercache_core::Timestamp;

use super::control::{RequestControl, ResponseControl};
use super::{Rules, date, fields};

/// The longest lifetime by heuristics.
const MOST_HEURISTIC: u64 = 24 * 3600;

/// When a response was asked for, and when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) asked: Timestamp,
    pub(crate) came: Timestamp,
}

/// What was decided about a response when it came; durations in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Freshness {
    /// When it came, in milliseconds since 1970.
    pub(crate) came: u64,
    /// How old it was then.
    pub(crate) initial_age: u64,
    /// At what age it turns stale.
    pub(crate) lifetime: u64,
    /// Never used without asking the origin.
    pub(crate) no_cache: bool,
    /// Never used stale.
    pub(crate) must_revalidate: bool,
    /// While it is fresh, reloading does not ask the origin (RFC 8246).
    pub(crate) immutable: bool,
    /// How long after it turned stale it is used while it is revalidated.
    pub(crate) while_revalidate: u64,
    /// How long after it turned stale it is used when the origin fails; `None` where nothing is said.
    pub(crate) if_error: Option<u64>,
}

/// What may be done with a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Answer with it.
    Fresh,
    /// Answer with it, stale as it is, as the request accepts that.
    Accepted,
    /// Answer with it, and revalidate it in the background.
    WhileRevalidating,
    /// Ask the origin first.
    Revalidate,
}

impl Freshness {
    /// Of a response with these headers, that may be stored.
    pub(crate) fn of(
        status: StatusCode,
        headers: &HeaderMap,
        control: &ResponseControl,
        times: Times,
        rules: &Rules,
    ) -> Self {
        let came = times.came.as_millis();
        let lifetime = rules.ttl.map_or_else(
            || lifetime(status, headers, control, times, rules).unwrap_or(0).saturating_mul(1000),
            millis,
        );
        let strict = control.must_revalidate
            || control.proxy_revalidate
            // RFC 9111 §5.2.2.10: for a shared cache s-maxage says proxy-revalidate, too.
            || control.s_maxage.is_some();
        Self {
            came,
            initial_age: initial_age(headers, times),
            lifetime,
            no_cache: control.no_cache,
            must_revalidate: strict,
            immutable: control.immutable,
            while_revalidate: control.stale_while_revalidate.unwrap_or(0).saturating_mul(1000),
            if_error: control.stale_if_error.map(|seconds| seconds.saturating_mul(1000)),
        }
    }

    /// Its age at `now`, in milliseconds.
    pub(crate) fn age(&self, now: Timestamp) -> u64 {
        self.initial_age.saturating_add(now.as_millis().saturating_sub(self.came))
    }

    /// How long it has been stale; `None` while it is fresh.
    pub(crate) fn staleness(&self, now: Timestamp) -> Option<u64> {
        let age = self.age(now);
        (age >= self.lifetime).then(|| age - self.lifetime)
    }

    /// How much longer it is fresh, in milliseconds; negative once it is stale.
    pub(crate) fn ttl(&self, now: Timestamp) -> i64 {
        let clamp = |millis: u64| i64::try_from(millis).unwrap_or(i64::MAX / 4);
        clamp(self.lifetime) - clamp(self.age(now))
    }

    /// What a request may do with it.
    pub(crate) fn usable(&self, request: &RequestControl, now: Timestamp) -> Use {
        let age = self.age(now);
        let secs = |seconds: u64| seconds.saturating_mul(1000);
        if self.no_cache || request.no_cache || request.no_store {
            return Use::Revalidate;
        }
        let settled = self.immutable && self.staleness(now).is_none();
        if request.max_age.is_some_and(|most| age > secs(most) && !settled)
            || request.min_fresh.is_some_and(|least| self.lifetime.saturating_sub(age) < secs(least))
        {
            return Use::Revalidate;
        }
        let Some(stale) = self.staleness(now) else { return Use::Fresh };
        if self.must_revalidate {
            return Use::Revalidate;
        }
        if request.max_stale.is_some_and(|most| stale <= secs(most)) {
            return Use::Accepted;
        }
        if stale < self.while_revalidate { Use::WhileRevalidating } else { Use::Revalidate }
    }

    /// Whether it may answer when the origin failed (RFC 5861 §4; RFC 9111 §4.2.4).
    pub(crate) fn usable_on_error(&self, request: &RequestControl, now: Timestamp, rules: &Rules) -> bool {
        if self.no_cache || self.must_revalidate || request.no_cache || request.no_store {
            return false;
        }
        let Some(stale) = self.staleness(now) else { return true };
        let windows = [self.if_error, request.stale_if_error.map(|seconds| seconds.saturating_mul(1000))];
        match windows.into_iter().flatten().max() {
            Some(window) => stale < window,
            None => rules.stale_on_error,
        }
    }

    /// How long it is worth keeping: fresh, in a window of staleness, and to be revalidated.
    pub(crate) fn keep(&self, can_validate: bool, rules: &Rules) -> Duration {
        let after = self.while_revalidate.max(self.if_error.unwrap_or(0));
        let after =
            after.max(if can_validate || rules.stale_on_error { millis(rules.keep_stale) } else { 0 });
        Duration::from_millis(self.lifetime.saturating_sub(self.initial_age).saturating_add(after).max(1000))
    }
}

/// In seconds; `None` when nothing says and heuristics do not.
pub(crate) fn lifetime(
    status: StatusCode,
    headers: &HeaderMap,
    control: &ResponseControl,
    times: Times,
    rules: &Rules,
) -> Option<u64> {
    explicit(headers, control, times).or_else(|| {
        let by_rule = rules.negative.iter().find(|(of, _)| *of == status).map(|(_, ttl)| ttl.as_secs());
        by_rule.or_else(|| rules.heuristics.then(|| heuristic(status, headers, control, times)).flatten())
    })
}

/// What the response itself says.
pub(crate) fn explicit(headers: &HeaderMap, control: &ResponseControl, times: Times) -> Option<u64> {
    if let Some(seconds) = control.s_maxage.or(control.max_age) {
        return Some(seconds);
    }
    if control.targeted || !headers.contains_key(header::EXPIRES) {
        return None;
    }
    // One that cannot be read is in the past (RFC 9111 §5.3).
    let Some(expires) = date::field(headers, &header::EXPIRES) else { return Some(0) };
    Some(expires.saturating_sub(dated(headers, times)))
}

/// A tenth of the time since it was changed (RFC 9111 §4.2.2).
fn heuristic(
    status: StatusCode,
    headers: &HeaderMap,
    control: &ResponseControl,
    times: Times,
) -> Option<u64> {
    if !is_heuristic(status) && !control.public {
        return None;
    }
    let changed = date::field(headers, &header::LAST_MODIFIED)?;
    Some((dated(headers, times).saturating_sub(changed) / 10).min(MOST_HEURISTIC))
}

/// Statuses that may be given a lifetime (RFC 9110 §15.1).
pub(crate) fn is_heuristic(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

fn dated(headers: &HeaderMap, times: Times) -> u64 {
    date::field(headers, &header::DATE).unwrap_or(times.came.as_millis() / 1000)
}

/// Its age when it came (RFC 9111 §4.2.3), in milliseconds.
fn initial_age(headers: &HeaderMap, times: Times) -> u64 {
    let came = times.came.as_millis();
    let apparent =
        date::field(headers, &header::DATE).map_or(0, |date| (came / 1000).saturating_sub(date) * 1000);
    let delay = millis(times.came.since(times.asked));
    let said = fields::age(headers).map_or(0, |seconds| seconds * 1000);
    apparent.max(said.saturating_add(delay))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{headers, rules};
    use super::*;
    use crate::Profile;

    /// 2023-11-14 22:13:20, as the manual clock begins.
    const NOW: u64 = 1_700_000_000;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn freshness(profile: Profile, status: u16, lines: &[(&str, &str)]) -> Freshness {
        freshness_by(&rules(profile), status, lines)
    }

    fn freshness_by(rules: &Rules, status: u16, lines: &[(&str, &str)]) -> Freshness {
        let headers = headers(lines);
        let control = ResponseControl::of(&headers, rules.shared);
        let times = Times { asked: at(NOW), came: at(NOW) };
        Freshness::of(StatusCode::from_u16(status).unwrap(), &headers, &control, times, rules)
    }

    fn dated(after: i64) -> String {
        date::value(at(NOW.saturating_add_signed(after))).to_str().unwrap().to_owned()
    }

    #[test]
    fn lifetimes_come_from_the_most_specific_statement() {
        let (now, past, future) = (dated(0), dated(-7200), dated(300));
        for (lines, expected) in [
            (vec![("cache-control", "max-age=3600")], 3600),
            (vec![("cache-control", "max-age=3600, s-maxage=1")], 1),
            (vec![("cache-control", "max-age=1, s-maxage=3600")], 3600),
            (vec![("cache-control", "max-age=3600"), ("expires", &past), ("date", &now)], 3600),
            (vec![("cache-control", "max-age=0"), ("expires", &future)], 0),
            (vec![("expires", &future), ("date", &now)], 300),
            (vec![("expires", &future)], 300),
            (vec![("expires", &future), ("date", "foo")], 300),
            (vec![("expires", "0"), ("date", &now)], 0),
            (vec![("expires", &future), ("expires", &future)], 0),
            (vec![("cdn-cache-control", "max-age=10"), ("cache-control", "max-age=3600")], 10),
            (vec![("cdn-cache-control", "public"), ("expires", &future)], 0),
        ] {
            assert_eq!(freshness(Profile::Default, 200, &lines).lifetime, expected * 1000, "{lines:?}");
        }
    }

    #[test]
    fn for_a_private_cache_max_age_counts_and_only_must_revalidate_forbids_stale_answers() {
        let own = Rules { shared: false, ..rules(Profile::Default) };
        for (lines, lifetime, strict) in [
            (&[("cache-control", "max-age=3600, s-maxage=1")][..], 3600, false),
            (&[("cache-control", "max-age=1, s-maxage=3600, proxy-revalidate")], 1, false),
            (&[("cache-control", "max-age=60, must-revalidate")], 60, true),
            (&[("cdn-cache-control", "max-age=10"), ("cache-control", "private, max-age=20")], 20, false),
            (&[("cache-control", "s-maxage=60")], 0, false),
        ] {
            let fresh = freshness_by(&own, 200, lines);
            assert_eq!((fresh.lifetime, fresh.must_revalidate), (lifetime * 1000, strict), "{lines:?}");
        }
    }

    #[test]
    fn heuristics_are_of_the_strict_profile_and_of_known_statuses() {
        let (now, changed) = (dated(0), dated(-1000));
        let lines = [("date", now.as_str()), ("last-modified", &changed)];
        let public = [lines[0], lines[1], ("cache-control", "public")];
        for (profile, status, lines, expected) in [
            (Profile::Rfc9111, 200, &lines[..], 100),
            (Profile::Rfc9111, 404, &lines, 100),
            (Profile::Rfc9111, 201, &lines, 0),
            (Profile::Rfc9111, 599, &lines, 0),
            (Profile::Rfc9111, 599, &public, 100),
            (Profile::Default, 200, &lines, 0),
            (Profile::Default, 200, &public, 0),
        ] {
            assert_eq!(freshness(profile, status, lines).lifetime, expected * 1000, "{status} {lines:?}");
        }
    }

    #[test]
    fn age_is_what_was_said_or_what_the_date_shows_whichever_is_more() {
        let (now, old, ahead) = (dated(0), dated(-50), dated(10));
        for (lines, expected) in [
            (vec![("date", now.as_str())], 0),
            (vec![("date", &now), ("age", "30")], 30),
            (vec![("date", &old), ("age", "30")], 50),
            (vec![("date", &ahead), ("age", "15")], 15),
            (vec![("age", "abc"), ("date", &old)], 50),
        ] {
            let fresh = freshness(Profile::Default, 200, &lines);
            assert_eq!(fresh.age(at(NOW)), expected * 1000, "{lines:?}");
            assert_eq!(fresh.age(at(NOW + 7)), (expected + 7) * 1000, "{lines:?}");
        }
    }

    #[test]
    fn what_requests_accept_decides_what_they_get() {
        let request = |value: &str| RequestControl::of(&headers(&[("cache-control", value)]));
        let response = |value: &str| freshness(Profile::Default, 200, &[("cache-control", value)]);
        for (stored, later, asked, expected) in [
            ("max-age=100", 99, "", Use::Fresh),
            ("max-age=100", 100, "", Use::Revalidate),
            ("max-age=100", 5, "max-age=4", Use::Revalidate),
            ("max-age=100", 5, "max-age=5", Use::Fresh),
            ("max-age=100, immutable", 5, "max-age=0", Use::Fresh),
            ("max-age=100, immutable", 100, "max-age=0", Use::Revalidate),
            ("max-age=100, immutable", 5, "no-cache", Use::Revalidate),
            ("max-age=100", 5, "min-fresh=96", Use::Revalidate),
            ("max-age=100", 5, "min-fresh=95", Use::Fresh),
            ("max-age=100", 5, "no-cache", Use::Revalidate),
            ("max-age=100, no-cache", 5, "", Use::Revalidate),
            ("max-age=100", 110, "max-stale=10", Use::Accepted),
            ("max-age=100", 111, "max-stale=10", Use::Revalidate),
            ("max-age=100", 9999, "max-stale", Use::Accepted),
            ("max-age=100, must-revalidate", 110, "max-stale", Use::Revalidate),
            ("s-maxage=100", 110, "max-stale", Use::Revalidate),
            ("max-age=100, stale-while-revalidate=10", 109, "", Use::WhileRevalidating),
            ("max-age=100, stale-while-revalidate=10", 110, "", Use::Revalidate),
            ("max-age=100, stale-while-revalidate=10, must-revalidate", 101, "", Use::Revalidate),
        ] {
            let found = response(stored).usable(&request(asked), at(NOW + later));
            assert_eq!(found, expected, "{stored} after {later} s, asked {asked}");
        }
    }

    #[test]
    fn stale_answers_an_error_only_where_that_is_allowed() {
        let none = RequestControl::default();
        for (profile, stored, later, expected) in [
            (Profile::Default, "max-age=2", 3, false),
            (Profile::Rfc9111, "max-age=2", 3, true),
            (Profile::Default, "max-age=2, stale-if-error=60", 61, true),
            (Profile::Default, "max-age=2, stale-if-error=60", 62, false),
            (Profile::Rfc9111, "max-age=2, stale-if-error=60", 62, false),
            (Profile::Rfc9111, "max-age=2, must-revalidate", 3, false),
            (Profile::Rfc9111, "max-age=2, proxy-revalidate", 3, false),
            (Profile::Rfc9111, "max-age=2, s-maxage=2", 3, false),
            (Profile::Rfc9111, "max-age=2, no-cache", 3, false),
        ] {
            let fresh = freshness(profile, 200, &[("cache-control", stored)]);
            assert_eq!(fresh.usable_on_error(&none, at(NOW + later), &rules(profile)), expected, "{stored}");
        }
    }
}
