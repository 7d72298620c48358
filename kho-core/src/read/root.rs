//! The KHO root FDT, the scratch array, and the dispatch to the reader of each sub-blob.

use alloc::vec;
use alloc::vec::Vec;

use super::{Context, MAX_FDT_SIZE, MAX_SCRATCH_AREAS, ReadError, chunks, radix};
use crate::abi::{kexec_handover as abi, kexec_metadata, luo, memblock, test_kho};
use crate::fdt::{self, Fdt, Node};
use crate::finding::Rule;
use crate::map::{MapFormat, PreservedMap};
use crate::memory::{MemoryError, PhysicalMemory, Region, clamp, len64};
use crate::model::{Content, Handover, KhoVersion, ScratchArea, SubBlob};
use crate::owners::Owner;
use crate::read::context::Hex;
use crate::tree::Counted;

pub(super) fn read(memory: &dyn PhysicalMemory, fdt: Region, scratch: Region) -> Result<Handover, ReadError> {
    let bytes = root_bytes(memory, fdt)?;
    let parsed = Fdt::parse(&bytes).map_err(|source| ReadError::Fdt {
        address: fdt.start,
        source,
    })?;
    let root = parsed.root();
    let compatible = root
        .compatible()
        .ok_or(ReadError::NoVersion { address: fdt.start })?;
    let version = KhoVersion::from_compatible(compatible).ok_or_else(|| ReadError::UnknownVersion {
        address: fdt.start,
        found: compatible.into(),
    })?;

    let mut context = Context::new(memory);
    let place = Region::new(fdt.start, len64(parsed.total_size()));
    context.claim_pages(place.start, place.size, Owner::KhoFdt, "KHO FDT");
    let areas = scratch_areas(&mut context, scratch);
    let map = preserved_map(&mut context, version, &root, fdt.start);
    let mut sub_blobs = Vec::new();
    for node in root.children() {
        let index = sub_blobs.len();
        if let Some(blob) = sub_blob(&mut context, version, &node, fdt.start, index) {
            sub_blobs.push(blob);
        }
    }
    let (findings, records) = context.into_parts();
    Ok(Handover {
        version,
        fdt: place,
        scratch_array: scratch,
        scratch: areas,
        map,
        sub_blobs,
        findings,
        records,
    })
}

fn root_bytes(memory: &dyn PhysicalMemory, fdt: Region) -> Result<Vec<u8>, ReadError> {
    let mut header = vec![0; fdt::HEADER_SIZE];
    memory.read(fdt.start, &mut header)?;
    let at = |source| ReadError::Fdt {
        address: fdt.start,
        source,
    };
    let stated = u64::from(fdt::total_size(&header).map_err(at)?);
    let room = fdt.size.min(MAX_FDT_SIZE);
    if stated > room {
        return Err(ReadError::FdtTooLarge {
            address: fdt.start,
            stated,
            room,
        });
    }
    if !memory.is_ram(&Region::new(fdt.start, stated)) {
        return Err(MemoryError::OutsideRam {
            address: fdt.start,
            size: stated,
        }
        .into());
    }
    let mut bytes = vec![0; clamp(stated)];
    memory.read(fdt.start, &mut bytes)?;
    Ok(bytes)
}

fn scratch_areas(context: &mut Context<'_>, array: Region) -> Vec<ScratchArea> {
    let what = "scratch array";
    let mut areas = Vec::new();
    if array.size == 0 || !context.claim(array, Owner::ScratchArray, what) {
        return areas;
    }
    let limit = MAX_SCRATCH_AREAS.saturating_mul(abi::SCRATCH_ENTRY_SIZE);
    let Some(bytes) = context.bytes(array.start, clamp(array.size).min(limit), what) else {
        return areas;
    };
    if clamp(array.size) > limit || !bytes.len().is_multiple_of(abi::SCRATCH_ENTRY_SIZE) {
        context.finding(
            Rule::CountFits,
            array.start,
            what,
            "up to 4,096 entries of 16 bytes",
            Hex(array.size),
        );
    }
    for (index, entry) in bytes.chunks_exact(abi::SCRATCH_ENTRY_SIZE).enumerate() {
        let mut fields = crate::bytes::Fields::new(entry);
        let at = array
            .start
            .saturating_add(len64(index).saturating_mul(len64(abi::SCRATCH_ENTRY_SIZE)));
        areas.push(ScratchArea {
            at,
            region: Region::new(fields.u64(), fields.u64()),
        });
    }
    areas
}

fn preserved_map(
    context: &mut Context<'_>,
    version: KhoVersion,
    root: &Node<'_, '_>,
    fdt: u64,
) -> PreservedMap {
    let address = number(context, root, abi::PROP_MEMORY_MAP, fdt);
    match version {
        // 6.17 has no LUO, so LUO's presence determines the size of the bitmaps.
        KhoVersion::V1 => chunks::read(
            context,
            address.unwrap_or(0),
            root.child(luo::NODE_NAME).is_some(),
        ),
        KhoVersion::V2 | KhoVersion::V3 | KhoVersion::V4 => match address {
            Some(address) => radix::read(context, address),
            None => PreservedMap::new(MapFormat::Radix, 0, Vec::new(), Vec::new()),
        },
    }
}

fn sub_blob(
    context: &mut Context<'_>,
    version: KhoVersion,
    node: &Node<'_, '_>,
    fdt: u64,
    index: usize,
) -> Option<SubBlob> {
    let at = fdt.saturating_add(len64(node.offset()));
    let (address, stated) = match version {
        KhoVersion::V1 => (number(context, node, abi::PROP_SUB_FDT, fdt)?, None),
        // The first patches of the radix map used the property of kho-v1; the merged version renamed it.
        KhoVersion::V2 if node.property(abi::PROP_SUB_FDT).is_some() => {
            (number(context, node, abi::PROP_SUB_FDT, fdt)?, None)
        }
        KhoVersion::V2 => (number(context, node, abi::PROP_SUB_BLOB, fdt)?, None),
        KhoVersion::V3 | KhoVersion::V4 => {
            let address = number(context, node, abi::PROP_SUB_BLOB, fdt)?;
            (address, number(context, node, abi::PROP_SUB_BLOB_SIZE, fdt))
        }
    };
    let mut blob = SubBlob {
        at,
        name: node.name().into(),
        address,
        size: stated,
        content: Content::Opaque,
    };
    blob.content = content(context, &mut blob, index);
    Some(blob)
}

/// Decodes a blob. Sets its size if only its own header states it.
fn content(context: &mut Context<'_>, blob: &mut SubBlob, index: usize) -> Content {
    let owner = Owner::SubBlob(index);
    match blob.name.as_str() {
        luo::NODE_NAME => super::luo::read(context, blob, owner),
        kexec_metadata::NODE_NAME => super::metadata::read(context, blob, owner),
        memblock::NODE_NAME => super::memblock::read(context, blob, owner),
        test_kho::NODE_NAME => super::test_kho::read(context, blob, owner, index),
        _ => unknown(context, blob, owner),
    }
}

/// Even a blob of an unknown format is located, sized and claimed.
pub(super) fn unknown(context: &mut Context<'_>, blob: &mut SubBlob, owner: Owner) -> Content {
    let what = alloc::format!("sub-blob \"{}\"", blob.name);
    context.finding(
        Rule::SubBlobKnown,
        blob.address,
        &what,
        "contents that can be read",
        "unknown contents",
    );
    let Some(header) = context.bytes(blob.address, fdt::HEADER_SIZE, &what) else {
        return Content::Opaque;
    };
    if fdt::total_size(&header).is_err() {
        context.claim_pages(blob.address, blob.size.unwrap_or(1), owner, &what);
        return Content::Opaque;
    }
    let Some(bytes) = sub_fdt(context, blob, owner) else {
        return Content::Opaque;
    };
    match Fdt::parse(&bytes) {
        Ok(fdt) => Content::Fdt {
            compatible: fdt.root().compatible().map(Into::into),
        },
        Err(error) => {
            context.finding(Rule::FdtStructure, blob.address, &what, "an FDT", error);
            Content::Opaque
        }
    }
}

/// Reads and claims a blob that is an FDT; its header's size and the stated one must agree.
pub(super) fn sub_fdt(context: &mut Context<'_>, blob: &mut SubBlob, owner: Owner) -> Option<Vec<u8>> {
    let what = alloc::format!("sub-blob \"{}\"", blob.name);
    let bytes = context.fdt_bytes(blob.address, owner, &what)?;
    let size = len64(bytes.len());
    match blob.size {
        Some(stated) if stated != size => {
            context.finding(Rule::CountAgrees, blob.address, &what, Hex(stated), Hex(size));
        }
        _ => blob.size = Some(size),
    }
    Some(bytes)
}

/// Parses the bytes of a sub-blob's FDT; damage gives a finding.
pub(super) fn parse_fdt<'a>(
    context: &mut Context<'_>,
    blob: &SubBlob,
    what: &str,
    bytes: &'a [u8],
) -> Option<Fdt<'a>> {
    Fdt::parse(bytes)
        .map_err(|error| context.finding(Rule::FdtStructure, blob.address, what, "an FDT", error))
        .ok()
}

/// A sub-blob whose FDT is of another version than `expected`: adds a finding, and keeps only the version.
pub(super) fn other_version(
    context: &mut Context<'_>,
    blob: &SubBlob,
    what: &str,
    expected: &str,
    found: Option<&str>,
) -> Content {
    context.finding(
        Rule::VersionKnown,
        blob.address,
        what,
        expected,
        found.unwrap_or("none"),
    );
    Content::Fdt {
        compatible: found.map(Into::into),
    }
}

/// A property of eight bytes, native order.
pub(super) fn number(context: &mut Context<'_>, node: &Node<'_, '_>, name: &str, fdt: u64) -> Option<u64> {
    let property = node.property(name);
    let value = property.and_then(fdt::Property::as_u64);
    if value.is_none() {
        let at = fdt.saturating_add(len64(property.map_or(node.offset(), |property| property.offset)));
        let what = alloc::format!("node \"{}\"", node.name());
        let expected = alloc::format!("property \"{name}\" of 8 bytes");
        match property {
            Some(property) => {
                let found = Counted::of(property.value.len(), "byte");
                context.finding(Rule::PropertyMissing, at, &what, expected, found);
            }
            None => context.finding(Rule::PropertyMissing, at, &what, expected, "none"),
        }
    }
    value
}
