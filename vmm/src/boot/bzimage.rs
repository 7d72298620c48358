//! Reads and checks a bzImage's setup header.

use thiserror::Error;

use super::layout::{BOOT_FLAG, ENTRY_64, HEADER_MAGIC, LOADED_HIGH, MIN_VERSION, XLF_KERNEL_64, offset};

/// Least length of a file that holds every field read here.
const HEADER_END: usize = offset::INIT_SIZE + 4;
/// Largest plausible alignment: a 1 GiB page.
const MAX_ALIGNMENT: u32 = 1 << 30;

/// Why a file is not a bootable bzImage. Offsets are into the file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImageError {
    /// The file is shorter than its header.
    #[error(
        "kernel image of {found} bytes is too short: expected at least {expected} bytes, which its header says or needs"
    )]
    Truncated {
        /// Bytes needed.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A magic number is wrong.
    #[error("kernel image is not a bzImage: expected {expected:#x} at offset {offset:#x}, found {found:#x}")]
    Magic {
        /// The right value.
        expected: u32,
        /// The value in the file.
        found: u32,
        /// Where.
        offset: usize,
    },
    /// The boot protocol is too old.
    #[error(
        "boot protocol {}.{}: expected at least {}.{}",
        found >> 8, found & 0xff, MIN_VERSION >> 8, MIN_VERSION & 0xff
    )]
    Version {
        /// Version in the file.
        found: u16,
    },
    /// The kernel has no 64-bit entry point.
    #[error("kernel has no 64-bit entry point: expected bit 0 of xloadflags, found {xloadflags:#x}")]
    No64BitEntry {
        /// The flags.
        xloadflags: u16,
    },
    /// A field holds an impossible value.
    #[error("kernel header field {field} at offset {offset:#x} is {found:#x}: expected {expected}")]
    Field {
        /// The field's name in the boot protocol.
        field: &'static str,
        /// Where.
        offset: usize,
        /// Its value.
        found: u64,
        /// What it should be.
        expected: &'static str,
    },
}

/// A bzImage that passed the checks.
#[derive(Debug, Clone, Copy)]
pub struct BzImage<'a> {
    /// The whole file.
    pub file: &'a [u8],
    /// Where the protected-mode code begins in the file.
    pub setup_bytes: usize,
    /// Boot protocol version.
    pub version: u16,
    /// Alignment of the load address, a power of two.
    pub alignment: u64,
    /// Whether the kernel may be loaded elsewhere than at its preferred address.
    pub relocatable: bool,
    /// Preferred load address.
    pub pref_address: u64,
    /// Bytes needed from the load address on.
    pub init_size: u64,
    /// Highest address that the initrd may occupy.
    pub initrd_addr_max: u64,
    /// Longest command line, without its NUL.
    pub cmdline_size: u64,
}

impl<'a> BzImage<'a> {
    /// Checks the header of `file`.
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        let found = file.len() as u64;
        if file.len() < HEADER_END {
            return Err(ImageError::Truncated {
                expected: HEADER_END as u64,
                found,
            });
        }
        let boot_flag = u16_at(file, offset::BOOT_FLAG);
        if boot_flag != BOOT_FLAG {
            let (expected, found) = (u32::from(BOOT_FLAG), u32::from(boot_flag));
            return Err(ImageError::Magic {
                expected,
                found,
                offset: offset::BOOT_FLAG,
            });
        }
        let magic = u32_at(file, offset::HEADER_MAGIC);
        if magic != HEADER_MAGIC {
            return Err(ImageError::Magic {
                expected: HEADER_MAGIC,
                found: magic,
                offset: offset::HEADER_MAGIC,
            });
        }
        let version = u16_at(file, offset::VERSION);
        if version < MIN_VERSION {
            return Err(ImageError::Version { found: version });
        }
        let xloadflags = u16_at(file, offset::XLOADFLAGS);
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(ImageError::No64BitEntry { xloadflags });
        }
        let loadflags = file[offset::LOADFLAGS];
        if loadflags & LOADED_HIGH == 0 {
            return Err(field(
                "loadflags",
                offset::LOADFLAGS,
                loadflags.into(),
                "bit 0 (LOADED_HIGH)",
            ));
        }
        let jump = usize::from(file[offset::HEADER_JUMP]);
        if !(HEADER_END..=offset::E820_TABLE).contains(&(offset::HEADER_MAGIC + jump)) {
            return Err(field(
                "jump",
                offset::HEADER_JUMP,
                jump as u64,
                "an end between 0x264 and 0x2d0",
            ));
        }
        let sectors = match file[offset::SETUP_SECTS] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let setup_bytes = (sectors + 1) * 512;
        let image = Self {
            file,
            setup_bytes,
            version,
            alignment: alignment(file)?,
            relocatable: file[offset::RELOCATABLE_KERNEL] != 0,
            pref_address: u64_at(file, offset::PREF_ADDRESS),
            init_size: u32_at(file, offset::INIT_SIZE).into(),
            initrd_addr_max: u32_at(file, offset::INITRD_ADDR_MAX).into(),
            cmdline_size: u32_at(file, offset::CMDLINE_SIZE).into(),
        };
        image.check_sizes()?;
        Ok(image)
    }

    /// The protected-mode code, which is the part to load.
    #[must_use]
    pub fn code(&self) -> &'a [u8] {
        &self.file[self.setup_bytes..]
    }

    /// The setup header, which is copied into the zero page at the same offset.
    #[must_use]
    pub fn header(&self) -> &'a [u8] {
        let end = offset::HEADER_MAGIC + usize::from(self.file[offset::HEADER_JUMP]);
        &self.file[offset::SETUP_SECTS..end]
    }

    fn check_sizes(&self) -> Result<(), ImageError> {
        let found = self.file.len() as u64;
        let setup = self.setup_bytes as u64;
        let code = u64::from(u32_at(self.file, offset::SYSSIZE)) * 16;
        let payload = u64::from(u32_at(self.file, offset::PAYLOAD_OFFSET))
            + u64::from(u32_at(self.file, offset::PAYLOAD_LENGTH));
        let expected = setup + code.max(payload).max(ENTRY_64 + 1);
        if found < expected {
            return Err(ImageError::Truncated { expected, found });
        }
        if self.init_size < found - setup {
            return Err(field(
                "init_size",
                offset::INIT_SIZE,
                self.init_size,
                "at least the size of the code",
            ));
        }
        if self.initrd_addr_max == 0 {
            return Err(field(
                "initrd_addr_max",
                offset::INITRD_ADDR_MAX,
                0,
                "a highest address",
            ));
        }
        Ok(())
    }
}

fn alignment(file: &[u8]) -> Result<u64, ImageError> {
    let found = u32_at(file, offset::KERNEL_ALIGNMENT);
    if found.is_power_of_two() && (4096..=MAX_ALIGNMENT).contains(&found) {
        Ok(found.into())
    } else {
        let expected = "a power of two from 4 KiB to 1 GiB";
        Err(field(
            "kernel_alignment",
            offset::KERNEL_ALIGNMENT,
            found.into(),
            expected,
        ))
    }
}

fn field(field: &'static str, offset: usize, found: u64, expected: &'static str) -> ImageError {
    ImageError::Field {
        field,
        offset,
        found,
        expected,
    }
}

/// The little-endian u16 at `at`, which the caller has checked to be inside.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The little-endian u32 at `at`, which the caller has checked to be inside.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

/// The little-endian u64 at `at`, which the caller has checked to be inside.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The smallest image that passes: two sectors of setup, `code` bytes of code.
    pub fn image(code: usize) -> Vec<u8> {
        let mut file = vec![0; 1024 + code];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(offset::SETUP_SECTS, &[1]);
        put(offset::SYSSIZE, &u32::try_from(code / 16).unwrap().to_le_bytes());
        put(offset::BOOT_FLAG, &BOOT_FLAG.to_le_bytes());
        put(offset::HEADER_JUMP, &[0x6a]);
        put(offset::HEADER_MAGIC, b"HdrS");
        put(offset::VERSION, &0x020f_u16.to_le_bytes());
        put(offset::LOADFLAGS, &[LOADED_HIGH]);
        put(offset::INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
        put(offset::KERNEL_ALIGNMENT, &0x20_0000_u32.to_le_bytes());
        put(offset::RELOCATABLE_KERNEL, &[1]);
        put(offset::XLOADFLAGS, &XLF_KERNEL_64.to_le_bytes());
        put(offset::CMDLINE_SIZE, &2047_u32.to_le_bytes());
        put(offset::PREF_ADDRESS, &0x100_0000_u64.to_le_bytes());
        put(offset::INIT_SIZE, &0x10_0000_u32.to_le_bytes());
        file
    }

    #[test]
    fn a_sound_header_is_read() {
        let file = image(4096);
        let parsed = BzImage::parse(&file).unwrap();
        assert_eq!((parsed.setup_bytes, parsed.code().len()), (1024, 4096));
        assert_eq!(
            (parsed.alignment, parsed.relocatable, parsed.pref_address),
            (0x20_0000, true, 0x100_0000)
        );
        assert_eq!((parsed.init_size, parsed.cmdline_size), (0x10_0000, 2047));
        assert_eq!(parsed.header().len(), 0x26c - 0x1f1);
    }

    #[test]
    fn each_lie_has_its_own_error() {
        let cases: [(&str, usize, &[u8]); 9] = [
            ("0xaa55", offset::BOOT_FLAG, &[0]),
            ("0x53726448", offset::HEADER_MAGIC, b"HdrX"),
            ("at least 2.12", offset::VERSION, &[0x0b, 2]),
            ("64-bit entry", offset::XLOADFLAGS, &[0]),
            ("LOADED_HIGH", offset::LOADFLAGS, &[0]),
            ("kernel_alignment", offset::KERNEL_ALIGNMENT, &[1]),
            ("init_size", offset::INIT_SIZE, &[0, 0, 0]),
            ("too short", offset::SETUP_SECTS, &[255]),
            ("too short", offset::PAYLOAD_LENGTH, &[0, 0, 0, 0xff]),
        ];
        for (expected, at, bytes) in cases {
            let mut file = image(4096);
            file[at..at + bytes.len()].copy_from_slice(bytes);
            let message = BzImage::parse(&file).unwrap_err().to_string();
            assert!(message.contains(expected), "{expected}: {message}");
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let file = image(4096);
        for length in (0..file.len()).step_by(7) {
            assert!(
                matches!(BzImage::parse(&file[..length]), Err(ImageError::Truncated { .. })),
                "{length}"
            );
        }
    }

    proptest! {
        #[test]
        fn corrupt_headers_never_panic(changes in prop::collection::vec((0x1f0_usize..0x270, any::<u8>()), 1..12)) {
            let mut file = image(4096);
            for (at, byte) in changes {
                file[at] = byte;
            }
            if let Ok(parsed) = BzImage::parse(&file) {
                prop_assert!(parsed.code().len() as u64 <= parsed.init_size);
                prop_assert!(parsed.alignment.is_power_of_two());
                prop_assert!(!parsed.header().is_empty());
            }
        }
    }
}
