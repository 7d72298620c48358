//! The way through a handover, field by field.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use super::{ByteOrder, Field, Kind, Place, Source, Value, bits_of, decode, place};
use crate::abi::kexec_handover::{
    CHUNK_ELEMENT_SIZE, CHUNK_ELEMENTS, CHUNK_HEADER_SIZE, RADIX_TABLE_ENTRIES, SCRATCH_ENTRY_SIZE,
};
use crate::abi::kexec_metadata::RELEASE_LENGTH;
use crate::abi::test_kho::{DATA_NODE_NAME, PROP_FOLIOS};
use crate::bytes::word;
use crate::map::MapFormat;
use crate::memory::{PhysicalMemory, clamp, len64};
use crate::model::{Content, Handover, SubBlob, TestKho};

/// Name, meaning and width in bytes of a field of a packed structure.
pub(super) type Part = (&'static str, Kind, usize);

/// State of one listing.
pub(super) struct Walk<'a, 'v> {
    pub(super) handover: &'a Handover,
    pub(super) memory: &'a dyn PhysicalMemory,
    setup_data: Option<u64>,
    pub(super) limit: usize,
    visit: &'v mut dyn FnMut(Field) -> ControlFlow<()>,
}

impl<'a, 'v> Walk<'a, 'v> {
    pub(super) fn new(
        source: &Source<'a>,
        limit: usize,
        visit: &'v mut dyn FnMut(Field) -> ControlFlow<()>,
    ) -> Self {
        Self {
            handover: source.handover,
            memory: source.memory,
            setup_data: source.setup_data,
            limit,
            visit,
        }
    }

    pub(super) fn all(&mut self) -> ControlFlow<()> {
        if let Some(at) = self.setup_data {
            self.record("setup_data", at, SETUP_DATA)?;
        }
        let handover = self.handover;
        for (index, area) in handover.scratch.iter().enumerate().take(self.limit) {
            self.record(&format!("scratch[{index}]"), area.at, SCRATCH)?;
        }
        self.fdt("fdt", handover.fdt.start)?;
        self.map()?;
        for blob in &handover.sub_blobs {
            self.sub_blob(blob)?;
        }
        self.memfds()
    }

    fn sub_blob(&mut self, blob: &SubBlob) -> ControlFlow<()> {
        match &blob.content {
            Content::Luo(luo) => self.luo(luo),
            Content::KexecMetadata(_) => self.record(&blob.name, blob.address, METADATA),
            Content::Memblock(_) | Content::Fdt { .. } => self.fdt(&blob.name, blob.address),
            Content::TestKho(test) => {
                self.fdt(&blob.name, blob.address)?;
                self.test_kho(&blob.name, test)
            }
            Content::Opaque => ControlFlow::Continue(()),
        }
    }

    fn test_kho(&mut self, name: &str, test: &TestKho) -> ControlFlow<()> {
        let Some(list) = &test.list else {
            return ControlFlow::Continue(());
        };
        self.vmalloc(&format!("{name}/{DATA_NODE_NAME}/{PROP_FOLIOS}"), list)?;
        for index in 0..test.folios.len().min(self.limit) {
            if let Some(at) = list.address_of(index.saturating_mul(8)) {
                self.bytes(format!("{name}/folio[{index}]"), Kind::Address, at, 8)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn map(&mut self) -> ControlFlow<()> {
        let map = &self.handover.map;
        for (index, node) in map.nodes().iter().enumerate() {
            match map.format() {
                MapFormat::Radix => self.table(index, node.at)?,
                MapFormat::ChunksOf512 | MapFormat::ChunksOfPages => self.chunk(index, node.at)?,
            }
        }
        for (index, bitmap) in map.bitmaps().iter().enumerate() {
            let words = bitmap.words.iter().enumerate().filter(|(_, word)| **word != 0);
            for (place, _) in words.take(self.limit) {
                let at = bitmap.at.saturating_add(len64(place).saturating_mul(8));
                self.bytes(format!("map/bitmap[{index}]/word[{place}]"), Kind::Bits, at, 8)?;
            }
        }
        for (index, block) in map.blocks_by_address().enumerate().take(self.limit) {
            let Some(bit) = place::bit_of(self.handover, block) else {
                continue;
            };
            let prefix = format!("map/block[{index}]");
            self.part_of(
                format!("{prefix}/preserved"),
                Kind::Bits,
                (bit.at, 1),
                (bit.shift, 1),
            )?;
            let virtual_field = |name: &str, kind, number| Field {
                path: format!("{prefix}/{name}"),
                kind,
                place: Place::Block { block },
                value: Value::Number(number),
            };
            (self.visit)(virtual_field("address", Kind::Address, block.address))?;
            (self.visit)(virtual_field("order", Kind::Order, block.order.into()))?;
        }
        ControlFlow::Continue(())
    }

    fn table(&mut self, index: usize, at: u64) -> ControlFlow<()> {
        let Some(page) = place::read(self.memory, at, RADIX_TABLE_ENTRIES.saturating_mul(8)) else {
            return ControlFlow::Continue(());
        };
        let entries = (0..RADIX_TABLE_ENTRIES).filter(|entry| word(&page, *entry) != 0);
        for entry in entries.take(self.limit) {
            let at = at.saturating_add(len64(entry).saturating_mul(8));
            self.bytes(format!("map/table[{index}]/entry[{entry}]"), Kind::Address, at, 8)?;
        }
        ControlFlow::Continue(())
    }

    fn chunk(&mut self, index: usize, at: u64) -> ControlFlow<()> {
        let prefix = format!("map/chunk[{index}]");
        self.record(&prefix, at, CHUNK)?;
        let Some(header) = place::read(self.memory, at, CHUNK_HEADER_SIZE) else {
            return ControlFlow::Continue(());
        };
        let count = clamp(word(&header, 1) >> 32).min(CHUNK_ELEMENTS);
        for element in 0..count.min(self.limit) {
            let offset = element
                .saturating_mul(CHUNK_ELEMENT_SIZE)
                .saturating_add(CHUNK_HEADER_SIZE);
            let at = at.saturating_add(len64(offset));
            self.record(&format!("{prefix}/element[{element}]"), at, ELEMENT)?;
        }
        ControlFlow::Continue(())
    }

    /// Visits the fields of a packed structure.
    pub(super) fn record(&mut self, prefix: &str, at: u64, parts: &[Part]) -> ControlFlow<()> {
        let mut at = at;
        for (name, kind, width) in parts {
            self.bytes(format!("{prefix}/{name}"), *kind, at, *width)?;
            at = at.saturating_add(len64(*width));
        }
        ControlFlow::Continue(())
    }

    /// Visits a field of whole bytes, numbers in little-endian order.
    pub(super) fn bytes(&mut self, path: String, kind: Kind, at: u64, width: usize) -> ControlFlow<()> {
        self.ordered(path, kind, (at, width), ByteOrder::Little)
    }

    /// Visits a field of whole bytes.
    pub(super) fn ordered(
        &mut self,
        path: String,
        kind: Kind,
        (at, width): (u64, usize),
        order: ByteOrder,
    ) -> ControlFlow<()> {
        self.field(path, kind, (at, width), order, (0, bits_of(width)))
    }

    /// Visits a field of some bits of a little-endian number.
    pub(super) fn part_of(
        &mut self,
        path: String,
        kind: Kind,
        place: (u64, usize),
        part: (u32, u32),
    ) -> ControlFlow<()> {
        self.field(path, kind, place, ByteOrder::Little, part)
    }

    fn field(
        &mut self,
        path: String,
        kind: Kind,
        (at, width): (u64, usize),
        order: ByteOrder,
        (shift, bits): (u32, u32),
    ) -> ControlFlow<()> {
        let Some(bytes) = place::read(self.memory, at, width) else {
            return ControlFlow::Continue(());
        };
        let Some(value) = place::value(kind, &bytes, order, (shift, bits)) else {
            return ControlFlow::Continue(());
        };
        (self.visit)(Field {
            path,
            kind,
            place: Place::Bytes {
                at,
                width,
                order,
                shift,
                bits,
            },
            value,
        })
    }

    /// The number at an address, little-endian.
    pub(super) fn number_at(&self, at: u64) -> Option<u64> {
        Some(decode(&place::read(self.memory, at, 8)?, ByteOrder::Little))
    }
}

/// The addresses of a chain of pages that begin with the address of the next, each once.
pub(super) fn chain(memory: &dyn PhysicalMemory, first: u64, most: usize) -> Vec<u64> {
    let mut pages: Vec<u64> = Vec::new();
    let mut seen = alloc::collections::BTreeSet::new();
    let mut next = first;
    while next != 0 && pages.len() < most && seen.insert(next) {
        let Some(bytes) = place::read(memory, next, 8) else {
            break;
        };
        pages.push(next);
        next = decode(&bytes, ByteOrder::Little);
    }
    pages
}

/// `struct setup_data` and `struct kho_data` (arch/x86/include/uapi/asm/setup_data.h).
const SETUP_DATA: &[Part] = &[
    ("next", Kind::Address, 8),
    ("type", Kind::Number, 4),
    ("len", Kind::Size, 4),
    ("fdt_addr", Kind::Address, 8),
    ("fdt_size", Kind::Size, 8),
    ("scratch_addr", Kind::Address, 8),
    ("scratch_size", Kind::Size, 8),
];
/// `struct kho_scratch` (include/linux/kexec_handover.h).
const SCRATCH: &[Part] = &[("addr", Kind::Address, 8), ("size", Kind::Size, 8)];
/// `struct khoser_mem_chunk` of kho-v1.
const CHUNK: &[Part] = &[
    ("next", Kind::Address, 8),
    ("order", Kind::Order, 4),
    ("num_elms", Kind::Count, 4),
];
/// `struct khoser_mem_bitmap_ptr` of kho-v1.
const ELEMENT: &[Part] = &[("phys_start", Kind::Address, 8), ("bitmap", Kind::Address, 8)];
/// `struct kho_kexec_metadata` (include/linux/kho/abi/kexec_metadata.h).
const METADATA: &[Part] = &[
    ("version", Kind::Number, 4),
    ("previous_release", Kind::Text, RELEASE_LENGTH),
    ("kexec_count", Kind::Number, 4),
];

const _: () = assert!(SCRATCH_ENTRY_SIZE == 16);
