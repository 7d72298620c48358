//! Values of fields as text.

use kho_core::fields::{Value, unpadded};

use crate::hex;

/// A value as scenarios and command lines name it: a number, `text:kho-v9` or `hex:6b686f`.
pub fn written(value: &Value) -> String {
    match value {
        Value::Number(number) => format!("{number:#x}"),
        Value::Bytes(bytes) => {
            let text = unpadded(bytes);
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.,".contains(byte);
            if text.iter().all(plain) {
                return format!("text:{}", String::from_utf8_lossy(text));
            }
            format!("hex:{}", hex::encode(text))
        }
    }
}

/// The value of [`written`]; `None` if the text is none.
pub fn literal(text: &str) -> Option<Value> {
    if let Some(text) = text.strip_prefix("text:") {
        return Some(Value::Bytes(text.as_bytes().to_vec()));
    }
    if let Some(digits) = text.strip_prefix("hex:") {
        return hex::decode(digits).map(Value::Bytes);
    }
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.ok().map(Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written() {
        for value in [
            Value::Number(0),
            Value::Number(u64::MAX),
            Value::Bytes(b"kho-v9".to_vec()),
            Value::Bytes(b"a b\xff".to_vec()),
            Value::Bytes(vec![]),
        ] {
            assert_eq!(literal(&written(&value)), Some(value));
        }
        assert_eq!(written(&Value::Bytes(b"ab\0\0".to_vec())), "text:ab");
        for wrong in ["", "x", "0xg", "hex:6", "hex:zz"] {
            assert_eq!(literal(wrong), None, "{wrong}");
        }
    }
}
