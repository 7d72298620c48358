//! Writes seeds for the fuzz targets: `seeds CORPUS_FOLDER`. The seeds are the captured handovers, small built ones,
//! recursive FDTs, images of RAM, and a few blocks in every scheme.

#[path = "../tests/support/mod.rs"]
mod support;

use std::error::Error;
use std::fs;
use std::path::Path;

use kho_core::blueprint::{
    FileContentPlan, FilePlan, FolioPlan, LuoPlan, MemfdPlan, NamedRegion, SessionPlan,
};
use kho_core::build::recursive::{Contents, anchor, place, serialise};
use kho_core::recursive::{ByteOrder, Entry};
use kho_core::{
    Abi, Block, Blueprint, FreeRegions, Handover, KhoData, PhysicalMemory, Region, SparseMemory, build,
};
use support::{Capture, Recorder, VERSIONS};

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let folder = std::env::args().nth(1).ok_or("expected a folder")?;
    let mut captures = Vec::new();
    for version in VERSIONS {
        let capture = Capture::load(version);
        captures.push((version.to_string(), capture.memory, capture.entry));
    }
    for abi in Abi::ALL {
        let mut memory = SparseMemory::new(vec![Region::new(0, 1 << 30)]);
        let mut allocator = FreeRegions::new(vec![Region::new(0x1000, 1 << 20)]);
        let entry = build(&plan(abi), abi, &mut memory, &mut allocator)?;
        put(&folder, "find", &abi.to_string(), &image(&memory, entry)?)?;
        captures.push((abi.to_string(), memory, entry));
    }
    for (name, memory, entry) in captures {
        let recorder = Recorder::new(memory);
        Handover::read(&recorder, entry.fdt, entry.scratch)?;
        let unpacked = zstd::decode_all(&recorder.fixture(entry)[..])?;
        for target in ["handover", "verify"] {
            put(&folder, target, &name, &unpacked)?;
        }
        let mut page = vec![0; 4096];
        recorder.read(entry.fdt.start, &mut page)?;
        put(&folder, "fdt", &name, &page)?;
    }
    for order in [ByteOrder::Native, ByteOrder::BigEndian] {
        for pages in [1, 2] {
            let name = format!("{order:?}-{pages}").to_lowercase();
            put(&folder, "recursive", &name, &recursive(order, pages)?)?;
        }
    }
    for scheme in kho_core::schemes::all() {
        let blocks: Vec<Block> = (0_u8..40)
            .map(|index| Block::new(u64::from(index) << 22, index % 11))
            .collect();
        let encoded = scheme.encode(&blocks);
        let words = encoded.words().iter().copied().chain([encoded.root()]);
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        put(
            &folder,
            "schemes",
            &scheme.name().replace([' ', ','], "-"),
            &bytes,
        )?;
    }
    Ok(())
}

fn put(folder: &str, target: &str, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    let folder = Path::new(folder).join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), bytes)?)
}

/// The pages from address 0 on, as an image of RAM, with a `setup_data` node on the first of them.
fn image(memory: &SparseMemory, entry: KhoData) -> Result<Vec<u8>, Failure> {
    let mut image = Vec::new();
    for (address, page) in memory.pages() {
        let address = usize::try_from(address)?;
        image.resize(address + page.len(), 0);
        image[address..].copy_from_slice(page);
    }
    image[0x100..][..KhoData::NODE_SIZE].copy_from_slice(&entry.to_node(0));
    Ok(image)
}

/// Recursive FDTs: a child of one page that has a child of two, and a root of as many pages as asked for.
fn recursive(order: ByteOrder, pages: usize) -> Result<Vec<u8>, Failure> {
    let ram = Region::new(0, 1 << 20);
    let mut memory = SparseMemory::new(vec![ram]);
    let mut allocator = FreeRegions::new(vec![Region::new(0x1000, 0x1_0000)]);
    let leaf = Contents {
        properties: vec![("data".into(), vec![7; 5000])],
        ..Contents::default()
    };
    let leaf = place(&serialise(&leaf, order)?, &mut memory, &mut allocator)?;
    let child = Contents {
        properties: vec![("compatible".into(), b"child-v1\0".to_vec())],
        in_place: vec![("small".into(), Contents::default())],
        linked: vec![("leaf".into(), leaf)],
    };
    let child = place(&serialise(&child, order)?, &mut memory, &mut allocator)?;
    let root = Contents {
        properties: vec![
            ("compatible".into(), b"kho-v1\0".to_vec()),
            ("padding".into(), vec![1; 4096 * (pages - 1)]),
        ],
        linked: vec![("child".into(), child)],
        ..Contents::default()
    };
    let root = place(&serialise(&root, order)?, &mut memory, &mut allocator)?;
    let (Entry::Page(entry) | Entry::Anchor(entry)) = anchor(&root, &mut memory, &mut allocator)?;
    let recorder = Recorder::new(memory);
    let mut page = vec![0; 4096];
    let addresses: Vec<u64> = recorder.inner().pages().map(|(address, _)| address).collect();
    for address in addresses {
        recorder.read(address, &mut page)?;
    }
    let entry = KhoData {
        fdt: Region::new(entry, 4096),
        scratch: Region::new(0, 0),
    };
    Ok(zstd::decode_all(&recorder.fixture(entry)[..])?)
}

/// A session with a memfd and a reserve_mem region, if the ABI has them.
fn plan(abi: Abi) -> Blueprint {
    let folio = |index: u64| FolioPlan {
        block: Block::new((256 << 20) + index * 4096, 0),
        index,
        flags: 3,
    };
    let memfd = MemfdPlan {
        size: 8192,
        folios: vec![folio(0), folio(1)],
        ..MemfdPlan::default()
    };
    let file = FilePlan {
        token: 1,
        content: FileContentPlan::Memfd(memfd),
    };
    let session = SessionPlan {
        name: "a".into(),
        files: vec![file],
    };
    let luo = LuoPlan {
        liveupdate_number: 1,
        sessions: vec![session],
        flbs: vec![],
    };
    Blueprint {
        scratch: vec![Region::new(512 << 20, 16 << 20)],
        reserve_mem: vec![NamedRegion {
            name: "kmx".into(),
            region: Region::new(300 << 20, 1 << 20),
        }],
        luo: abi.luo().map(|_| luo),
        ..Blueprint::default()
    }
}
