//! Keys in addresses: any bytes, percent-encoded.

/// The bytes `text` stands for; `None` when a `%` is not followed by two digits.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => (digit(rest.next()?)? << 4) | digit(rest.next()?)?,
            other => other,
        });
    }
    Some(bytes)
}

/// The bytes as they may stand in a path or a query; slashes stay.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                text.push(byte.into())
            }
            other => {
                text.push('%');
                for half in [other >> 4, other & 15] {
                    text.push(char::from(b"0123456789ABCDEF"[usize::from(half)]));
                }
            }
        }
    }
    text
}

/// The pairs of a query; a plus stands for a blank.
pub(crate) fn query(text: &str) -> Option<Vec<(String, Vec<u8>)>> {
    text.split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let plain = |text: &str| decode(&text.replace('+', "%20"));
            Some((String::from_utf8(plain(name)?).ok()?, plain(value)?))
        })
        .collect()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_an_address() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
        assert_eq!(encode("a/ü b".as_bytes()), "a/%C3%BC%20b");
        assert_eq!(decode("a%2Fb+c"), Some(b"a/b+c".to_vec()));
        for text in ["%", "%4", "%zz", "a%"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    #[test]
    fn a_query_is_taken_apart() {
        let pairs = query("ttl=2h&tag.type=a%26b+c&flag").expect("a query");
        assert_eq!(pairs[0], ("ttl".into(), b"2h".to_vec()));
        assert_eq!(pairs[1], ("tag.type".into(), b"a&b c".to_vec()));
        assert_eq!(pairs[2], ("flag".into(), Vec::new()));
        assert_eq!(query("a=%zz"), None);
    }
}
