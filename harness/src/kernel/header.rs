//! The release that a bzImage names in its setup header (Documentation/arch/x86/boot.rst).

use vmm::boot::BzImage;

/// Offset of the offset, less 0x200, of the version string.
const KERNEL_VERSION: usize = 0x20e;
/// Maximum length of a release; the field of `utsname` has 65 bytes.
const MAX_RELEASE: usize = 65;
/// Maximum length of the whole string: release, builder, and the `version` of `utsname`.
const MAX_VERSION: usize = 256;

/// Returns the release in the image's header, or an empty string if it has none. Fails if the machine could not boot
/// the image.
pub(super) fn release(image: &[u8]) -> Result<String, String> {
    if is_elf(image) {
        return Err(
            "it is an ELF file, as a vmlinux is; give arch/x86/boot/bzImage of the same build".into(),
        );
    }
    BzImage::parse(image).map_err(|error| error.to_string())?;
    Ok(named(image).unwrap_or_default())
}

/// Whether it is an ELF file, as a vmlinux is.
pub(super) fn is_elf(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

fn named(image: &[u8]) -> Option<String> {
    let plain = |byte: &&u8| byte.is_ascii_graphic();
    Some(text(string(image)?.iter().take(MAX_RELEASE).take_while(plain)))
}

/// The whole version string in the image's header, such as "7.3.4 (user@host) #1 SMP"; empty if it has none.
pub(super) fn version(image: &[u8]) -> String {
    let plain = |byte: &&u8| matches!(byte, b' '..=b'~');
    let string = string(image).unwrap_or_default();
    text(string.iter().take(MAX_VERSION).take_while(plain))
}

/// The bytes from the version string on.
fn string(image: &[u8]) -> Option<&[u8]> {
    let field = image.get(KERNEL_VERSION..KERNEL_VERSION + 2)?;
    let offset = usize::from(u16::from_le_bytes([field[0], field[1]]));
    image.get(offset + 0x200..).filter(|_| offset != 0)
}

fn text<'a>(bytes: impl Iterator<Item = &'a u8>) -> String {
    bytes.map(|byte| char::from(*byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(offset: u16) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[KERNEL_VERSION..KERNEL_VERSION + 2].copy_from_slice(&offset.to_le_bytes());
        image[0x300..0x310].copy_from_slice(b"7.3.4 (root@x) #");
        image
    }

    #[test]
    fn the_release_is_the_first_word() {
        assert_eq!(named(&image(0x100)).as_deref(), Some("7.3.4"));
        assert_eq!(version(&image(0x100)), "7.3.4 (root@x) #");
        assert_eq!(version(&image(0)), "");
        assert_eq!(named(&image(0)), None);
        assert_eq!(named(&image(0xffff)), None);
    }

    proptest! {
        #[test]
        fn any_image_gives_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..0x400), offset: u16) {
            let _ = (release(&bytes), named(&bytes), named(&image(offset)), version(&bytes));
        }
    }
}
