//! Real handovers, captured at the new kernel's first look at them.

mod support;

use kho_core::blueprint::FileContentPlan;
use kho_core::map::MapFormat;
use kho_core::model::{Content, KhoVersion, LuoVersion, MemfdVersion};
use kho_core::{
    Abi, FreeRegions, Handover, Owner, Owners, PhysicalMemory, PhysicalMemoryMut, Region, Rule, SparseMemory,
    build, verify,
};
use support::{Capture, VERSIONS, directory};

/// Compares the decoded model as text with a golden file that was reviewed by hand. `BLESS=1` writes the files anew;
/// a missing file fails.
#[test]
fn decoded_models_are_the_reviewed_ones() {
    for version in VERSIONS {
        let shown = format!("{}\n", kho_core::tree::tree(&Capture::load(version).read(), 40));
        let path = directory("goldens").join(format!("{version}.txt"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &shown).unwrap();
        }
        let golden =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(shown, golden, "{}", path.display());
    }
}

#[test]
fn kernels_write_what_the_reader_expects() {
    for version in VERSIONS {
        let handover = Capture::load(version).read();
        assert!(handover.findings.is_empty(), "{version}: {:?}", handover.findings);
        let owners = Owners::of(&handover);
        assert_eq!(owners.unowned(), [], "{version}");
        // Owned memory equals preserved memory, except for records that the ABI does not preserve.
        assert_eq!(
            owners.regions(Owner::is_preserved),
            handover.map.extents(),
            "{version}"
        );
        let kmx = &handover.reserve_mem()[0];
        assert_eq!(
            (kmx.name.as_str(), kmx.region.size),
            ("kmx", 1 << 20),
            "{version}"
        );
    }
}

#[test]
fn versions_are_told_apart() {
    let read = |version| Capture::load(version).read();
    let (oldest, middle, newest) = (read("6.17.8"), read("6.19.11"), read("7.3.4"));
    assert_eq!(
        [oldest.version, middle.version, newest.version],
        [KhoVersion::V1, KhoVersion::V1, KhoVersion::V4]
    );
    let formats = [&oldest, &middle, &newest].map(|handover| handover.map.format());
    assert_eq!(
        formats,
        [MapFormat::ChunksOf512, MapFormat::ChunksOfPages, MapFormat::Radix]
    );
    assert_eq!(oldest.luo(), None);
    assert_eq!(middle.luo().unwrap().version, LuoVersion::V1);
    assert_eq!(newest.luo().unwrap().version, LuoVersion::V5);
    let memfd = |handover: &Handover| handover.sessions()[0].files[0].memfd().unwrap().version;
    assert_eq!(
        (memfd(&middle), memfd(&newest)),
        (MemfdVersion::V1, MemfdVersion::V2)
    );
    assert_eq!(oldest.findings.of(Rule::BitmapSizeCertain).count(), 0);
}

#[test]
fn a_memfd_is_followed_to_its_last_page() {
    for version in ["6.19.11", "7.3.4"] {
        let handover = Capture::load(version).read();
        let file = handover.session("kmx").unwrap().file(0x4242).unwrap();
        let memfd = file.memfd().unwrap();
        assert_eq!((memfd.size, memfd.folios.len()), (8 << 20, 2048), "{version}");
        let pages = handover.file_pages(memfd);
        assert!(
            pages
                .iter()
                .zip(0..)
                .all(|((page, region), index)| *page == index && region.size == 4096)
        );
        let owners = Owners::of(&handover);
        let owned: u64 = owners
            .regions(|owner| owner == Owner::FileData { session: 0, file: 0 })
            .iter()
            .map(|region| region.size)
            .sum();
        assert_eq!(owned, 8 << 20, "{version}");
        assert_eq!(memfd.record_of(0), memfd.list.runs.first().copied());
        assert_eq!(
            memfd.record_of(2047),
            memfd.list.runs.last().map(|run| run + 4080)
        );
        assert_eq!(memfd.record_of(2048), None);
    }
}

#[test]
fn sessions_and_files_are_told_apart() {
    let handover = Capture::load("7.2.12").read();
    assert_eq!(
        (handover.version, handover.map.format()),
        (KhoVersion::V4, MapFormat::Radix)
    );
    assert_eq!(handover.luo().unwrap().version, LuoVersion::V5);
    let mut pages = 0;
    let mut files = Vec::new();
    for session in handover.sessions() {
        for file in &session.files {
            let memfd = file.memfd().unwrap();
            assert_eq!(memfd.version, MemfdVersion::V2);
            pages += memfd.folios.len();
            files.push((session.name.as_str(), file.token, memfd.size));
        }
    }
    assert_eq!(
        files,
        [
            ("second", 1, 1 << 20),
            ("vm", 0x4242, 4 << 20),
            ("vm", 7, 36 << 10)
        ]
    );
    assert_eq!(pages, 256 + 1024 + 9);
}

#[test]
fn the_kernels_own_test_data_has_its_blocks() {
    for version in ["6.17.8", "6.19.11", "7.3.4"] {
        let handover = Capture::load(version).read();
        let Content::TestKho(test) = &handover.sub_blob("kho_test").unwrap().content else {
            panic!("{version}")
        };
        assert_eq!(test.folios.len(), test.count as usize);
        for folio in &test.folios {
            assert_eq!(
                handover.map.block_containing(folio.address),
                Some(*folio),
                "{version}"
            );
        }
        assert!(!handover.map.is_preserved(handover.scratch[0].region.start));
    }
}

#[test]
fn a_folio_of_the_kernels_own_test_that_is_not_preserved_is_found() {
    for version in ["6.17.8", "6.19.11", "7.3.4"] {
        let mut capture = Capture::load(version);
        let handover = capture.read();
        let Content::TestKho(test) = &handover.sub_blob("kho_test").unwrap().content else {
            panic!("{version}")
        };
        let folio = test.folios[0];
        let bitmaps = handover.map.bitmaps().iter();
        let mut of_its_order = bitmaps.filter(|bitmap| bitmap.order == folio.order);
        let bitmap = of_its_order
            .find(|bitmap| bitmap.window().covers(&folio.region()))
            .unwrap();
        let bit = (folio.address - bitmap.start) / folio.size();
        let at = bitmap.at + bit / 8;
        let mut byte = [0];
        capture.memory.read(at, &mut byte).unwrap();
        byte[0] &= !(1 << (bit % 8));
        capture.memory.write(at, &byte).unwrap();
        let verdict = verify(&capture.read(), &capture.memory);
        let broken: Vec<_> = verdict.findings.iter().map(|found| found.rule).collect();
        assert_eq!(broken, [Rule::DataPreserved], "{version}: {:?}", verdict.findings);
    }
}

#[test]
fn a_handover_is_found_without_being_told_where() {
    for version in VERSIONS {
        let capture = Capture::load(version);
        let search = kho_core::find::find(&capture.memory);
        assert!(search.unread.is_empty(), "{version}: {:?}", search.unread);
        // The `setup_data` node is not among the pages of the fixture, so scratch stays unknown.
        let [found] = search.found.as_slice() else {
            panic!("{version}: {} found", search.found.len())
        };
        assert_eq!(
            (found.entry.fdt.start, found.setup_data),
            (capture.entry.fdt.start, None)
        );
        assert_eq!(found.handover.sub_blobs, capture.read().sub_blobs);
    }
}

#[test]
fn what_kernels_hand_over_is_sound() {
    for version in VERSIONS {
        let capture = Capture::load(version);
        let verdict = verify(&capture.read(), &capture.memory);
        assert!(verdict.findings.is_empty(), "{version}: {:?}", verdict.findings);
        assert!(
            verdict.judged(Rule::BlockInRam) > 20 && verdict.judged(Rule::RecordPreserved) > 2,
            "{version}"
        );
    }
}

#[test]
fn a_captured_handover_can_be_rebuilt_in_every_abi() {
    let capture = Capture::load("7.3.4");
    let mut plan = capture.read().blueprint(&capture.memory).unwrap();
    // The FDT of the kernel's own test holds addresses of memory that the copy lacks, and memfd-v1 has no seals.
    plan.blobs.clear();
    plan.kexec_metadata = None;
    for file in plan
        .luo
        .iter_mut()
        .flat_map(|luo| &mut luo.sessions)
        .flat_map(|session| &mut session.files)
    {
        if let FileContentPlan::Memfd(memfd) = &mut file.content {
            assert_eq!((memfd.seals, memfd.folios.len()), (1, 2048));
            memfd.seals = 0;
        }
    }
    for abi in [Abi::KhoV1, Abi::KhoV2, Abi::KhoV3, Abi::KhoV4] {
        let mut memory = SparseMemory::new(capture.memory.ranges());
        let used = plan
            .blocks
            .iter()
            .map(|block| block.region())
            .chain(capture.read().map.extents());
        let mut allocator = FreeRegions::outside(&memory.ranges(), used.chain(plan.scratch.iter().copied()));
        let entry = build(&plan, abi, &mut memory, &mut allocator).unwrap();
        let handover = Handover::read(&memory, entry.fdt, entry.scratch).unwrap();
        assert_eq!(handover.blueprint(&memory).unwrap(), plan, "{abi}");
        let verdict = verify(&handover, &memory);
        assert!(verdict.is_sound(), "{abi}: {:?}", verdict.findings);
    }
}

#[test]
fn owners_are_found_by_address_and_by_region() {
    let handover = Capture::load("7.3.4").read();
    let owners = Owners::of(&handover);
    let memfd = handover.sessions()[0].files[0].memfd().unwrap();
    let data = Owner::FileData { session: 0, file: 0 };
    assert_eq!(owners.at(memfd.folios[7].address + 5), Some(data));
    assert_eq!(
        owners.at(memfd.at),
        Some(Owner::FileRecord { session: 0, file: 0 })
    );
    assert_eq!(owners.at(handover.map.root()), Some(Owner::KhoMap));
    assert_eq!(owners.at(handover.sessions()[0].at), Some(Owner::LuoTable));
    assert_eq!(
        owners.at(handover.reserve_mem()[0].region.start),
        Some(Owner::ReserveMem(0))
    );
    assert_eq!(owners.at(0x1000), None);
    let around = Region::new(memfd.at - 4096, 3 * 4096);
    let within: Vec<_> = owners.within(around).map(|record| record.owner).collect();
    assert_eq!(
        within,
        [Owner::LuoTable, Owner::FileRecord { session: 0, file: 0 }, data]
    );
    assert_eq!(
        data.describe(&handover).to_string(),
        "data of token 0x4242 in session \"kmx\""
    );
}
