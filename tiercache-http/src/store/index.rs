//! What is stored of one resource, by variant.

use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tiercache_core::Timestamp;

use super::Id;
use crate::policy::vary::{self, Selecting};

/// The most bytes of selecting fields that a variant may have.
const MOST_SELECTING: usize = 8 * 1024;

/// The variants of a resource, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Resource {
    /// Of the resource itself: made at random with it. Of one kept for an identity: that of the resource it was seen
    /// with, whose removal makes it void.
    pub(crate) epoch: u64,
    /// Until when it is kept for those that are void without it, in milliseconds since 1970.
    #[serde(default)]
    pub(crate) reserved: u64,
    pub(crate) variants: Vec<Variant>,
}

/// Where a response is, and which requests it is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Variant {
    pub(crate) id: Id,
    pub(crate) selecting: Selecting,
    /// Until when it is worth looking for, in milliseconds since 1970.
    pub(crate) until: u64,
    /// Whether it has only a part of the representation.
    pub(crate) partial: bool,
    /// Whose pieces its body is, and how many.
    pub(crate) pieces: Option<(Id, u32)>,
}

impl Variant {
    /// Whether it can be remembered: what strangers send may be long.
    pub(crate) fn fits(&self) -> bool {
        let value = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
        self.selecting.iter().map(|(name, held)| name.len() + value(held)).sum::<usize>() <= MOST_SELECTING
    }
}

impl Resource {
    /// The variants for such a request, the newest first.
    pub(crate) fn matching(&self, request: &HeaderMap, now: Timestamp) -> impl Iterator<Item = &Variant> {
        self.live(now).filter(|variant| vary::matches(&variant.selecting, request))
    }

    /// Whether there are variants for other requests.
    pub(crate) fn has_others(&self, request: &HeaderMap, now: Timestamp) -> bool {
        self.live(now).any(|variant| !vary::matches(&variant.selecting, request))
    }

    fn live(&self, now: Timestamp) -> impl Iterator<Item = &Variant> {
        self.variants.iter().filter(move |variant| variant.until > now.as_millis())
    }

    /// Puts a variant in front, in place of those that were for the same request, and of the oldest beyond `most`.
    /// Returns what is not needed any more. A part replaces only
    /// parts.
    pub(crate) fn put(
        &mut self,
        variant: Variant,
        request: &HeaderMap,
        most: usize,
        now: Timestamp,
    ) -> Vec<Variant> {
        let is_old = |old: &Variant| {
            old.until <= now.as_millis()
                || ((old.partial || !variant.partial) && vary::matches(&old.selecting, request))
        };
        let (mut gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.variants).into_iter().partition(is_old);
        self.variants = std::iter::once(variant).chain(kept).collect();
        gone.extend(self.variants.drain(most.max(1).min(self.variants.len())..));
        gone
    }

    /// Until when any of it is worth looking for.
    pub(crate) fn until(&self) -> u64 {
        self.variants.iter().map(|variant| variant.until).max().unwrap_or(0).max(self.reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::headers;

    fn variant(id: u8, foo: &str, partial: bool) -> (Variant, HeaderMap) {
        let request = headers(&[("foo", foo)]);
        let selecting = vary::selecting(&request, &headers(&[("vary", "foo")]));
        (Variant { id: [id; 16], selecting, until: 100, partial, pieces: None }, request)
    }

    #[test]
    fn a_variant_takes_the_place_of_that_for_the_same_request() {
        let now = Timestamp::from_millis(1);
        let mut resource = Resource::default();
        let mut put = |id, foo, partial| {
            let (variant, request) = variant(id, foo, partial);
            let gone = resource.put(variant, &request, 3, now);
            gone.iter().map(|gone| gone.id[0]).collect::<Vec<_>>()
        };
        assert!(put(1, "a", false).is_empty());
        assert!(put(2, "b", false).is_empty());
        assert_eq!(put(3, "a", false), [1]);
        assert!(put(4, "a", true).is_empty(), "a part does not replace the whole");
        assert_eq!(put(5, "c", false), [2], "the bound counts");
        assert_eq!(put(6, "a", false), [4, 3]);
        let found: Vec<_> =
            resource.matching(&headers(&[("foo", "a")]), now).map(|found| found.id[0]).collect();
        assert_eq!(found, [6]);
        assert_eq!(resource.matching(&headers(&[("foo", "a")]), Timestamp::from_millis(100)).count(), 0);
    }
}
