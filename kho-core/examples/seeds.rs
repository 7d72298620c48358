//! Writes seeds for the fuzz targets: `seeds CORPUS_FOLDER`. They are the captured handovers and small built ones.

#[path = "../tests/support/mod.rs"]
mod support;

use std::error::Error;
use std::fs;
use std::path::Path;

use kho_core::blueprint::{
    FileContentPlan, FilePlan, FolioPlan, LuoPlan, MemfdPlan, NamedRegion, SessionPlan,
};
use kho_core::{Abi, Block, Blueprint, FreeRegions, Handover, PhysicalMemory, Region, SparseMemory, build};
use support::{Capture, Recorder, VERSIONS};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("expected a folder")?;
    let mut captures = Vec::new();
    for version in VERSIONS {
        let capture = Capture::load(version);
        captures.push((version.to_string(), capture.memory, capture.entry));
    }
    for abi in Abi::ALL {
        let mut memory = SparseMemory::new(vec![Region::new(0, 1 << 30)]);
        let mut allocator = FreeRegions::new(vec![Region::new(1 << 20, 1 << 20)]);
        let entry = build(&plan(abi), abi, &mut memory, &mut allocator)?;
        captures.push((abi.to_string(), memory, entry));
    }
    for (name, memory, entry) in captures {
        let recorder = Recorder::new(memory);
        Handover::read(&recorder, entry.fdt, entry.scratch)?;
        let unpacked = zstd::decode_all(&recorder.fixture(entry)[..])?;
        for target in ["handover", "verify", "recursive"] {
            put(&folder, target, &name, &unpacked)?;
        }
        let mut page = vec![0; 4096];
        recorder.read(entry.fdt.start, &mut page)?;
        put(&folder, "fdt", &name, &page)?;
        put(&folder, "find", &name, &page)?;
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

fn put(folder: &str, target: &str, name: &str, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let folder = Path::new(folder).join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), bytes)?)
}

/// A session with a memfd and a reserve_mem region, as far as the ABI has them.
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
