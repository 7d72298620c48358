//! Symbols and build id of a vmlinux, an ELF file for x86-64 (System V ABI, "Object Files"). The file is untrusted.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Most bytes of a section that are read.
const MAX_SECTION: u64 = 256 << 20;
const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const SHT_SYMTAB: u32 = 2;
const SHT_NOTE: u32 = 7;
const NT_GNU_BUILD_ID: u32 = 3;
const SHF_EXECINSTR: u64 = 4;
/// `st_info`: type in the low four bits.
const STT_FUNC: u8 = 2;

/// What is taken from a vmlinux.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Vmlinux {
    /// Its symbols in the form of a System.map.
    pub map: String,
    /// GNU build id in hexadecimal.
    pub build_id: Option<String>,
}

struct Section {
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
    link: u32,
}

/// Reads a vmlinux; `None` if it is none or has no symbols.
pub(super) fn read(path: &Path) -> Option<Vmlinux> {
    let mut file = File::open(path).ok()?;
    parse(&mut |offset, length| {
        if length > MAX_SECTION {
            return None;
        }
        file.seek(SeekFrom::Start(offset)).ok()?;
        let mut bytes = Vec::new();
        (&mut file).take(length).read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 == length).then_some(bytes)
    })
}

fn parse(read: &mut dyn FnMut(u64, u64) -> Option<Vec<u8>>) -> Option<Vmlinux> {
    const CLASS_64_LITTLE_ENDIAN: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
    let header = read(0, HEADER_BYTES as u64)?;
    let sized = usize::from(u16_at(&header, 58)?) == SECTION_BYTES;
    if !header.starts_with(&CLASS_64_LITTLE_ENDIAN) || !sized {
        return None;
    }
    let count = u64::from(u16_at(&header, 60)?);
    let table = read(u64_at(&header, 40)?, count * SECTION_BYTES as u64)?;
    let sections: Vec<Section> = table.chunks_exact(SECTION_BYTES).filter_map(section).collect();
    let symbols = sections.iter().find(|section| section.kind == SHT_SYMTAB)?;
    let names = sections.get(usize::try_from(symbols.link).ok()?)?;
    let (names, table) = (
        read(names.offset, names.size)?,
        read(symbols.offset, symbols.size)?,
    );
    let mut map = String::new();
    for entry in table.chunks_exact(SYMBOL_BYTES) {
        if let Some(line) = line(entry, &names, &sections) {
            map.push_str(&line);
        }
    }
    let notes = sections.iter().filter(|section| section.kind == SHT_NOTE);
    let build_id = notes
        .filter_map(|section| build_id(&read(section.offset, section.size)?))
        .next();
    (!map.is_empty()).then_some(Vmlinux { map, build_id })
}

fn section(bytes: &[u8]) -> Option<Section> {
    Some(Section {
        kind: u32_at(bytes, 4)?,
        flags: u64_at(bytes, 8)?,
        offset: u64_at(bytes, 24)?,
        size: u64_at(bytes, 32)?,
        link: u32_at(bytes, 40)?,
    })
}

/// The line of System.map for a symbol; `None` for one without a place, a name or a printable one.
fn line(entry: &[u8], names: &[u8], sections: &[Section]) -> Option<String> {
    let name = names.get(usize::try_from(u32_at(entry, 0)?).ok()?..)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    let name = str::from_utf8(&name[..end])
        .ok()
        .filter(|name| !name.is_empty())?;
    let section = sections.get(usize::from(u16_at(entry, 6)?))?;
    let (address, kind) = (u64_at(entry, 8)?, entry.get(4)? & 0xf);
    let code = kind == STT_FUNC || kind == 0 && section.flags & SHF_EXECINSTR != 0;
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic());
    (plain && address != 0).then(|| format!("{address:016x} {} {name}\n", if code { 't' } else { 'd' }))
}

/// The build id in a section of notes: name size, content size and type, then both, each padded to 4 bytes.
fn build_id(mut notes: &[u8]) -> Option<String> {
    let padded = |length: u32| usize::try_from(length).ok()?.checked_next_multiple_of(4);
    loop {
        let (name, size, kind) = (u32_at(notes, 0)?, u32_at(notes, 4)?, u32_at(notes, 8)?);
        let content = notes.get(12..)?.get(padded(name)?..)?;
        if kind == NT_GNU_BUILD_ID && notes[12..].starts_with(b"GNU\0") {
            let id = content.get(..usize::try_from(size).ok()?)?;
            return Some(id.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = content.get(padded(size)?..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A vmlinux with two symbols and a build id: header, then the contents of sections 1 to 4, then their headers.
    fn vmlinux() -> Vec<u8> {
        let names = b"\0main\0table\0".to_vec();
        let symbol = |name: u32, info: u8, section: u16, value: u64| {
            let mut bytes = name.to_le_bytes().to_vec();
            bytes.extend([info, 0]);
            bytes.extend(section.to_le_bytes());
            bytes.extend(value.to_le_bytes());
            bytes.extend(8u64.to_le_bytes());
            bytes
        };
        let symbols = [
            symbol(0, 0, 0, 0),
            symbol(1, 0x12, 1, 0xffff_ffff_8100_0000),
            symbol(6, 0x11, 3, 0xffff_ffff_8200_0000),
        ]
        .concat();
        let mut notes = [4u32, 2, 1].map(u32::to_le_bytes).concat();
        notes.extend(b"Xen\0\x01\x02\0\0");
        notes.extend([4u32, 3, 3].map(u32::to_le_bytes).concat());
        notes.extend(b"GNU\0\xab\xcd\xef\0");
        let parts = [
            (1, 4, vec![0x90; 8], 0),
            (SHT_SYMTAB, 0, symbols, 3),
            (3, 0, names, 0),
            (SHT_NOTE, 0, notes, 0),
        ];
        let mut file = vec![0; HEADER_BYTES];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        let mut headers = vec![0; SECTION_BYTES];
        for (kind, flags, content, link) in parts {
            let mut header = [0; SECTION_BYTES];
            header[4..8].copy_from_slice(&u32::to_le_bytes(kind));
            header[8..16].copy_from_slice(&u64::to_le_bytes(flags));
            header[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            header[40..44].copy_from_slice(&u32::to_le_bytes(link));
            headers.extend(header);
            file.extend(content);
        }
        let at = (file.len() as u64).to_le_bytes();
        file[40..48].copy_from_slice(&at);
        file[58] = 64;
        file[60] = 5;
        file.extend(headers);
        file
    }

    fn of(file: &[u8]) -> Option<Vmlinux> {
        parse(&mut |offset, length| {
            let from = usize::try_from(offset).ok()?;
            Some(
                file.get(from..from.checked_add(usize::try_from(length).ok()?)?)?
                    .to_vec(),
            )
        })
    }

    #[test]
    fn symbols_and_build_id_are_read() {
        let found = of(&vmlinux()).unwrap();
        assert_eq!(found.map, "ffffffff81000000 t main\nffffffff82000000 d table\n");
        assert_eq!(found.build_id.as_deref(), Some("abcdef"));
        assert_eq!(of(b"MZ"), None);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinux");
        std::fs::write(&path, vmlinux()).unwrap();
        assert_eq!(read(&path), of(&vmlinux()));
    }

    proptest! {
        #[test]
        fn a_damaged_file_gives_an_answer(changes in proptest::collection::vec((0usize..700, any::<u8>()), 1..8)) {
            let mut file = vmlinux();
            for (at, byte) in changes {
                let length = file.len();
                file[at % length] = byte;
            }
            let _ = of(&file);
        }
    }
}
