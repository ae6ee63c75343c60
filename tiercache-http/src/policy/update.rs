//! What a 304 changes about the stored response (RFC 9111 §3.2, §4.3.4).

use http::{HeaderMap, HeaderName, header};

use super::fields;

/// Fields that describe the stored content, which a 304 does not bring.
const OF_CONTENT: [HeaderName; 3] = [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_RANGE];

/// The stored headers, with the new ones in place of those of the same name.
pub(crate) fn merged(stored: &HeaderMap, new: HeaderMap) -> HeaderMap {
    let mut new = fields::without_connection(new);
    OF_CONTENT.iter().for_each(|name| {
        new.remove(name);
    });
    let mut headers = stored.clone();
    // What was true of the older response: it is as old as the new one is.
    if !new.contains_key(header::AGE) {
        headers.remove(header::AGE);
    }
    let names: Vec<HeaderName> = new.keys().cloned().collect();
    for name in names {
        headers.remove(&name);
        for value in new.get_all(&name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::super::testing::headers;
    use super::*;

    #[test]
    fn new_fields_replace_old_ones_except_those_of_the_content() {
        let stored = headers(&[
            ("content-length", "36"),
            ("content-encoding", "gzip"),
            ("cache-control", "max-age=1"),
            ("x", "1"),
            ("x", "2"),
            ("age", "50"),
            ("kept", "yes"),
        ]);
        let new = headers(&[
            ("content-length", "10"),
            ("content-encoding", "br"),
            ("cache-control", "max-age=3600"),
            ("x", "3"),
            ("connection", "hop"),
            ("hop", "1"),
        ]);
        let expected = headers(&[
            ("content-length", "36"),
            ("content-encoding", "gzip"),
            ("cache-control", "max-age=3600"),
            ("x", "3"),
            ("kept", "yes"),
        ]);
        assert_eq!(merged(&stored, new), expected);
    }
}
