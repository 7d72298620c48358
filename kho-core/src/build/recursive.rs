//! Writing recursive FDTs: each child on its own first, then the parents that hold their addresses.
//!
//! [`serialise`] is a pure function of one node and its children's addresses, so children can be serialised on any
//! number of threads; only [`place`] needs the allocator. This is what the design is for: objects are written in
//! parallel, and the top level only collects addresses.

use alloc::string::String;
use alloc::vec::Vec;

use vm_fdt::FdtWriter;

use super::{BuildError, PageAllocator};
use crate::abi::PAGE_SIZE;
use crate::memory::PhysicalMemoryMut;
use crate::recursive::{ByteOrder, Entry, PROP_RECURSIVE_FDT};

/// What one FDT holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Properties of this node.
    pub properties: Vec<(String, Vec<u8>)>,
    /// Children inside the same FDT.
    pub in_place: Vec<(String, Contents)>,
    /// Children in FDTs of their own, each given by the pages of its FDT.
    pub linked: Vec<(String, Vec<u64>)>,
}

/// Serialises one FDT; writes the children's addresses in the given byte order.
pub fn serialise(contents: &Contents, order: ByteOrder) -> Result<Vec<u8>, BuildError> {
    let mut writer = FdtWriter::new()?;
    node(&mut writer, "", contents, order)?;
    Ok(writer.finish()?)
}

fn node(writer: &mut FdtWriter, name: &str, contents: &Contents, order: ByteOrder) -> Result<(), BuildError> {
    let open = writer.begin_node(name)?;
    for (name, value) in &contents.properties {
        writer.property(name, value)?;
    }
    for (name, contents) in &contents.in_place {
        node(writer, name, contents, order)?;
    }
    for (name, pages) in &contents.linked {
        let child = writer.begin_node(name)?;
        let encode = match order {
            ByteOrder::Native => u64::to_le_bytes,
            ByteOrder::BigEndian => u64::to_be_bytes,
        };
        let addresses: Vec<u8> = pages.iter().flat_map(|page| encode(*page)).collect();
        writer.property(PROP_RECURSIVE_FDT, &addresses)?;
        writer.end_node(child)?;
    }
    writer.end_node(open)?;
    Ok(())
}

/// Writes an FDT on allocated pages, which need not be contiguous, and returns their addresses.
pub fn place(
    bytes: &[u8],
    memory: &mut dyn PhysicalMemoryMut,
    allocator: &mut dyn PageAllocator,
) -> Result<Vec<u64>, BuildError> {
    let mut placer = super::Placer::new(memory, allocator);
    bytes.chunks(PAGE_SIZE).map(|page| placer.place(page)).collect()
}

/// Lists the pages of a root FDT on anchor pages; a root of one page needs none.
pub fn anchor(
    pages: &[u64],
    memory: &mut dyn PhysicalMemoryMut,
    allocator: &mut dyn PageAllocator,
) -> Result<Entry, BuildError> {
    if let [page] = pages {
        return Ok(Entry::Page(*page));
    }
    let mut placer = super::Placer::new(memory, allocator);
    let mut next = 0_u64;
    for pages in pages.chunks(PAGE_SIZE / 8 - 1).rev() {
        let anchor: Vec<u8> = [next]
            .iter()
            .chain(pages)
            .flat_map(|word| word.to_le_bytes())
            .collect();
        next = placer.place(&anchor)?;
    }
    Ok(Entry::Anchor(next))
}
