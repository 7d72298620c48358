//! Fields of packed little-endian structs, taken in order out of untrusted bytes.

use alloc::string::String;

/// Takes the fields of a struct from a byte slice. A field past the end reads as zero and sets [`Fields::short`].
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    short: bool,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            short: false,
        }
    }

    /// Whether a field past the end was asked for.
    pub(crate) fn short(&self) -> bool {
        self.short
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.rest.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.rest = rest;
                *field
            }
            None => {
                self.short = true;
                [0; N]
            }
        }
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn text<const N: usize>(&mut self) -> Text {
        Text::from_field(&self.array::<N>())
    }
}

/// A string from a fixed-size character array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    /// The characters before the terminator; bytes that are not UTF-8 are replaced.
    pub(crate) value: String,
    /// Whether there was a terminator.
    pub(crate) terminated: bool,
}

impl Text {
    pub(crate) fn from_field(bytes: &[u8]) -> Self {
        let length = bytes.iter().position(|&byte| byte == 0);
        let value = bytes.get(..length.unwrap_or(bytes.len())).unwrap_or_default();
        Self {
            value: String::from_utf8_lossy(value).into_owned(),
            terminated: length.is_some(),
        }
    }
}

/// The `u64` at `index` in an array of them, or zero past its end.
pub(crate) fn word(bytes: &[u8], index: usize) -> u64 {
    let start = index.saturating_mul(8);
    let word = bytes
        .get(start..start.saturating_add(8))
        .and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_past_the_end_are_noticed() {
        let mut fields = Fields::new(&[1, 0, 0, 0, 2, 0, b'a', 0, b'b']);
        assert_eq!((fields.u32(), fields.u16()), (1, 2));
        assert_eq!(
            fields.text::<3>(),
            Text {
                value: "a".into(),
                terminated: true
            }
        );
        assert!(!fields.short());
        assert_eq!(fields.u16(), 0);
        assert!(fields.short());
    }

    #[test]
    fn text_without_a_terminator_is_told() {
        assert_eq!(
            Text::from_field(b"ab"),
            Text {
                value: "ab".into(),
                terminated: false
            }
        );
    }
}
