//! Finds how far a kernel lies from the addresses of its symbol file (KASLR), and whether the file is that kernel's.
//!
//! IA32_LSTAR holds the address of `entry_SYSCALL_64` once the kernel has set up its processors. Before that, all
//! places where the kernel can lie are tried. An offset counts only if memory agrees with it in three ways:
//!
//! - at `linux_banner` lies the banner with the version of the image;
//! - pointers in the kernel's `struct file_operations` lead to starts of functions;
//! - in each part of the text, functions begin where another function or padding ends.
//!
//! The last two tell builds of one version apart: their banners can be equal and lie at the same address, and all but a
//! few functions, too.

use super::Symbols;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Alignment of a kernel's virtual address (`CONFIG_PHYSICAL_ALIGN`, 2 MiB at the least on x86-64).
const ALIGNMENT: u64 = 2 << 20;
/// Room for a kernel and its offset (`KERNEL_IMAGE_SIZE`, arch/x86/include/asm/page_64_types.h).
const ROOM: u64 = 1 << 30;
/// Longest banner that is read.
const MAX_BANNER: usize = 512;
const BANNER_START: &str = "Linux version ";
/// Bytes of a `struct file_operations` in which all pointers into the text are callbacks. It is larger, but some
/// symbols with such names are not of that type.
const OPERATIONS_BYTES: usize = 128;
/// Most objects that are read.
const MAX_OPERATIONS: usize = 64;
/// One pointer in so many may lead elsewhere: a symbol with such a name need not be a `struct file_operations`. In
/// Linux 6.19 to 7.3 none of 202 does.
const MOST_MISSES: usize = 50;
/// Parts of the text that are looked at one by one.
const PARTS: usize = 32;
/// Least number of functions of a part that a judgement stands on.
const MIN_FUNCTIONS: usize = 50;
/// Of 100 functions of a part, how many must begin where one can begin.
const MIN_BEGUN: usize = 85;
/// Least number of pointers that a judgement stands on.
const MIN_POINTERS: usize = 16;

/// How a kernel's symbol file fits the kernel that ran.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// Not known: there is no such file, or the kernel did not get far enough.
    #[default]
    Unknown,
    /// The file fits: the kernel lay so many bytes above the file's addresses.
    At(u64),
    /// It is the file of another kernel.
    Refused {
        /// The file.
        file: PathBuf,
        /// What was expected and found.
        reason: String,
    },
}

impl Fit {
    /// Bytes by which the kernel lay above the file's addresses, if the file fits.
    pub fn offset(&self) -> Option<u64> {
        match self {
            Self::At(offset) => Some(*offset),
            Self::Unknown | Self::Refused { .. } => None,
        }
    }

    /// The sentence for reports if the file was refused.
    pub fn refusal(&self) -> Option<String> {
        let Self::Refused { file, reason } = self else {
            return None;
        };
        Some(format!(
            "{} does not fit the kernel that ran: {reason}; addresses are shown without symbols",
            file.display()
        ))
    }
}

/// A running kernel, as far as the comparison looks at it.
pub struct RunningKernel<'a> {
    /// IA32_LSTAR of each processor; 0 where it is not set. After a kexec it can be the old kernel's.
    pub syscall_entries: Vec<u64>,
    /// Reads memory at a kernel address; returns whether it is mapped.
    pub read: &'a dyn Fn(u64, &mut [u8]) -> bool,
    /// GNU build id in hexadecimal, as its agent says; empty if not known.
    pub build_id: &'a str,
}

/// The offset at which `symbols` fit the kernel. `version` is the version string of its image, without the compiler;
/// empty if not known. The error says what does not fit.
pub(super) fn offset(symbols: &Symbols, version: &str, kernel: &RunningKernel<'_>) -> Result<u64, String> {
    let known = |name: &str| symbols.address(name).ok_or(format!("it has no symbol {name}"));
    let (banner, entry) = (known("linux_banner")?, known("entry_SYSCALL_64")?);
    if let Some(own) = symbols.build_id()
        && !kernel.build_id.is_empty()
        && own != kernel.build_id
    {
        return Err(format!("its build id is {own}, the kernel's {}", kernel.build_id));
    }
    let entries = kernel.syscall_entries.iter().filter(|found| **found != 0);
    let by_entry = entries.clone().filter_map(|found| found.checked_sub(entry));
    let everywhere = (0..ROOM / ALIGNMENT).map(|slot| slot * ALIGNMENT);
    let mut nearest = None;
    for offset in by_entry.chain(everywhere) {
        let possible = offset < ROOM && offset.is_multiple_of(ALIGNMENT);
        if !possible || !has_banner(kernel, banner.saturating_add(offset), version) {
            continue;
        }
        let (pointers, hits) = callbacks(symbols, kernel, offset);
        if pointers >= MIN_POINTERS && hits * MOST_MISSES >= pointers * (MOST_MISSES - 1) {
            return match least_begun(symbols, kernel, offset) {
                Some(begun) if begun < MIN_BEGUN => Err(format!(
                    "in one part of the text only {begun} of 100 functions of it begin where one can begin"
                )),
                _ => Ok(offset),
            };
        }
        nearest.get_or_insert((pointers, hits));
    }
    Err(match (nearest, entries.clone().next()) {
        (Some((pointers, hits)), _) => {
            format!("{hits} of {pointers} pointers in the kernel's file operations lead to a function of it")
        }
        (None, Some(found)) => format!(
            "the kernel's system call entry is {found:#x}, entry_SYSCALL_64 {entry:#x}, and the kernel's banner is not \
             at linux_banner {banner:#x}, whatever the offset"
        ),
        (None, None) => {
            format!("the kernel's banner is not at linux_banner {banner:#x}, whatever the offset")
        }
    })
}

/// Of 100 functions in a part of the text, how many begin where one can begin: the least of all parts. `None` if too
/// little of the text can be read.
///
/// gcc aligns functions to 16 bytes. So before one lie padding (0x90, 0xcc, or a long no-operation that ends in 0) or a
/// return (0xc3). Linux 6.19 to 7.3 have at least 94 such functions of 100 in each part. Where the file's functions lie
/// somewhere else than the kernel's, 48 were found.
fn least_begun(symbols: &Symbols, kernel: &RunningKernel<'_>, offset: u64) -> Option<usize> {
    let (first, end) = (symbols.address("_stext")?, symbols.address("_etext")?);
    let functions = symbols.code_in(first.checked_add(1)?..end).iter().copied();
    let aligned: Vec<u64> = functions.filter(|address| address.is_multiple_of(16)).collect();
    let begun = |part: &[u64]| {
        let (mut read, mut begun) = (0, 0);
        for address in part {
            let mut before = [0];
            if (kernel.read)(address.wrapping_add(offset).wrapping_sub(1), &mut before) {
                read += 1;
                begun += usize::from(matches!(before[0], 0x00 | 0x90 | 0xc3 | 0xcc));
            }
        }
        (read >= MIN_FUNCTIONS).then(|| begun * 100 / read)
    };
    let size = aligned.len().div_ceil(PARTS).max(1);
    aligned.chunks(size).filter_map(begun).min()
}

/// Whether the kernel's banner is at `address`.
fn has_banner(kernel: &RunningKernel<'_>, address: u64, version: &str) -> bool {
    let mut start = [0; BANNER_START.len()];
    if !(kernel.read)(address, &mut start) || start != BANNER_START.as_bytes() {
        return false;
    }
    let mut text = Vec::new();
    let mut byte = [0];
    while text.len() < MAX_BANNER {
        let at = address.saturating_add(text.len() as u64);
        if !(kernel.read)(at, &mut byte) || byte[0] == 0 {
            break;
        }
        text.push(byte[0]);
    }
    is_banner_of(&String::from_utf8_lossy(&text), version)
}

/// Whether a banner is that of an image with this version string. The image has "7.3.4 (user@host) #1 SMP ..."; the
/// banner has the same with the compiler after the host (Linux 7.3, init/version-timestamp.c, arch/x86/boot/version.c).
fn is_banner_of(banner: &str, version: &str) -> bool {
    let Some(text) = banner.strip_prefix(BANNER_START) else {
        return false;
    };
    match version.split_once(") ") {
        Some((built, rest)) => {
            text.strip_prefix(built).is_some_and(|text| text.starts_with(')'))
                && text.trim_end().ends_with(rest)
        }
        None => text.starts_with(version),
    }
}

/// Number of pointers into the kernel's text in its file operations, and how many of them lead to a function's start.
fn callbacks(symbols: &Symbols, kernel: &RunningKernel<'_>, offset: u64) -> (usize, usize) {
    let (Some(first), Some(end)) = (symbols.address("_stext"), symbols.address("_etext")) else {
        return (0, 0);
    };
    let (mut pointers, mut hits) = (0, 0);
    for address in symbols.named(|name| name.ends_with("_fops")).take(MAX_OPERATIONS) {
        let mut bytes = [0; OPERATIONS_BYTES];
        if !(kernel.read)(address.saturating_add(offset), &mut bytes) {
            continue;
        }
        let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        let targets = words.filter_map(|word| word.checked_sub(offset));
        for target in targets.filter(|target| (first..end).contains(target)) {
            pointers += 1;
            hits += usize::from(symbols.has_code_at(target));
        }
    }
    (pointers, hits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Write;

    const TEXT: u64 = 0xffff_ffff_8100_0000;
    const DATA: u64 = 0xffff_ffff_8200_0000;
    const VERSION: &str = "7.3.4 (me@here) #1 SMP Thu Jan  1 00:00:00 UTC 1970";
    const BANNER: &str =
        "Linux version 7.3.4 (me@here) (gcc 14, ld 2.44) #1 SMP Thu Jan  1 00:00:00 UTC 1970\n\0";

    /// A map with 64 functions, `gap` bytes apart, and with 20 file operations.
    fn map(gap: u64) -> Symbols {
        let mut text = format!(
            "{TEXT:x} T _stext\n{:x} T _etext\n{:x} T entry_SYSCALL_64\n",
            TEXT + 0x10000,
            TEXT + 0x40
        );
        writeln!(text, "{DATA:x} D linux_banner").unwrap();
        for number in 0..64 {
            writeln!(text, "{:x} t function_{number}", TEXT + 0x100 + number * gap).unwrap();
        }
        for number in 0..20 {
            writeln!(text, "{:x} d one_{number}_fops", DATA + 0x400 + number * 0x100).unwrap();
        }
        Symbols::parse(text)
    }

    /// Memory at `DATA` of a kernel with `map(gap)` that lies at `offset`.
    fn data(gap: u64, offset: u64) -> Vec<u8> {
        let mut data = BANNER.as_bytes().to_vec();
        for (number, length) in (0..20).zip((0x408..).step_by(0x100)) {
            data.resize(length, 0);
            for function in [number, number + 20, number + 40] {
                data.extend((TEXT + 0x100 + function * gap + offset).to_le_bytes());
            }
        }
        data.resize(0x4000, 0);
        data
    }

    fn judge(
        symbols: &Symbols,
        version: &str,
        memory: &[u8],
        at: u64,
        entries: &[u64],
    ) -> Result<u64, String> {
        let read = |address: u64, buffer: &mut [u8]| {
            let from = address
                .checked_sub(DATA + at)
                .and_then(|from| usize::try_from(from).ok());
            let found = from.and_then(|from| memory.get(from..from.checked_add(buffer.len())?));
            found.is_some_and(|found| {
                buffer.copy_from_slice(found);
                true
            })
        };
        let kernel = RunningKernel {
            syscall_entries: entries.to_vec(),
            read: &read,
            build_id: "",
        };
        offset(symbols, version, &kernel)
    }

    #[test]
    fn the_offset_is_found_by_the_system_call_entry_or_without() {
        for at in [0, ALIGNMENT, ROOM - ALIGNMENT] {
            let memory = data(0x40, at);
            let entry = TEXT + 0x40 + at;
            // 0: a processor that waits. The other one is the old kernel's after a kexec.
            for entries in [
                &[entry, entry][..],
                &[0, entry],
                &[],
                &[TEXT + 0x40 + 0x20_0000, 7],
            ] {
                assert_eq!(
                    judge(&map(0x40), VERSION, &memory, at, entries),
                    Ok(at),
                    "{entries:x?}"
                );
            }
        }
    }

    #[test]
    fn the_map_of_another_kernel_is_refused() {
        let (memory, at) = (data(0x40, ALIGNMENT), ALIGNMENT);
        let entries = [TEXT + 0x40 + at];
        // Same banner, same entry, other functions.
        let error = judge(&map(0x30), VERSION, &memory, at, &entries).unwrap_err();
        assert!(error.contains("of 60 pointers"), "{error}");
        // Another version, or another build of it.
        for version in [
            "7.3.5 (me@here) #1",
            "7.3.4 (me@here) #2 SMP Thu Jan  1 00:00:00 UTC 1970",
            "7.3.4 (me@h) #1",
        ] {
            let error = judge(&map(0x40), version, &memory, at, &entries).unwrap_err();
            assert!(
                error.contains("banner") && error.contains("0xffffffff81200040"),
                "{error}"
            );
        }
        // Nothing to judge by.
        assert!(judge(&Symbols::parse(String::new()), VERSION, &memory, at, &entries).is_err());
        assert!(judge(&map(0x40), VERSION, &memory[..0x200], at, &entries).is_err());
        assert!(
            judge(&map(0x40), VERSION, &memory, at + 0x1000, &entries).is_err(),
            "not aligned"
        );
    }

    #[test]
    fn a_build_id_that_differs_is_refused_at_once() {
        let symbols = map(0x40).with_build_id("aa".into());
        let kernel = RunningKernel {
            syscall_entries: Vec::new(),
            read: &|_, _| false,
            build_id: "bb",
        };
        assert_eq!(
            offset(&symbols, VERSION, &kernel),
            Err("its build id is aa, the kernel's bb".into())
        );
    }

    #[test]
    fn the_refusal_names_the_file() {
        let fit = Fit::Refused {
            file: "a/System.map".into(),
            reason: "it has no symbol x".into(),
        };
        let text = "a/System.map does not fit the kernel that ran: it has no symbol x; addresses are shown without symbols";
        assert_eq!(fit.refusal().as_deref(), Some(text));
        assert_eq!(
            (fit.offset(), Fit::At(3).offset(), Fit::Unknown.refusal()),
            (None, Some(3), None)
        );
    }

    #[test]
    fn functions_that_lie_elsewhere_in_one_part_of_the_text_are_seen() {
        let text = (0..4000u64).map(|number| format!("{:x} t f{number}\n", TEXT + 0x100 + number * 64));
        let ends = format!("{TEXT:x} T _stext\n{:x} T _etext\n", TEXT + 0x100 + 4000 * 64);
        let symbols = Symbols::parse(text.chain([ends]).collect());
        let (offset, last) = (6 * ALIGNMENT, TEXT + 0x100 + 3800 * 64);
        let least = |moved: u64| {
            let read = |address: u64, buffer: &mut [u8]| {
                let at = address - offset + 1;
                let at = if at > last { at - moved } else { at };
                buffer[0] = if (at - TEXT - 0x100).is_multiple_of(64) {
                    0xcc
                } else {
                    0x48
                };
                true
            };
            let kernel = RunningKernel {
                syscall_entries: Vec::new(),
                read: &read,
                build_id: "",
            };
            least_begun(&symbols, &kernel, offset)
        };
        assert_eq!(least(0), Some(100));
        assert_eq!(least(16), Some(0));
        let unmapped = RunningKernel {
            syscall_entries: Vec::new(),
            read: &|_, _| false,
            build_id: "",
        };
        assert_eq!(least_begun(&symbols, &unmapped, offset), None);
    }

    proptest! {
        #[test]
        fn any_memory_gives_an_answer(
            bytes in proptest::collection::vec(any::<u8>(), 0..64), entries in proptest::collection::vec(any::<u64>(), 0..3),
            version in "[ -~]{0,20}", banner in "[ -~]{0,40}"
        ) {
            let read = |address: u64, buffer: &mut [u8]| {
                for (at, byte) in (address % 64..).zip(buffer.iter_mut()) {
                    let index = usize::try_from(at % 64).unwrap();
                    *byte = bytes.get(index).copied().unwrap_or(0);
                }
                !address.is_multiple_of(3)
            };
            let kernel = RunningKernel { syscall_entries: entries, read: &read, build_id: "" };
            prop_assert!(offset(&map(0x40), &version, &kernel).is_err());
            let _ = is_banner_of(&banner, &version);
        }
    }
}
