//! What the harness itself reads of a bzImage's setup header (Documentation/arch/x86/boot.rst). Whether the image can be
//! booted is for the machine to say.

/// Offset of the boot sector's magic 0xaa55.
const BOOT_FLAG: usize = 0x1fe;
/// Offset of the header's magic "HdrS".
const MAGIC: usize = 0x202;
/// Offset of the offset, less 0x200, of the version string.
const KERNEL_VERSION: usize = 0x20e;
/// Longest release that is believed; `utsname` has 65 bytes.
const MAX_RELEASE: usize = 65;

/// The release that the image's header names; empty when it names none.
pub(super) fn release(image: &[u8]) -> Result<String, String> {
    let word = |at: usize| image.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    if word(BOOT_FLAG) != Some(0xaa55) {
        return Err(format!(
            "expected 0xaa55 at offset {BOOT_FLAG:#x}, found {}",
            shown(word(BOOT_FLAG))
        ));
    }
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        return Err(format!("expected \"HdrS\" at offset {MAGIC:#x}"));
    }
    let text = match word(KERNEL_VERSION) {
        None | Some(0) => return Ok(String::new()),
        Some(offset) => image.get(usize::from(offset) + 0x200..).unwrap_or_default(),
    };
    let plain = |byte: &&u8| byte.is_ascii_graphic();
    Ok(text
        .iter()
        .take(MAX_RELEASE)
        .take_while(plain)
        .map(|byte| char::from(*byte))
        .collect())
}

fn shown(word: Option<u16>) -> String {
    word.map_or_else(|| "the end of the file".into(), |word| format!("{word:#06x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[KERNEL_VERSION..KERNEL_VERSION + 2].copy_from_slice(&0x100u16.to_le_bytes());
        image[0x300..0x310].copy_from_slice(b"7.3.4 (root@x) #");
        image
    }

    #[test]
    fn the_release_is_the_first_word() {
        assert_eq!(release(&image()), Ok("7.3.4".into()));
    }

    proptest! {
        #[test]
        fn any_image_gives_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..0x400), cut in 0usize..0x400) {
            let _ = release(&bytes);
            let _ = release(&image()[..cut]);
        }
    }
}
