//! Small or simple inputs that ask for much memory: handling them stays within bounds.

#[path = "../fuzz/src/budget.rs"]
#[expect(dead_code)] // The budget of fuzz targets is not used here.
mod budget;

use kho_core::abi::PAGE_SIZE;
use kho_core::blueprint::{FileContentPlan, FilePlan, FolioPlan, LuoPlan, MemfdPlan, SessionPlan};
use kho_core::diff::{Side, diff};
use kho_core::fdt::Fdt;
use kho_core::{
    Abi, Block, Blueprint, FreeRegions, Handover, KhoData, PhysicalMemoryMut, Region, Rule, SparseMemory,
    build, verify,
};

/// Fails if `work` ever holds more than 12 MiB beyond the size of its input. That is far below the fuzz targets'
/// budget, to notice growth early.
fn assert_bounded(input: usize, work: impl FnOnce()) {
    let peak = budget::peak_of(work);
    println!("{input} bytes of input: {peak} bytes held");
    assert!(peak <= (12 << 20) + input, "{peak} bytes held for {input}");
}

/// An FDT whose structure block is these words.
fn fdt(structure: impl Iterator<Item = u32>) -> Vec<u8> {
    let structure: Vec<u8> = structure.flat_map(u32::to_be_bytes).collect();
    let strings_at = 56 + structure.len();
    let words = [
        0xd00d_feed,
        strings_at + 2,
        56,
        strings_at,
        40,
        17,
        16,
        0,
        2,
        structure.len(),
    ];
    let mut bytes: Vec<u8> = words
        .iter()
        .flat_map(|word| u32::try_from(*word).unwrap().to_be_bytes())
        .collect();
    bytes.extend([0; 16]);
    bytes.extend(structure);
    bytes.extend(b"p\0");
    bytes
}

#[test]
fn an_fdt_of_nothing_but_nodes() {
    let nodes = (0..1_400_000).flat_map(|_| [1, u32::from_be_bytes(*b"n\0\0\0"), 2]);
    let bytes = fdt([1, 0].into_iter().chain(nodes).chain([2, 9]));
    assert_bounded(bytes.len(), || assert!(Fdt::parse(&bytes).is_err()));
}

#[test]
fn an_fdt_of_nothing_but_properties() {
    let properties = (0..1_400_000).flat_map(|_| [3, 0, 0]);
    let bytes = fdt([1, 0].into_iter().chain(properties).chain([2, 9]));
    assert_bounded(bytes.len(), || assert!(Fdt::parse(&bytes).is_err()));
}

/// Memory with a kho-v4 handover.
fn built(plan: &Blueprint) -> (SparseMemory, KhoData) {
    let mut memory = SparseMemory::new(vec![Region::new(0, 4 << 30)]);
    let mut free = FreeRegions::new(vec![Region::new(1 << 20, 16 << 20)]);
    let entry = build(plan, Abi::KhoV4, &mut memory, &mut free).expect("room");
    (memory, entry)
}

fn size(memory: &SparseMemory) -> usize {
    memory.pages().count() * PAGE_SIZE
}

/// Memory with a kho-v4 handover of one session with this file.
fn file(content: FileContentPlan) -> (SparseMemory, KhoData, Handover) {
    let session = SessionPlan {
        name: "a".into(),
        files: vec![FilePlan { token: 1, content }],
    };
    let luo = LuoPlan {
        sessions: vec![session],
        ..LuoPlan::default()
    };
    let (memory, entry) = built(&Blueprint {
        luo: Some(luo),
        ..Blueprint::default()
    });
    let handover = Handover::read(&memory, entry.fdt, entry.scratch).expect("a handover");
    (memory, entry, handover)
}

#[test]
fn a_session_of_files_without_end() {
    let (mut memory, entry, handover) = file(FileContentPlan::Other {
        compatible: "x".into(),
        data: 0,
    });
    let first = handover.sessions()[0].files[0].at - 16;
    let record = |token: u64| [u64::from(b'x'), 0, 0, 0, 0, 0, 0, token];
    let blocks: Vec<u64> = (0..2000).map(|index| (64 << 20) + index * 4096).collect();
    for (block, next) in [first].iter().chain(&blocks).zip(blocks.iter().chain(&[0])) {
        let files = (0..63).flat_map(|index| record(block + index));
        let words: Vec<u8> = [*next, 63]
            .into_iter()
            .chain(files)
            .flat_map(u64::to_le_bytes)
            .collect();
        memory.write(*block, &words).expect("RAM");
    }
    assert_bounded(size(&memory), || {
        let handover = Handover::read(&memory, entry.fdt, entry.scratch).expect("a handover");
        assert_eq!(handover.sessions()[0].files.len(), 2001 * 63);
        assert!(!verify(&handover, &memory).is_sound());
    });
}

#[test]
fn a_list_that_names_one_page_over_and_over() {
    let folio = FolioPlan {
        block: Block::new(1 << 30, 0),
        index: 0,
        flags: 0,
    };
    let (mut memory, entry, handover) = file(FileContentPlan::Memfd(MemfdPlan {
        size: 4096,
        folios: vec![folio],
        ..MemfdPlan::default()
    }));
    let memfd = handover.sessions()[0].files[0].memfd().expect("a memfd");
    let (run, first) = (memfd.list.runs[0], memfd.list.chunks[0]);
    // More chunks, each of which names the same page, and a huge count of folios.
    let chunks: Vec<u64> = (0..64).map(|index| (64 << 20) + index * 4096).collect();
    for (chunk, next) in [first].iter().chain(&chunks).zip(chunks.iter().chain(&[0])) {
        let words: Vec<u8> = [*next]
            .into_iter()
            .chain([run; 511])
            .flat_map(u64::to_le_bytes)
            .collect();
        memory.write(*chunk, &words).expect("RAM");
    }
    memory.write(memfd.at + 24, &u64::MAX.to_le_bytes()).expect("RAM");
    assert_bounded(size(&memory), || {
        let handover = Handover::read(&memory, entry.fdt, entry.scratch).expect("a handover");
        assert!(handover.findings.of(Rule::RecordShared).count() > 0);
        let memfd = handover.sessions()[0].files[0].memfd().expect("a memfd");
        assert_eq!((memfd.folios.len(), memfd.list.runs.len()), (256, 65 * 511));
        verify(&handover, &memory);
    });
}

/// A map of every second page of 8 GiB, so that each bit is an extent of its own.
fn every_second_page() -> (SparseMemory, Handover) {
    let blocks = (0..64).map(|index| Block::new(index << 27, 0)).collect();
    let (mut memory, entry) = built(&Blueprint {
        blocks,
        ..Blueprint::default()
    });
    let handover = Handover::read(&memory, entry.fdt, entry.scratch).expect("a handover");
    for bitmap in handover.map.bitmaps() {
        memory.write(bitmap.at, &[0x55; PAGE_SIZE]).expect("RAM");
    }
    let handover = Handover::read(&memory, entry.fdt, entry.scratch).expect("a handover");
    (memory, handover)
}

#[test]
fn a_map_of_every_second_page() {
    let (memory, handover) = every_second_page();
    assert_bounded(size(&memory), || assert!(!verify(&handover, &memory).is_sound()));
    assert_bounded(size(&memory), || {
        drop(kho_core::tree::tree(&handover, 8).to_string())
    });
    let side = Side {
        handover: &handover,
        memory: None,
    };
    assert_bounded(size(&memory), || assert!(diff(side, side).differences.is_empty()));
}
