//! The symbol file of a kernel, System.map or vmlinux, to resolve addresses to names. Its addresses are those that the
//! kernel was linked for; [`super::fit`] says how far from them it ran.

use super::elf;
use std::path::Path;

/// The symbols of a kernel, ascending by address.
#[derive(Debug, Clone, Default)]
pub struct Symbols {
    text: String,
    /// Address, and range of the name in `text`.
    entries: Vec<(u64, u32, u32)>,
    /// Addresses of functions, ascending.
    code: Vec<u64>,
    /// GNU build id in hexadecimal, if the file has one.
    build_id: Option<String>,
}

/// An address further than this behind a symbol does not belong to that function.
const MAX_OFFSET: u64 = 1 << 20;

impl Symbols {
    /// Reads a vmlinux, or a System.map of at most `most` bytes; `None` if it is larger or cannot be read.
    pub fn load(path: &Path, most: u64) -> Option<Self> {
        if let Some(vmlinux) = elf::read(path) {
            return Some(Self {
                build_id: vmlinux.build_id,
                ..Self::parse(vmlinux.map)
            });
        }
        let small = std::fs::metadata(path).ok()?.len() <= most;
        small.then(|| std::fs::read_to_string(path).ok().map(Self::parse))?
    }

    /// Parses the text of a System.map: lines of address, type and name. Ignores other lines.
    pub fn parse(text: String) -> Self {
        let (mut entries, mut code) = (Vec::new(), Vec::new());
        let mut start = 0usize;
        for whole in text.split_inclusive('\n') {
            let (line_start, line) = (start, whole.trim_end());
            start += whole.len();
            let mut fields = line.split(' ');
            let (Some(address), Some(kind), Some(name)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let Ok(address) = u64::from_str_radix(address, 16) else {
                continue;
            };
            let end = line_start + line.len();
            if let (Ok(from), Ok(to)) = (u32::try_from(end - name.len()), u32::try_from(end)) {
                entries.push((address, from, to));
                if matches!(kind, "t" | "T" | "w" | "W") {
                    code.push(address);
                }
            }
        }
        entries.sort_by_key(|entry| entry.0);
        code.sort_unstable();
        Self {
            text,
            entries,
            code,
            build_id: None,
        }
    }

    /// The same with a build id.
    pub fn with_build_id(self, build_id: String) -> Self {
        Self {
            build_id: Some(build_id),
            ..self
        }
    }

    /// GNU build id in hexadecimal, if the file has one.
    pub fn build_id(&self) -> Option<&str> {
        self.build_id.as_deref()
    }

    /// The text that they were parsed from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Symbol and offset of an address.
    pub fn lookup(&self, address: u64) -> Option<String> {
        let after = self.entries.partition_point(|entry| entry.0 <= address);
        let (start, from, to) = *self.entries.get(after.checked_sub(1)?)?;
        let (name, offset) = (self.text.get(from as usize..to as usize)?, address - start);
        (offset < MAX_OFFSET).then(|| format!("{name}+{offset:#x}"))
    }

    /// Address of the symbol of that name.
    pub fn address(&self, name: &str) -> Option<u64> {
        let named =
            |entry: &&(u64, u32, u32)| self.text.get(entry.1 as usize..entry.2 as usize) == Some(name);
        self.entries.iter().find(named).map(|entry| entry.0)
    }

    /// Addresses of the symbols whose name is `wanted`, ascending.
    pub fn named(&self, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = u64> {
        let named = move |entry: &&(u64, u32, u32)| {
            let name = self.text.get(entry.1 as usize..entry.2 as usize);
            name.is_some_and(&wanted)
        };
        self.entries.iter().filter(named).map(|entry| entry.0)
    }

    /// Addresses of functions in a range, ascending.
    pub fn code_in(&self, range: std::ops::Range<u64>) -> &[u64] {
        let from = self.code.partition_point(|address| *address < range.start);
        let to = self.code.partition_point(|address| *address < range.end);
        self.code.get(from..to).unwrap_or_default()
    }

    /// Whether a function begins at this address.
    pub fn has_code_at(&self, address: u64) -> bool {
        self.code.binary_search(&address).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAP: &str =
        "ffffffff81000000 T _text\nffffffff81000100 t clear_page\nnonsense\n0000000000000000 A zero";

    #[test]
    fn addresses_become_symbols_with_offsets() {
        let symbols = Symbols::parse(MAP.into());
        assert_eq!(
            symbols.lookup(0xffff_ffff_8100_0107).as_deref(),
            Some("clear_page+0x7")
        );
        assert_eq!(
            symbols.lookup(0xffff_ffff_8100_00ff).as_deref(),
            Some("_text+0xff")
        );
        assert_eq!(symbols.lookup(0xffff_ffff_9100_0000), None);
        assert_eq!(symbols.lookup(0x40_0000), None);
        assert_eq!(symbols.address("clear_page"), Some(0xffff_ffff_8100_0100));
        assert_eq!(symbols.address("clear"), None);
        assert_eq!(
            symbols
                .named(|name| name.starts_with("clear"))
                .collect::<Vec<_>>(),
            [0xffff_ffff_8100_0100]
        );
        assert!(symbols.has_code_at(0xffff_ffff_8100_0100) && !symbols.has_code_at(0xffff_ffff_8100_0101));
        assert!(!symbols.has_code_at(0), "no function");
    }

    proptest! {
        #[test]
        fn any_text_parses(text in "(.|\n){0,200}", address in any::<u64>()) {
            let _ = Symbols::parse(text).lookup(address);
        }
    }
}
