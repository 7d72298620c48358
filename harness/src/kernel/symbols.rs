//! System.map, to resolve addresses to names. Guest kernels have no KASLR, so its addresses are those of the running
//! kernel.

use std::path::Path;

/// The symbols of a kernel, ascending by address.
#[derive(Debug, Clone, Default)]
pub struct Symbols {
    text: String,
    /// Address, and range of the name in `text`.
    entries: Vec<(u64, u32, u32)>,
}

/// An address further than this behind a symbol does not belong to that function.
const MAX_OFFSET: u64 = 1 << 20;

impl Symbols {
    /// Reads a System.map of at most `most` bytes; `None` if it is larger or cannot be read.
    pub fn load(path: &Path, most: u64) -> Option<Self> {
        let small = std::fs::metadata(path).ok()?.len() <= most;
        small.then(|| std::fs::read_to_string(path).ok().map(Self::parse))?
    }

    /// Parses the text of a System.map: lines of address, type and name. Ignores other lines.
    pub fn parse(text: String) -> Self {
        let mut entries = Vec::new();
        let mut start = 0usize;
        for whole in text.split_inclusive('\n') {
            let (line_start, line) = (start, whole.trim_end());
            start += whole.len();
            let mut fields = line.split(' ');
            let (Some(address), Some(_), Some(name)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let Ok(address) = u64::from_str_radix(address, 16) else {
                continue;
            };
            let end = line_start + line.len();
            if let (Ok(from), Ok(to)) = (u32::try_from(end - name.len()), u32::try_from(end)) {
                entries.push((address, from, to));
            }
        }
        entries.sort_by_key(|entry| entry.0);
        Self { text, entries }
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
    }

    proptest! {
        #[test]
        fn any_text_parses(text in "(.|\n){0,200}", address in any::<u64>()) {
            let _ = Symbols::parse(text).lookup(address);
        }
    }
}
