//! Whether a response may be stored (RFC 9111 §3), and whether a request may meet the store at all.

use http::{HeaderMap, Method, StatusCode, header};

use super::control::{RequestControl, ResponseControl};
use super::fresh::{self, Times};
use super::{Rules, target, vary};

/// Whether what is stored may answer such a request, and its response be stored.
pub(crate) fn may_meet_store(method: &Method, headers: &HeaderMap, has_body: bool, rules: &Rules) -> bool {
    let somebody = headers.contains_key(header::AUTHORIZATION) || headers.contains_key(header::COOKIE);
    let plain = matches!(*method, Method::GET | Method::HEAD) && !has_body;
    // What these ask is for the origin: a comparison with what it has, another protocol.
    let beyond = [header::IF_MATCH, header::IF_UNMODIFIED_SINCE, header::UPGRADE];
    plain
        && beyond.iter().all(|name| !headers.contains_key(name))
        && !target::overrides_method(headers)
        && (!rules.cautious || !rules.shared || rules.identified || !somebody)
}

/// Whether the response to a request with these headers may be stored, and is worth it.
pub(crate) fn may_store(
    request: &HeaderMap,
    status: StatusCode,
    headers: &HeaderMap,
    times: Times,
    rules: &Rules,
) -> bool {
    let control = ResponseControl::of(headers, rules.shared);
    if status.is_informational() || status == StatusCode::NOT_MODIFIED || vary::is_star(headers) {
        return false;
    }
    if control.must_understand && !is_understood(status) {
        return false;
    }
    // RFC 9111 §5.2.2.3: who understands the status may disregard no-store, where the letter counts.
    let no_store = control.no_store && (!control.must_understand || rules.cautious);
    if no_store || RequestControl::of(request).no_store {
        return false;
    }
    if rules.identified {
        return is_stated(status, headers, &control, times, rules)
            && is_useful(status, headers, &control, times, rules);
    }
    if control.private || (rules.cautious && control.private_fields) {
        return false;
    }
    if rules.cautious && headers.contains_key(header::SET_COOKIE) {
        return false;
    }
    let allows = control.public || control.must_revalidate || control.s_maxage.is_some();
    if rules.shared && request.contains_key(header::AUTHORIZATION) && (rules.cautious || !allows) {
        return false;
    }
    is_stated(status, headers, &control, times, rules) && is_useful(status, headers, &control, times, rules)
}

/// Whether the response, or a rule, says that it may be stored.
fn is_stated(
    status: StatusCode,
    headers: &HeaderMap,
    control: &ResponseControl,
    times: Times,
    rules: &Rules,
) -> bool {
    let chosen = rules.negative.iter().any(|(of, _)| *of == status);
    let ordinary =
        matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 302 | 303 | 307 | 308 | 404 | 410);
    if rules.cautious && !ordinary && !chosen {
        // Whoever can provoke an error would put it in everybody's way.
        return false;
    }
    let stated = control.public || control.no_cache || fresh::explicit(headers, control, times).is_some();
    stated || chosen || (rules.ttl.is_some() && ordinary) || (rules.heuristics && fresh::is_heuristic(status))
}

/// Whether it could ever answer: fresh for a while, or to be validated.
fn is_useful(
    status: StatusCode,
    headers: &HeaderMap,
    control: &ResponseControl,
    times: Times,
    rules: &Rules,
) -> bool {
    let fresh = rules.ttl.is_some()
        || (!control.no_cache
            && fresh::lifetime(status, headers, control, times, rules).is_some_and(|life| life > 0));
    fresh || headers.contains_key(header::ETAG) || headers.contains_key(header::LAST_MODIFIED)
}

/// Statuses whose meaning for caches is known here (RFC 9110 §15).
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=206 | 300..=305 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 500..=505)
}

/// Whether the response to a POST answers later GETs (RFC 9110 §9.3.3): fresh by its own word, and of the target.
pub(crate) fn answers_later_get(
    status: StatusCode,
    headers: &HeaderMap,
    times: Times,
    is_of_target: bool,
    rules: &Rules,
) -> bool {
    let control = ResponseControl::of(headers, rules.shared);
    let fresh = fresh::explicit(headers, &control, times).is_some_and(|life| life > 0) && !control.no_cache;
    !rules.cautious && is_of_target && fresh && status == StatusCode::OK
}

#[cfg(test)]
mod tests {
    use tiercache_core::Timestamp;

    use super::super::testing::{headers, rules};
    use super::*;
    use crate::Profile::{self, Default, Rfc9111};

    fn stored(
        profile: Profile,
        identified: bool,
        request: &[(&str, &str)],
        status: u16,
        response: &[(&str, &str)],
    ) -> bool {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let rules = Rules { identified, ..rules(profile) };
        let status = StatusCode::from_u16(status).unwrap();
        may_store(&headers(request), status, &headers(response), Times { asked: now, came: now }, &rules)
    }

    #[test]
    fn responses_are_stored_when_they_say_so_and_by_the_letter_when_they_may_be() {
        const FRESH: (&str, &str) = ("cache-control", "max-age=60");
        const ETAG: (&str, &str) = ("etag", "\"a\"");
        const CHANGED: (&str, &str) = ("last-modified", "Tue, 14 Nov 2023 20:13:20 GMT");
        for (status, response, by_default, by_letter) in [
            (200, &[FRESH][..], true, true),
            (200, &[], false, false),
            (200, &[ETAG], false, true),
            (200, &[CHANGED], false, true),
            (200, &[("cache-control", "no-cache"), ETAG], true, true),
            (200, &[("cache-control", "no-cache")], false, false),
            (200, &[("cache-control", "max-age=0")], false, false),
            (200, &[("cache-control", "max-age=0"), ETAG], true, true),
            (200, &[("cache-control", "max-age=60, no-store")], false, false),
            (200, &[("cache-control", "max-age=60, no-store, must-understand")], false, true),
            (599, &[("cache-control", "max-age=60, no-store, must-understand")], false, false),
            (200, &[("cache-control", "max-age=60, private")], false, false),
            (200, &[("cache-control", "max-age=60, private=\"a\"")], false, true),
            (200, &[FRESH, ("cdn-cache-control", "private")], false, false),
            (200, &[FRESH, ("cdn-cache-control", "no-store")], false, false),
            (200, &[FRESH, ("set-cookie", "a=b")], false, true),
            (200, &[FRESH, ("vary", "*")], false, false),
            (200, &[FRESH, ("vary", "foo, *")], false, false),
            (404, &[FRESH], true, true),
            (500, &[FRESH], false, true),
            (400, &[FRESH], false, true),
            (599, &[FRESH], false, true),
            (304, &[FRESH], false, false),
            (103, &[FRESH], false, false),
            (201, &[CHANGED], false, false),
            (503, &[CHANGED], false, false),
        ] {
            assert_eq!(
                stored(Default, false, &[], status, response),
                by_default,
                "default {status} {response:?}"
            );
            assert_eq!(
                stored(Rfc9111, false, &[], status, response),
                by_letter,
                "letter {status} {response:?}"
            );
        }
    }

    #[test]
    fn what_could_be_somebodys_own_needs_a_statement_or_an_identity() {
        let (who, fresh) = (&[("authorization", "FOO")][..], ("cache-control", "max-age=60"));
        for (response, by_letter) in [
            (fresh, false),
            (("cache-control", "max-age=60, public"), true),
            (("cache-control", "max-age=60, must-revalidate"), true),
            (("cache-control", "s-maxage=60"), true),
        ] {
            assert!(!stored(Default, false, who, 200, &[response]), "{response:?}");
            assert_eq!(stored(Rfc9111, false, who, 200, &[response]), by_letter, "{response:?}");
            assert!(stored(Default, true, who, 200, &[response]), "{response:?}");
        }
        assert!(stored(Default, true, who, 200, &[("cache-control", "private, max-age=60")]));
        assert!(!stored(Default, true, who, 200, &[("cache-control", "no-store, max-age=60")]));
        assert!(!stored(Rfc9111, false, &[("cache-control", "no-store")], 200, &[fresh]));
    }

    #[test]
    fn a_private_cache_stores_what_is_for_its_user_only() {
        const FRESH: (&str, &str) = ("cache-control", "max-age=60");
        const CHANGED: (&str, &str) = ("last-modified", "Tue, 14 Nov 2023 20:13:20 GMT");
        let now = Timestamp::from_millis(1_700_000_000_000);
        let keeps = |profile, shared, request: &[(&str, &str)], response: &[(&str, &str)]| {
            let rules = Rules { shared, ..rules(profile) };
            let times = Times { asked: now, came: now };
            may_store(&headers(request), StatusCode::OK, &headers(response), times, &rules)
        };
        let who = [("authorization", "FOO"), ("cookie", "a=b")];
        // By default and by the letter; a shared cache, and a private one.
        for (response, shared, private) in [
            (&[FRESH][..], [false, false], [true, true]),
            (&[("cache-control", "private, max-age=60")], [false, false], [true, true]),
            (&[("cache-control", "private"), CHANGED], [false, false], [true, true]),
            (&[("cache-control", "private=\"a\", max-age=60")], [false, false], [true, true]),
            (&[("cache-control", "s-maxage=60")], [false, true], [false, false]),
            (&[("cache-control", "s-maxage=60"), CHANGED], [false, true], [false, true]),
            (&[FRESH, ("cdn-cache-control", "no-store")], [false, false], [true, true]),
            (&[FRESH, ("set-cookie", "a=b")], [false, false], [false, true]),
            (&[("cache-control", "no-store, private, max-age=60")], [false, false], [false, false]),
            (&[FRESH, ("vary", "*")], [false, false], [false, false]),
            (&[], [false, false], [false, false]),
        ] {
            for (kind, expected) in [(true, shared), (false, private)] {
                let kept = [Default, Rfc9111].map(|profile| keeps(profile, kind, &who, response));
                assert_eq!(kept, expected, "shared: {kind}, {response:?}");
            }
        }
        let rules = Rules { shared: false, ..rules(Default) };
        for who in who {
            assert!(may_meet_store(&Method::GET, &headers(&[who]), false, &rules), "{who:?}");
        }
    }

    #[test]
    fn statuses_can_be_chosen_to_be_remembered() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let negative = [(StatusCode::INTERNAL_SERVER_ERROR, std::time::Duration::from_secs(3))].into();
        let rules = Rules { negative, ..rules(Default) };
        let times = Times { asked: now, came: now };
        let store = |response: &[(&str, &str)]| {
            may_store(&HeaderMap::new(), StatusCode::INTERNAL_SERVER_ERROR, &headers(response), times, &rules)
        };
        assert!(store(&[]));
        assert!(!store(&[("cache-control", "no-store")]));
        assert!(!store(&[("set-cookie", "a=b")]));
    }

    #[test]
    fn the_store_is_met_by_plain_reads_only() {
        let meets = |profile, method, lines: &[(&str, &str)], body| {
            may_meet_store(&method, &headers(lines), body, &rules(profile))
        };
        for profile in [Default, Rfc9111] {
            assert!(meets(profile, Method::GET, &[], false));
            assert!(meets(profile, Method::HEAD, &[], false));
            assert!(!meets(profile, Method::POST, &[], false));
            assert!(!meets(profile, Method::GET, &[], true), "a body nobody keys");
            for beyond in
                [("if-match", "\"a\""), ("upgrade", "websocket"), ("x-http-method-override", "DELETE")]
            {
                assert!(!meets(profile, Method::GET, &[beyond], false), "{beyond:?}");
            }
            for who in [("cookie", "a=b"), ("authorization", "x")] {
                assert_eq!(meets(profile, Method::GET, &[who], false), profile == Rfc9111, "{who:?}");
            }
        }
    }
}
