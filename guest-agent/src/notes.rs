//! The GNU build id in /sys/kernel/notes, an ELF note section.
//!
//! A note is {u32 name size, u32 descriptor size, u32 type}, then name and descriptor, each padded to a multiple of 4
//! (System V ABI, "Note Section").

use alloc::string::String;
use core::fmt::Write;

/// NT_GNU_BUILD_ID of elf.h.
const BUILD_ID_TYPE: u32 = 3;
/// Owner name of GNU notes.
const GNU: &[u8] = b"GNU\0";

/// The first GNU build id among `notes`, in lower-case hexadecimal; `None` if the notes end or are malformed before
/// one is found.
pub fn build_id(notes: &[u8]) -> Option<String> {
    let mut rest = notes;
    loop {
        let name_size = usize::try_from(take_u32(&mut rest)?).ok()?;
        let descriptor_size = usize::try_from(take_u32(&mut rest)?).ok()?;
        let kind = take_u32(&mut rest)?;
        let name = take_padded(&mut rest, name_size)?;
        let descriptor = take_padded(&mut rest, descriptor_size)?;
        if kind == BUILD_ID_TYPE && name == GNU {
            let mut text = String::with_capacity(2 * descriptor.len());
            for byte in descriptor {
                write!(text, "{byte:02x}").ok()?;
            }
            return Some(text);
        }
    }
}

/// Takes a little-endian word off the front.
fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (word, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(u32::from_le_bytes(*word))
}

/// Takes `size` bytes and their padding off the front. At the end of the section the padding may be missing.
fn take_padded<'a>(rest: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let field = rest.get(..size)?;
    *rest = rest.get(size.checked_next_multiple_of(4)?..).unwrap_or(&[]);
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for size in [name.len(), descriptor.len()] {
            bytes.extend(u32::try_from(size).unwrap().to_le_bytes());
        }
        bytes.extend(kind.to_le_bytes());
        for field in [name, descriptor] {
            bytes.extend(field);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn finds_the_build_id_behind_other_notes() {
        let mut notes = note(b"Xen\0", 18, b"odd");
        notes.extend(note(b"GNU\0", 1, b"not it"));
        assert_eq!(build_id(&notes), None);
        notes.extend(note(b"GNU\0", 3, &[0x01, 0xab, 0xff]));
        assert_eq!(build_id(&notes).as_deref(), Some("01abff"));
    }

    #[test]
    fn a_descriptor_beyond_the_end_is_none() {
        let mut notes = note(b"GNU\0", 3, &[1, 2, 3, 4]);
        notes.pop();
        assert_eq!(build_id(&notes), None);
        assert_eq!(build_id(&[0xff; 64]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            build_id(&bytes);
        }

        #[test]
        fn any_build_id_is_found(before: Vec<u8>, id in proptest::collection::vec(any::<u8>(), 1..64)) {
            let mut notes = note(b"Linux\0", 0x101, &before);
            notes.extend(note(b"GNU\0", 3, &id));
            let expected: String = id.iter().map(|byte| std::format!("{byte:02x}")).collect();
            prop_assert_eq!(build_id(&notes), Some(expected));
        }
    }
}
