use super::*;
use crate::blueprint::{
    Blob, FileContentPlan, FilePlan, FlbPlan, FolioPlan, Kexec, LuoPlan, MemfdPlan, NamedRegion, SessionPlan,
};
use crate::map::order_size;
use crate::memory::SparseMemory;
use crate::{Handover, Rule, Severity, verify};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use std::format;

/// RAM of the tests: data above 256 MiB, the builder's own pages below.
const RAM: u64 = 4 << 30;
const DATA: u64 = 256 << 20;

pub(crate) fn build_and_read(plan: &Blueprint, abi: Abi) -> (Handover, SparseMemory) {
    let mut memory = SparseMemory::new(vec![Region::new(0, RAM)]);
    let mut allocator = FreeRegions::new(vec![Region::new(0x10_0000, 64 << 20)]);
    let entry =
        build(plan, abi, &mut memory, &mut allocator).unwrap_or_else(|error| panic!("{abi}: {error}"));
    let handover = Handover::read(&memory, entry.fdt, entry.scratch).unwrap();
    (handover, memory)
}

/// Takes blocks out of the data area one after the other, so that none overlap.
struct Blocks(u64);

impl Blocks {
    fn take(&mut self, order: u8) -> Block {
        let address = self.0.next_multiple_of(order_size(order));
        self.0 = address + order_size(order);
        Block::new(address, order)
    }
}

fn memfd(orders: &[u8], position: u64, seals: u32, blocks: &mut Blocks) -> MemfdPlan {
    let mut index = 0;
    let mut folios = Vec::new();
    for order in orders {
        folios.push(FolioPlan {
            block: blocks.take(*order),
            index,
            flags: 3,
        });
        index += 1 << order;
    }
    MemfdPlan {
        position,
        size: index * 4096,
        seals,
        flags: 0,
        folios,
    }
}

type FileSeed = (bool, Vec<u8>, u64, u32);

fn file(seed: &FileSeed, token: u64, abi: Abi, blocks: &mut Blocks) -> FilePlan {
    let (is_memfd, orders, number, seals) = seed;
    let content = if *is_memfd {
        let seals = if abi.memfd() == MemfdVersion::V1 {
            0
        } else {
            *seals
        };
        FileContentPlan::Memfd(memfd(orders, *number, seals, blocks))
    } else {
        FileContentPlan::Other {
            compatible: "vfio-pci-v1".into(),
            data: *number,
        }
    };
    FilePlan { token, content }
}

prop_compose! {
    pub(crate) fn plans()(
        abi in prop::sample::select(&Abi::ALL[..]),
        orders in prop::collection::vec(0_u8..11, 0..20),
        gaps in prop::collection::vec(0_u64..64, 20),
        regions in prop::collection::vec(1_u64..600, 0..3),
        sessions in prop::option::of(prop::collection::vec(prop::collection::vec(
            (any::<bool>(), prop::collection::vec(0_u8..4, 0..40), any::<u64>(), 0_u32..0x40), 0..4), 0..4)),
        many_files in any::<bool>(),
        flbs in prop::collection::vec((1_u64..9, any::<u64>()), 0..3),
        kexec in prop::option::of(1_u32..9),
        blob in prop::option::of(prop::collection::vec(any::<u8>(), 1..9000)),
    ) -> (Blueprint, Abi) {
        let mut blocks = Blocks(DATA);
        let mut plan = Blueprint { scratch: vec![Region::new(128 << 20, 32 << 20)], ..Blueprint::default() };
        for (order, gap) in orders.iter().zip(gaps) {
            plan.blocks.push(blocks.take(*order));
            blocks.0 += gap * 4096;
        }
        for (index, pages) in regions.iter().enumerate() {
            let region = Region::new(blocks.0 + 4096, pages * 4096);
            blocks.0 = region.end();
            plan.reserve_mem.push(NamedRegion { name: format!("region{index}"), region });
        }
        if let Some(sessions) = sessions.filter(|_| abi.luo().is_some()) {
            let mut luo = LuoPlan { liveupdate_number: 7, ..LuoPlan::default() };
            for (index, seeds) in sessions.iter().enumerate() {
                let mut files: Vec<_> =
                    seeds.iter().zip(0..).map(|(seed, token)| file(seed, token, abi, &mut blocks)).collect();
                // More than one block of records, and as many as luo-v1 has room for.
                let more = if many_files && index == 0 { 128 - files.len() as u64 } else { 0 };
                let other = |token| file(&(false, vec![], token, 0), 1000 + token, abi, &mut Blocks(0));
                files.extend((0..more).map(other));
                luo.sessions.push(SessionPlan { name: format!("session {index}"), files });
            }
            if abi.has_flbs() {
                luo.flbs = flbs.iter().map(|(count, data)| FlbPlan { compatible: "flb-v1".into(), data: *data, count: *count })
                    .collect();
            }
            plan.luo = Some(luo);
        }
        if abi.has_blob_sizes() {
            plan.kexec_metadata = kexec.map(|count| Kexec { previous_release: "7.3.4-test".into(), count });
            plan.blobs = blob.map(|bytes| Blob { name: "unknown".into(), bytes }).into_iter().collect();
        }
        (plan, abi)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_built_is_read_back_and_sound((plan, abi) in plans()) {
        let (handover, memory) = build_and_read(&plan, abi);
        prop_assert_eq!(handover.version, abi.kho());
        prop_assert_eq!(&handover.blueprint(&memory).unwrap(), &plan);
        let verdict = verify(&handover, &memory);
        let wrong: Vec<_> = verdict.findings.iter()
            .filter(|finding| finding.severity() > Severity::Note && finding.rule != Rule::BitmapSizeCertain).collect();
        prop_assert!(wrong.is_empty(), "{abi}: {wrong:?}");
        if abi == Abi::KhoV1Bitmaps512 {
            prop_assert_eq!(handover.map.format(), MapFormat::ChunksOf512);
        }
    }

    #[test]
    fn regions_are_cut_into_the_blocks_that_cover_them(start in 0_u64..1 << 20, pages in 0_u64..5000) {
        let region = Region::new(start * 4096, pages * 4096);
        let blocks = blocks_of(region).unwrap();
        let covered = crate::map::merge(blocks.iter().map(Block::region));
        let expected = if pages == 0 { vec![] } else { vec![region] };
        prop_assert_eq!(covered, expected);
        prop_assert!(blocks.iter().all(|block| block.address.is_multiple_of(block.size())));
    }
}

#[test]
fn a_list_of_exactly_one_chunk_is_followed_by_an_empty_one() {
    let mut blocks = Blocks(DATA);
    // 511 pages of 256 records.
    let file = memfd(&vec![0; 511 * 256], 0, 0, &mut blocks);
    let session = SessionPlan {
        name: "full".into(),
        files: vec![FilePlan {
            token: 1,
            content: FileContentPlan::Memfd(file),
        }],
    };
    let plan = Blueprint {
        luo: Some(LuoPlan {
            liveupdate_number: 1,
            sessions: vec![session],
            flbs: vec![],
        }),
        ..Blueprint::default()
    };
    let (handover, memory) = build_and_read(&plan, Abi::KhoV4);
    let memfd = handover.sessions()[0].files[0].memfd().unwrap();
    assert_eq!(
        (memfd.list.chunks.len(), memfd.list.runs.len(), memfd.folios.len()),
        (2, 511, 511 * 256)
    );
    assert!(verify(&handover, &memory).is_sound());
}

#[test]
fn what_an_abi_cannot_say_is_refused() {
    let refuse = |plan: Blueprint, abi| {
        let mut memory = SparseMemory::new(vec![Region::new(0, RAM)]);
        let mut allocator = FreeRegions::new(vec![Region::new(0x10_0000, 64 << 20)]);
        build(&plan, abi, &mut memory, &mut allocator).unwrap_err()
    };
    let luo = |luo: LuoPlan| Blueprint {
        luo: Some(luo),
        ..Blueprint::default()
    };
    let session = |name: &str| SessionPlan {
        name: name.into(),
        files: vec![],
    };
    assert!(matches!(
        refuse(luo(LuoPlan::default()), Abi::KhoV1Bitmaps512),
        BuildError::NotInAbi { what: "LUO", .. }
    ));
    let flbs = vec![FlbPlan {
        compatible: "a".into(),
        data: 0,
        count: 1,
    }];
    let with_flbs = LuoPlan {
        flbs,
        ..LuoPlan::default()
    };
    assert!(matches!(
        refuse(luo(with_flbs), Abi::KhoV1),
        BuildError::NotInAbi { what: "FLBs", .. }
    ));
    let long = LuoPlan {
        sessions: vec![session(&"x".repeat(64))],
        ..LuoPlan::default()
    };
    assert!(matches!(
        refuse(luo(long), Abi::KhoV4),
        BuildError::TooLong { limit: 63, .. }
    ));
    let many = LuoPlan {
        sessions: vec![session("x"); 820],
        ..LuoPlan::default()
    };
    assert!(matches!(
        refuse(luo(many), Abi::KhoV3),
        BuildError::TooMany {
            found: 820,
            limit: 819,
            ..
        }
    ));
    let blob = Blueprint {
        blobs: vec![Blob {
            name: "b".into(),
            bytes: vec![1],
        }],
        ..Blueprint::default()
    };
    assert!(matches!(refuse(blob, Abi::KhoV2), BuildError::NotInAbi { .. }));
    let block = Blueprint {
        blocks: vec![Block::new(0x1000, 1)],
        ..Blueprint::default()
    };
    assert!(matches!(refuse(block, Abi::KhoV4), BuildError::BadBlock { .. }));
    let names = (0..200)
        .map(|index| Blob {
            name: format!("blob{index}"),
            bytes: vec![1],
        })
        .collect();
    let crowd = Blueprint {
        blobs: names,
        ..Blueprint::default()
    };
    assert!(matches!(
        refuse(crowd, Abi::KhoV4),
        BuildError::TooMany { limit: 4096, .. }
    ));
}

#[test]
fn free_regions_are_given_once_and_aligned() {
    let ram = [Region::new(0, 0x10_0000)];
    let mut allocator = FreeRegions::outside(&ram, [Region::new(0x3000, 0x5000)]);
    let given: Vec<_> = [0, 1, 3, 0]
        .into_iter()
        .map(|order| allocator.allocate(order))
        .collect();
    assert_eq!(given, [Some(0x1000), Some(0x8000), Some(0x10000), Some(0x2000)]);
    assert_eq!(allocator.allocate(20), None);
}

#[test]
fn an_empty_plan_preserves_the_root_alone() {
    let empty = Blueprint::default();
    for abi in Abi::ALL {
        let (handover, _) = build_and_read(&empty, abi);
        // The page of the KHO FDT is all that is preserved.
        assert_eq!(
            handover.map.blocks().collect::<Vec<_>>(),
            [Block::new(handover.fdt.start, 0)]
        );
    }
}

mod recursive_fdts {
    use super::super::recursive::{Contents, anchor, place, serialise};
    use super::*;
    use crate::recursive::{ByteOrder, Entry, read};

    fn leaf(key: &str, size: usize) -> Contents {
        Contents {
            properties: vec![(key.into(), vec![7; size])],
            ..Contents::default()
        }
    }

    #[test]
    fn children_are_written_at_the_same_time_and_joined_at_the_top() {
        for order in [ByteOrder::Native, ByteOrder::BigEndian] {
            let mut memory = SparseMemory::new(vec![Region::new(0, RAM)]);
            let mut allocator = FreeRegions::new(vec![Region::new(0x10_0000, 1 << 20)]);
            let bytes: Vec<Vec<u8>> = std::thread::scope(|scope| {
                let write = |size| scope.spawn(move || serialise(&leaf("key", size), order).unwrap());
                let threads: Vec<_> = [10, 3000, 9000].map(write).into_iter().collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let mut top = leaf("compatible", 1);
            top.in_place.push(("small".into(), leaf("key", 1)));
            for (name, bytes) in ["one", "two", "three"].iter().zip(bytes) {
                let pages = place(&bytes, &mut memory, &mut allocator).unwrap();
                // The pages of one FDT need not be contiguous.
                allocator.allocate(0).unwrap();
                top.linked.push(((*name).into(), pages));
            }
            top.properties.push(("big".into(), vec![1; 5000]));
            let pages = place(&serialise(&top, order).unwrap(), &mut memory, &mut allocator).unwrap();
            let entry = anchor(&pages, &mut memory, &mut allocator).unwrap();
            assert!(matches!(entry, Entry::Anchor(_)));
            let tree = read(&memory, entry);
            assert!(tree.findings.is_empty(), "{:?}", tree.findings);
            assert_eq!((tree.anchors.len(), tree.pages), (1, pages));
            for (name, size, pages) in [("one", 10, 1), ("two", 3000, 1), ("three", 9000, 3)] {
                let node = tree.root.node(name).unwrap();
                assert_eq!(node.property("key").unwrap(), vec![7; size]);
                let child = node.child.as_ref().unwrap();
                assert_eq!((child.pages.len(), child.order), (pages, order));
            }
            assert_eq!(tree.root.node("small").unwrap().child, None);
        }
    }

    #[test]
    fn a_tree_that_contains_itself_ends() {
        let mut memory = SparseMemory::new(vec![Region::new(0, RAM)]);
        let mut allocator = FreeRegions::new(vec![Region::new(0x10_0000, 1 << 20)]);
        let mut top = Contents::default();
        top.linked.push(("self".into(), vec![0x10_0000]));
        place(
            &serialise(&top, ByteOrder::Native).unwrap(),
            &mut memory,
            &mut allocator,
        )
        .unwrap();
        let tree = read(&memory, Entry::Page(0x10_0000));
        assert_eq!(tree.findings.of(Rule::RecordShared).count(), 1);
        let wild = Contents {
            linked: vec![("wild".into(), vec![u64::MAX])],
            ..Contents::default()
        };
        let pages = place(
            &serialise(&wild, ByteOrder::Native).unwrap(),
            &mut memory,
            &mut allocator,
        )
        .unwrap();
        let tree = read(&memory, Entry::Page(pages[0]));
        assert_eq!(tree.findings.of(Rule::RecordReadable).count(), 1);
    }
}
