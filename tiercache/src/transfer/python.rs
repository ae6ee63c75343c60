//! Plain values that Python has pickled: bytes, text and numbers. Nothing is ever run, and nothing else is read.
//!
//! The format is that of CPython's `Lib/pickletools.py`, protocols 0 to 5.

use bytes::Bytes;

/// A value that means the same outside Python.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Plain {
    Bytes(Bytes),
    Text(String),
    Integer(i64),
    /// One that does not fit, as it is written.
    BigInteger(String),
    Float(f64),
    Bool(bool),
    /// `None`.
    Nothing,
}

impl Plain {
    /// As it is kept, with its media type.
    pub(super) fn value(self) -> Option<(Bytes, Option<&'static str>)> {
        const TEXT: Option<&str> = Some("text/plain; charset=utf-8");
        Some(match self {
            Self::Bytes(bytes) => (bytes, None),
            Self::Text(text) => (text.into(), TEXT),
            Self::Integer(number) => (number.to_string().into(), TEXT),
            Self::BigInteger(number) => (number.into(), TEXT),
            Self::Float(number) => (float(number).into(), TEXT),
            Self::Bool(truth) => (if truth { "true" } else { "false" }.into(), TEXT),
            Self::Nothing => return None,
        })
    }
}

/// A number as Python prints it, which is the shortest text that reads as the same.
pub(super) fn float(number: f64) -> String {
    let text = format!("{number:?}");
    match number {
        _ if number.is_nan() => "nan".into(),
        _ if number.is_infinite() => if number > 0.0 { "inf" } else { "-inf" }.into(),
        _ => text,
    }
}

/// Reads a pickle of one plain value; `None` when it is of anything else.
pub(super) fn unpickle(bytes: &[u8]) -> Option<Plain> {
    let mut input = Input(bytes);
    let mut value = None;
    loop {
        let opcode = input.byte()?;
        let read = match opcode {
            // PROTO, FRAME, and MEMOIZE with its elders, which remember a value for later use: of no use here.
            0x80 | b'q' => input.take(1).map(|_| None),
            0x95 => input.take(8).map(|_| None),
            b'r' => input.take(4).map(|_| None),
            b'p' => input.line().map(|_| None),
            0x94 => Some(None),
            b'.' => return value.filter(|_| input.0.is_empty()),
            _ => Some(Some(plain(opcode, &mut input)?)),
        }?;
        if let Some(read) = read
            && value.replace(read).is_some()
        {
            return None;
        }
    }
}

fn plain(opcode: u8, input: &mut Input<'_>) -> Option<Plain> {
    Some(match opcode {
        b'N' => Plain::Nothing,
        0x88 => Plain::Bool(true),
        0x89 => Plain::Bool(false),
        b'K' => Plain::Integer(input.byte()?.into()),
        b'M' => Plain::Integer(u16::from_le_bytes(input.array()?).into()),
        b'J' => Plain::Integer(i32::from_le_bytes(input.array()?).into()),
        0x8a => {
            let length = input.byte()?;
            integer(input.take(length.into())?)?
        }
        b'I' => match input.line()? {
            "00" => Plain::Bool(false),
            "01" => Plain::Bool(true),
            number => Plain::Integer(number.parse().ok()?),
        },
        b'L' => Plain::Integer(input.line()?.trim_end_matches('L').parse().ok()?),
        b'G' => Plain::Float(f64::from_be_bytes(input.array()?)),
        b'F' => Plain::Float(input.line()?.parse().ok()?),
        // Bytes, text: with lengths of one, four and eight bytes. BYTEARRAY8 is bytes, too.
        b'C' | 0x8c => {
            let length = input.byte()?;
            blob(input.take(length.into())?, opcode == 0x8c)?
        }
        b'B' | b'X' => {
            let length = u32::from_le_bytes(input.array()?);
            blob(input.take(usize::try_from(length).ok()?)?, opcode == b'X')?
        }
        0x8e | 0x8d | 0x96 => {
            let length = u64::from_le_bytes(input.array()?);
            blob(input.take(usize::try_from(length).ok()?)?, opcode == 0x8d)?
        }
        _ => return None,
    })
}

fn blob(bytes: &[u8], is_text: bool) -> Option<Plain> {
    // Python can pickle halves of surrogate pairs, which are no text elsewhere.
    Some(match is_text {
        true => Plain::Text(std::str::from_utf8(bytes).ok()?.to_owned()),
        false => Plain::Bytes(Bytes::copy_from_slice(bytes)),
    })
}

/// A whole number in two's complement, lowest byte first; at most 16 bytes.
fn integer(bytes: &[u8]) -> Option<Plain> {
    let sign = bytes.last().map_or(0, |last| if last & 0x80 == 0 { 0 } else { 0xff });
    let mut whole = [sign; 16];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let number = i128::from_le_bytes(whole);
    Some(i64::try_from(number).map_or_else(|_| Plain::BigInteger(number.to_string()), Plain::Integer))
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn line(&mut self) -> Option<&'a str> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line = self.take(end)?;
        self.take(1)?;
        std::str::from_utf8(line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_pickles_is_read() {
        let text = |text: &str| Plain::Text(text.to_owned());
        let bytes = |bytes: &'static [u8]| Plain::Bytes(Bytes::from_static(bytes));
        let cases: [(&[u8], Plain); 16] = [
            (b"\x80\x05N.", Plain::Nothing),
            (b"\x80\x05\x88.", Plain::Bool(true)),
            (b"\x80\x05K\x0c.", Plain::Integer(12)),
            (b"\x80\x02M\x39\x30.", Plain::Integer(12_345)),
            (b"\x80\x04J\xff\xff\xff\xff.", Plain::Integer(-1)),
            (b"\x80\x05\x8a\x05\x00\x00\x00\x00\x80.", Plain::Integer(-(1 << 39))),
            (
                b"\x80\x05\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8a\t\x00\x00\x00\x00\x00\x00\x00\x00@.",
                Plain::BigInteger((1i128 << 70).to_string()),
            ),
            (b"\x80\x05\x95\n\x00\x00\x00\x00\x00\x00\x00G?\xf8\x00\x00\x00\x00\x00\x00.", Plain::Float(1.5)),
            (b"\x80\x05\x95\t\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94.", text("hello")),
            (b"\x80\x05\x95\t\x00\x00\x00\x00\x00\x00\x00C\x05bytes\x94.", bytes(b"bytes")),
            (b"\x80\x03X\x02\x00\x00\x00\xc3\xbcq\x00.", text("\u{fc}")),
            (b"\x80\x03B\x01\x00\x00\x00xq\x00.", bytes(b"x")),
            (b"\x80\x04\x8e\x01\x00\x00\x00\x00\x00\x00\x00x\x94.", bytes(b"x")),
            (b"I01\n.", Plain::Bool(true)),
            (b"L7L\n.", Plain::Integer(7)),
            (b"F-2.5\n.", Plain::Float(-2.5)),
        ];
        for (pickle, value) in cases {
            assert_eq!(unpickle(pickle), Some(value), "{pickle:?}");
            for end in 0..pickle.len() {
                assert_eq!(unpickle(&pickle[..end]), None, "the first {end} of {pickle:?}");
            }
        }
    }

    #[test]
    fn nothing_else_is_read_let_alone_run() {
        let os_system = b"cos\nsystem\n(S'true'\ntR.";
        let list = b"\x80\x05\x95\x06\x00\x00\x00\x00\x00\x00\x00]\x94K\x01a.";
        let two = b"\x80\x05K\x01K\x02.";
        let behind = b"\x80\x05K\x01.K";
        let endless = b"\x80\x05\x8d\xff\xff\xff\xff\xff\xff\xff\xffx.";
        for pickle in [&os_system[..], list, two, behind, endless] {
            assert_eq!(unpickle(pickle), None, "{pickle:?}");
        }
    }

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        let cases = [
            (1.5, "1.5"),
            (3.0, "3.0"),
            (-0.1, "-0.1"),
            (1e22, "1e22"),
            (f64::NAN, "nan"),
            (f64::INFINITY, "inf"),
        ];
        for (number, text) in cases {
            assert_eq!(float(number), text);
        }
    }
}
