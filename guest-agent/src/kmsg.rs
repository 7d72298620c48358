//! Records of /dev/kmsg (Documentation/ABI/testing/dev-kmsg).

use crate::protocol::LogRecord;
use alloc::string::String;
use alloc::vec::Vec;

/// A record as /dev/kmsg gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who logged it: 0 for the kernel itself, 1 (LOG_USER) for user space that names nothing else.
    pub facility: u64,
    /// Its number; without gaps, unless records were overwritten.
    pub sequence: u64,
    /// Level, time and text.
    pub record: LogRecord,
}

/// Parses the result of one read: `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,...];TEXT`, then lines about the device.
/// `None` if it is something else.
pub fn parse(bytes: &[u8]) -> Option<Record> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(bytes.len());
    let line = bytes.get(..end)?;
    let semicolon = line.iter().position(|byte| *byte == b';')?;
    let prefix = core::str::from_utf8(line.get(..semicolon)?).ok()?;
    let mut fields = prefix.split(',').map(str::parse::<u64>);
    let (priority, sequence, time_us) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
    Some(Record {
        facility: priority >> 3,
        sequence,
        record: LogRecord {
            time_us,
            level: u8::try_from(priority & 7).ok()?,
            text: unescaped(line.get(semicolon + 1..)?),
        },
    })
}

/// Text with `\xHH` made the byte that it stands for: a line break, or what is not printable.
fn unescaped(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, behind @ ..] = rest {
        let escaped = match rest {
            [b'\\', b'x', high, low, ..] => hexadecimal(*high).zip(hexadecimal(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hexadecimal(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_kernel_gives() {
        let bytes = b"4,339,5140900,-,caller=T1;BUG: KFENCE: invalid read\\x0a\\xc3\\xa4;,\\x5c\n SUBSYSTEM=pci\n DEVICE=+pci\n";
        let record = parse(bytes).unwrap();
        assert_eq!((record.facility, record.sequence), (0, 339));
        assert_eq!((record.record.time_us, record.record.level), (5_140_900, 4));
        assert_eq!(record.record.text, "BUG: KFENCE: invalid read\n\u{e4};,\\");
        assert_eq!(parse(b"12,1,2,-;from user space").unwrap().facility, 1);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bytes in [
            &b""[..],
            b";",
            b"4,5;text",
            b"a,1,2,-;text",
            b"4,1,2,-",
            b"4,1,2,-\n;text",
        ] {
            assert_eq!(parse(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, text: Vec<u8>) {
            let _ = parse(&bytes);
            let mut record = b"6,1,2,-;".to_vec();
            record.extend(&text);
            // An escape is four bytes for one; the replacement of a byte that is no UTF-8 has three.
            prop_assert!(parse(&record).unwrap().record.text.len() <= 3 * text.len());
        }
    }
}
