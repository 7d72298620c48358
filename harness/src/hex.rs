//! Bytes as hexadecimal digits, two for each byte, in order of their addresses; and addresses.

/// The digits of bytes.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of digits; `None` if there are other characters or an odd number of them.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| u8::try_from(c.to_digit(16)?).ok())
        .collect::<Option<_>>()?;
    let pairs = digits.len().is_multiple_of(2).then(|| digits.chunks_exact(2))?;
    Some(pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Parses an address: hexadecimal with `0x`, otherwise decimal. The error says what was expected.
pub fn address(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16),
        None => text.parse(),
    };
    number.map_err(|_| "expected a physical address such as 0x8af000".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_pairs_of_digits_is_refused() {
        for text in ["0", "+f", "0g", "00 ", "é"] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode(""), Some(Vec::new()));
        assert_eq!(decode("00Ff"), Some(vec![0, 0xff]));
    }

    #[test]
    fn addresses_are_hexadecimal_or_decimal() {
        assert_eq!(address("0x8af000"), Ok(0x8a_f000));
        assert_eq!(address("0x1_0000"), Ok(0x1_0000));
        assert_eq!(address("4096"), Ok(4096));
        assert!(address("8af000").is_err());
        assert!(address("-1").is_err());
        assert!(address("0x10000000000000000").is_err());
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
    }
}
