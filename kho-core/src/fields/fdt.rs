//! The fields of an FDT: the values of its properties, and its own structure, which is big-endian.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::ControlFlow;

use super::walk::Walk;
use super::{ByteOrder, Kind, place};
use crate::abi::{kexec_handover as kho, luo, memblock, test_kho};
use crate::fdt::{Fdt, HEADER_SIZE, Property, total_size};
use crate::memory::{clamp, len64};
use crate::read::MAX_FDT_SIZE;
use crate::recursive::PROP_RECURSIVE_FDT;

/// The words of the header, in order (Devicetree Specification 0.4, 5.2).
const HEADER: [(&str, Kind); HEADER_SIZE / 4] = [
    ("magic", Kind::Number),
    ("totalsize", Kind::Size),
    ("off_dt_struct", Kind::Offset),
    ("off_dt_strings", Kind::Offset),
    ("off_mem_rsvmap", Kind::Offset),
    ("version", Kind::Number),
    ("last_comp_version", Kind::Number),
    ("boot_cpuid_phys", Kind::Number),
    ("size_dt_strings", Kind::Size),
    ("size_dt_struct", Kind::Size),
];

impl Walk<'_, '_> {
    /// Visits the fields of the FDT at an address. One that cannot be parsed has no fields but its header.
    pub(super) fn fdt(&mut self, prefix: &str, at: u64) -> ControlFlow<()> {
        for (index, (name, kind)) in HEADER.iter().enumerate() {
            let at = at.saturating_add(len64(index).saturating_mul(4));
            self.ordered(format!("{prefix}:{name}"), *kind, (at, 4), ByteOrder::Big)?;
        }
        let Some(bytes) = self.fdt_bytes(at) else {
            return ControlFlow::Continue(());
        };
        let Ok(fdt) = Fdt::parse(&bytes) else {
            return ControlFlow::Continue(());
        };
        let mut paths = Paths::default();
        let mut open = alloc::vec![(fdt.root(), prefix.to_string())];
        while let Some((node, path)) = open.pop() {
            let token = at.saturating_add(len64(node.offset()));
            if node.depth() > 0 {
                self.ordered(format!("{path}:token"), Kind::Number, (token, 4), ByteOrder::Big)?;
                let width = node.name().len().saturating_add(1);
                self.bytes(format!("{path}:name"), Kind::Text, token.saturating_add(4), width)?;
            }
            for property in node.properties() {
                let name = paths.unique(&format!("{path}/{}", property.name));
                self.property(name, at, property)?;
            }
            let children: Vec<_> = node
                .children()
                .map(|child| (child, paths.unique(&format!("{path}/{}", child.name()))))
                .collect();
            open.extend(children.into_iter().rev());
        }
        ControlFlow::Continue(())
    }

    fn fdt_bytes(&self, at: u64) -> Option<Vec<u8>> {
        let header = place::read(self.memory, at, HEADER_SIZE)?;
        let size = u64::from(total_size(&header).ok()?);
        (size <= MAX_FDT_SIZE)
            .then(|| crate::memory::read_pieces(self.memory, at, clamp(size)).ok())
            .flatten()
    }

    fn property(&mut self, path: String, fdt: u64, property: &Property<'_>) -> ControlFlow<()> {
        let value = fdt.saturating_add(len64(property.offset));
        // {token, length, offset of the name} come before the value.
        let header = |words: u64| value.saturating_sub(words.saturating_mul(4));
        for (name, kind, words) in [
            ("token", Kind::Number, 3),
            ("length", Kind::Size, 2),
            ("nameoff", Kind::Offset, 1),
        ] {
            self.ordered(format!("{path}:{name}"), kind, (header(words), 4), ByteOrder::Big)?;
        }
        let width = property.value.len();
        match kind_of(property) {
            _ if width == 0 => ControlFlow::Continue(()),
            (kind, false) => self.bytes(path, kind, value, width),
            (kind, true) => {
                for index in 0..(width / 8).min(self.limit) {
                    let at = value.saturating_add(len64(index).saturating_mul(8));
                    self.bytes(format!("{path}[{index}]"), kind, at, 8)?;
                }
                ControlFlow::Continue(())
            }
        }
    }
}

/// What a property's value means, and whether it is an array of numbers of eight bytes.
fn kind_of(property: &Property<'_>) -> (Kind, bool) {
    let width = property.value.len();
    let kind = match property.name {
        kho::PROP_MEMORY_MAP
        | kho::PROP_SUB_FDT
        | kho::PROP_SUB_BLOB
        | luo::PROP_SESSION_HEADER
        | luo::PROP_FLB_HEADER
        | memblock::PROP_START => Kind::Address,
        kho::PROP_SUB_BLOB_SIZE | memblock::PROP_SIZE => Kind::Size,
        test_kho::PROP_COUNT => Kind::Count,
        PROP_RECURSIVE_FDT | test_kho::PROP_FOLIOS if width.is_multiple_of(8) => {
            return (Kind::Address, true);
        }
        "compatible" => return (Kind::Text, false),
        _ => match property.as_str() {
            Some(text) if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) => {
                return (Kind::Text, false);
            }
            _ => Kind::Number,
        },
    };
    match width {
        4 | 8 => (kind, false),
        _ => (Kind::Bytes, false),
    }
}

/// Paths within an FDT, each given once: siblings of one name are told apart by `#1`, `#2`.
#[derive(Default)]
struct Paths(BTreeMap<String, usize>);

impl Paths {
    fn unique(&mut self, path: &str) -> String {
        let given = self.0.entry(path.to_string()).or_insert(0);
        let path = match *given {
            0 => path.to_string(),
            count => format!("{path}#{count}"),
        };
        *given = given.saturating_add(1);
        path
    }
}
