//! The FDTs and flat records of the root's children, and the root itself.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use vm_fdt::FdtWriter;

use super::{Abi, BuildError, Placer};
use crate::abi::{PAGE_SIZE, kexec_handover as abi_root, kexec_metadata, memblock as abi_memblock};
use crate::blueprint::{Kexec, NamedRegion};
use crate::memory::{Region, len64};
use crate::model::KhoVersion;

/// What the root says about a sub-blob.
pub(super) struct Child {
    pub(super) name: String,
    pub(super) address: u64,
    pub(super) size: u64,
}

/// Writes the root FDT into its page.
pub(super) fn root(
    placer: &mut Placer<'_>,
    page: u64,
    abi: Abi,
    map: u64,
    children: &[Child],
) -> Result<(), BuildError> {
    let mut writer = FdtWriter::new()?;
    let root = writer.begin_node("")?;
    writer.property_string("compatible", abi.kho().compatible())?;
    writer.property(abi_root::PROP_MEMORY_MAP, &map.to_le_bytes())?;
    let address = match abi.kho() {
        KhoVersion::V1 => abi_root::PROP_SUB_FDT,
        KhoVersion::V2 | KhoVersion::V3 | KhoVersion::V4 => abi_root::PROP_SUB_BLOB,
    };
    for child in children {
        let node = writer.begin_node(&child.name)?;
        writer.property(address, &child.address.to_le_bytes())?;
        if abi.has_blob_sizes() {
            writer.property(abi_root::PROP_SUB_BLOB_SIZE, &child.size.to_le_bytes())?;
        }
        writer.end_node(node)?;
    }
    writer.end_node(root)?;
    let bytes = writer.finish()?;
    if bytes.len() > PAGE_SIZE {
        let (found, limit) = (len64(bytes.len()), len64(PAGE_SIZE));
        return Err(BuildError::TooMany {
            what: "bytes in the KHO FDT",
            found,
            limit,
        });
    }
    placer.write(page, &bytes)
}

/// Writes an FDT on preserved pages and names it as a child of the root.
pub(super) fn place(placer: &mut Placer<'_>, name: &str, writer: FdtWriter) -> Result<Child, BuildError> {
    let bytes = writer.finish()?;
    Ok(Child {
        name: name.into(),
        address: placer.place(&bytes)?,
        size: len64(bytes.len()),
    })
}

/// The memblock FDT.
pub(super) fn memblock(placer: &mut Placer<'_>, regions: &[NamedRegion]) -> Result<Child, BuildError> {
    let mut writer = FdtWriter::new()?;
    let root = writer.begin_node("")?;
    writer.property_string("compatible", abi_memblock::COMPATIBLE_V1)?;
    for region in regions {
        let node = writer.begin_node(&region.name)?;
        writer.property_string("compatible", abi_memblock::RESERVE_MEM_COMPATIBLE_V1)?;
        writer.property(abi_memblock::PROP_START, &region.region.start.to_le_bytes())?;
        writer.property(abi_memblock::PROP_SIZE, &region.region.size.to_le_bytes())?;
        writer.end_node(node)?;
    }
    writer.end_node(root)?;
    place(placer, abi_memblock::NODE_NAME, writer)
}

/// The kexec metadata.
pub(super) fn metadata(placer: &mut Placer<'_>, plan: &Kexec, abi: Abi) -> Result<Child, BuildError> {
    if !abi.has_blob_sizes() {
        return Err(BuildError::NotInAbi {
            abi,
            what: "kexec metadata",
        });
    }
    let mut bytes = kexec_metadata::VERSION.to_le_bytes().to_vec();
    put_text::<{ kexec_metadata::RELEASE_LENGTH }>(&mut bytes, "release", &plan.previous_release)?;
    bytes.extend(plan.count.to_le_bytes());
    let name = kexec_metadata::NODE_NAME.into();
    Ok(Child {
        name,
        address: placer.place(&bytes)?,
        size: len64(bytes.len()),
    })
}

/// The array of scratch areas. It is not preserved: kexec loads it as a segment of its own.
pub(super) fn scratch(placer: &mut Placer<'_>, areas: &[Region]) -> Result<Region, BuildError> {
    let bytes: Vec<u8> = areas
        .iter()
        .flat_map(|area| [area.start, area.size])
        .flat_map(u64::to_le_bytes)
        .collect();
    if bytes.is_empty() {
        return Ok(Region::new(0, 0));
    }
    let address = placer.zeroed(super::pages::order_for(bytes.len()))?;
    placer.write(address, &bytes)?;
    Ok(Region::new(address, len64(bytes.len())))
}

/// Appends a string in a field of `N` bytes, terminated.
pub(super) fn put_text<const N: usize>(
    bytes: &mut Vec<u8>,
    what: &'static str,
    text: &str,
) -> Result<(), BuildError> {
    let limit = N.saturating_sub(1);
    if text.len() > limit || text.contains('\0') {
        return Err(BuildError::TooLong {
            what,
            text: text.to_string(),
            limit: len64(limit),
        });
    }
    let end = bytes.len().saturating_add(N);
    bytes.extend(text.bytes());
    bytes.resize(end, 0);
    Ok(())
}
