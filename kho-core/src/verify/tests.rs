use super::*;
use crate::blueprint::{
    Blob, FileContentPlan, FilePlan, FlbPlan, FolioPlan, Kexec, LuoPlan, MemfdPlan, NamedRegion, SessionPlan,
};
use crate::memory::{PhysicalMemoryMut, SparseMemory};
use crate::{Abi, Block, Blueprint, FreeRegions, Handover, KhoData, build};
use alloc::vec;
use alloc::vec::Vec;

const RAM: u64 = 1 << 30;

/// A valid handover to damage: two sessions with a memfd each, an FLB, a reserve_mem region, metadata, an opaque
/// blob.
fn plan() -> Blueprint {
    let memfd = |base: u64| MemfdPlan {
        size: 3 * 4096,
        folios: vec![
            FolioPlan {
                block: Block::new(base, 1),
                index: 0,
                flags: 3,
            },
            FolioPlan {
                block: Block::new(base + 0x4000, 0),
                index: 2,
                flags: 3,
            },
        ],
        ..MemfdPlan::default()
    };
    let session = |name: &str, base| SessionPlan {
        name: name.into(),
        files: [0, 1]
            .map(|token| FilePlan {
                token,
                content: FileContentPlan::Memfd(memfd(base + token * 0x10000)),
            })
            .into(),
    };
    Blueprint {
        scratch: vec![Region::new(512 << 20, 16 << 20), Region::new(768 << 20, 16 << 20)],
        reserve_mem: vec![NamedRegion {
            name: "kmx".into(),
            region: Region::new(300 << 20, 1 << 20),
        }],
        luo: Some(LuoPlan {
            liveupdate_number: 1,
            sessions: vec![session("a", 256 << 20), session("b", 280 << 20)],
            flbs: vec![FlbPlan {
                compatible: "flb".into(),
                data: 0,
                count: 1,
            }],
        }),
        kexec_metadata: Some(Kexec {
            previous_release: "7.3.4".into(),
            count: 1,
        }),
        blobs: vec![Blob {
            name: "unknown".into(),
            bytes: vec![1; 100],
        }],
        // In the windows of bitmaps that the damages need.
        blocks: vec![Block::new(600 << 20, 0), Block::new(RAM - 0x10000, 0)],
    }
}

struct Victim {
    memory: SparseMemory,
    entry: KhoData,
    handover: Handover,
}

impl Victim {
    fn new(abi: Abi) -> Self {
        let mut plan = plan();
        if !abi.has_blob_sizes() {
            plan.blobs.clear();
            plan.kexec_metadata = None;
            plan.luo.as_mut().unwrap().flbs.clear();
        }
        let mut memory = SparseMemory::new(vec![Region::new(0, RAM)]);
        let mut allocator = FreeRegions::new(vec![Region::new(0x10_0000, 16 << 20)]);
        let entry = build(&plan, abi, &mut memory, &mut allocator).unwrap();
        let handover = Handover::read(&memory, entry.fdt, entry.scratch).unwrap();
        Self {
            memory,
            entry,
            handover,
        }
    }

    fn put(&mut self, at: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.write(at, &bytes).unwrap();
    }

    fn get(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn verify(&self) -> Verdict {
        let handover = Handover::read(&self.memory, self.entry.fdt, self.entry.scratch).unwrap();
        verify(&handover, &self.memory)
    }

    /// Sets or clears the bit of a block in the map.
    fn mark(&mut self, block: Block, preserved: bool) {
        let bitmap = |bitmap: &&crate::map::Bitmap| {
            bitmap.order == block.order && bitmap.window().covers(&block.region())
        };
        let bitmap = self.handover.map.bitmaps().iter().find(bitmap).unwrap();
        let bit = (block.address - bitmap.start) / block.size();
        let at = bitmap.at + bit / 64 * 8;
        let word = self.get(at) & !(1 << (bit % 64)) | u64::from(preserved) << (bit % 64);
        self.put(at, &[word]);
    }

    /// Replaces a property's value in the KHO FDT.
    fn put_property(&mut self, node: &str, name: &str, value: u64) {
        let mut bytes = vec![0; usize::try_from(self.handover.fdt.size).unwrap()];
        self.memory.read(self.handover.fdt.start, &mut bytes).unwrap();
        let fdt = crate::fdt::Fdt::parse(&bytes).unwrap();
        let offset = fdt.root().child(node).unwrap().property(name).unwrap().offset as u64;
        self.put(self.handover.fdt.start + offset, &[value]);
    }

    fn memfd(&self) -> &crate::model::Memfd {
        self.handover.sessions()[0].files[0].memfd().unwrap()
    }
}

type Damage = fn(&mut Victim);

/// At least one way to break each rule. Rules that only other ABIs can break have tests of their own below.
const DAMAGES: &[(Rule, &str, Damage)] = &[
    (Rule::RecordReadable, "a session's files outside RAM", |v| {
        v.put(v.handover.sessions()[0].at + 64, &[RAM])
    }),
    (Rule::RecordReadable, "a list that wraps", |v| {
        v.put(v.memfd().list.at, &[!0xfff])
    }),
    (Rule::RecordAligned, "a table off its page", |v| {
        v.put(v.handover.map.root() + 8 * 2, &[0x10_0008])
    }),
    (Rule::RecordShared, "a block that is its own next", |v| {
        let block = v.handover.sessions()[0].at & !0xfff;
        v.put(block, &[block]);
    }),
    (Rule::RecordShared, "a radix table under itself", |v| {
        let root = v.handover.map.root();
        v.put(root + 8 * 2, &[root]);
    }),
    (Rule::RecordShared, "two files with one record", |v| {
        let (files, record) = (
            &v.handover.sessions()[0].files,
            v.handover.sessions()[0].files[0].data,
        );
        v.put(files[1].at + 48, &[record]);
    }),
    (Rule::FdtStructure, "a memblock FDT without magic", |v| {
        v.put(v.handover.sub_blob("memblock").unwrap().address, &[0]);
    }),
    (Rule::FdtStructure, "a memblock FDT with a broken token", |v| {
        v.put(
            v.handover.sub_blob("memblock").unwrap().address + 0x38,
            &[u64::MAX],
        );
    }),
    (Rule::PropertyMissing, "a root without a map", |v| {
        // Renames the property in the strings block.
        let mut bytes = vec![0; usize::try_from(v.handover.fdt.size).unwrap()];
        v.memory.read(v.handover.fdt.start, &mut bytes).unwrap();
        let name = bytes
            .windows(20)
            .position(|window| window == b"preserved-memory-map")
            .unwrap() as u64;
        v.memory.write(v.handover.fdt.start + name, b"X").unwrap();
    }),
    (Rule::VersionKnown, "luo-v9", |v| {
        v.memory.write(v.handover.luo().unwrap().at, b"luo-v9").unwrap()
    }),
    (Rule::VersionKnown, "memfd-v9", |v| {
        v.memory
            .write(v.handover.sessions()[0].files[0].at, b"memfd-v9")
            .unwrap();
    }),
    (Rule::VersionKnown, "metadata of version 2", |v| {
        v.memory
            .write(v.handover.sub_blob("kexec-metadata").unwrap().address, &[2])
            .unwrap();
    }),
    (Rule::CountFits, "a block with more records than it holds", |v| {
        v.put((v.handover.sessions()[0].at & !0xfff) + 8, &[52]);
    }),
    (Rule::CountFits, "an empty block", |v| {
        v.put((v.handover.sessions()[0].at & !0xfff) + 8, &[0])
    }),
    (Rule::CountFits, "more folios than the list holds", |v| {
        v.put(v.memfd().at + 24, &[1000])
    }),
    (Rule::CountFits, "more FLBs than their page holds", |v| {
        v.put(v.handover.luo().unwrap().flbs[0].at - 8, &[64])
    }),
    (
        Rule::CountAgrees,
        "a session that counts more files than it has",
        |v| {
            v.put(v.handover.sessions()[0].at + 72, &[3]);
        },
    ),
    (Rule::CountAgrees, "a list of more pages than it names", |v| {
        v.memory.write(v.memfd().list.at + 8, &[2]).unwrap();
    }),
    (Rule::StringTerminated, "a session name of 64 characters", |v| {
        v.memory.write(v.handover.sessions()[0].at, &[b'x'; 64]).unwrap();
    }),
    (Rule::MapKey, "a leaf for key 0", |v| {
        let leaf = 0x300_0000;
        for (level, at) in [
            (5, v.handover.map.root()),
            (4, leaf + 0x1000),
            (3, leaf + 0x2000),
            (2, leaf + 0x3000),
            (1, leaf + 0x4000),
        ] {
            v.put(
                at,
                &[if level == 1 {
                    leaf
                } else if level == 5 {
                    leaf + 0x1000
                } else {
                    at + 0x1000
                }],
            );
        }
        v.put(leaf, &[1]);
    }),
    (Rule::MapKey, "a key of more than 53 bits", |v| {
        v.put(v.handover.map.root() + 8 * 500, &[0x300_0000])
    }),
    (Rule::BlockInRam, "a page past the end of RAM", |v| {
        v.mark(Block::new(RAM - 4096, 0), true);
        v.memory = shrink(&v.memory);
    }),
    (Rule::BlockOverlap, "a page inside a larger block", |v| {
        v.mark(Block::new(0x1000_1000, 0), true)
    }),
    (Rule::ScratchOverlap, "a preserved page in scratch", |v| {
        v.mark(Block::new(512 << 20, 0), true)
    }),
    (Rule::ScratchOverlap, "a record in scratch", |v| {
        let at = v.handover.scratch[0].at;
        v.put(at, &[0, 32 << 20]);
    }),
    (Rule::ScratchArea, "an area outside RAM", |v| {
        v.put(v.handover.scratch[0].at, &[RAM])
    }),
    (Rule::ScratchArea, "an area off its alignment", |v| {
        v.put(v.handover.scratch[0].at, &[(512 << 20) + 4096])
    }),
    (Rule::ScratchArea, "areas that overlap", |v| {
        v.put(v.handover.scratch[0].at, &[776 << 20])
    }),
    (Rule::RecordPreserved, "the KHO FDT not preserved", |v| {
        v.mark(Block::new(v.handover.fdt.start, 0), false)
    }),
    (Rule::RecordPreserved, "a block of sessions not preserved", |v| {
        v.mark(Block::new(v.handover.sessions()[0].at & !0xfff, 0), false);
    }),
    (Rule::DataPreserved, "a folio not preserved", |v| {
        v.mark(Block::new(0x1000_4000, 0), false)
    }),
    (Rule::DataPreserved, "a folio in the middle of a block", |v| {
        v.put(v.memfd().record_of(0).unwrap(), &[3 << 52 | 0x10001]);
    }),
    (Rule::DataPreserved, "reserve_mem not preserved", |v| {
        v.mark(Block::new(300 << 20, 8), false)
    }),
    (Rule::DataShared, "one folio in two files", |v| {
        let other = v.handover.sessions()[1].files[0]
            .memfd()
            .unwrap()
            .record_of(0)
            .unwrap();
        v.put(other, &[v.get(v.memfd().record_of(0).unwrap())]);
    }),
    (Rule::VersionsTogether, "memfd-v1 with kho-v4", |v| {
        v.memory
            .write(v.handover.sessions()[0].files[0].at, b"memfd-v1")
            .unwrap();
    }),
    (Rule::SubBlobKnown, "a blob of another name", |v| {
        let mut bytes = vec![0; usize::try_from(v.handover.fdt.size).unwrap()];
        v.memory.read(v.handover.fdt.start, &mut bytes).unwrap();
        let name = bytes
            .windows(9)
            .position(|window| window == b"memblock\0")
            .unwrap() as u64;
        v.memory.write(v.handover.fdt.start + name, b"M").unwrap();
    }),
    (Rule::NameUnique, "two sessions of one name", |v| {
        v.memory.write(v.handover.sessions()[0].at, b"b").unwrap();
    }),
    (Rule::NameUnique, "two files of one token", |v| {
        v.put(v.handover.sessions()[0].files[0].at + 56, &[1])
    }),
    (Rule::PageOwned, "a preserved page of nobody", |v| {
        v.mark(Block::new(310 << 20, 0), true)
    }),
    (Rule::FileConsistent, "an unknown seal", |v| {
        v.memory.write(v.memfd().at + 16, &[0x40]).unwrap()
    }),
    (Rule::FileConsistent, "flags", |v| {
        v.memory.write(v.memfd().at + 20, &[1]).unwrap()
    }),
    (Rule::FileConsistent, "unknown folio flags", |v| {
        let at = v.memfd().record_of(0).unwrap();
        v.put(at, &[v.get(at) | 1 << 63]);
    }),
    (Rule::FileConsistent, "a hole in the file", |v| {
        v.put(v.memfd().record_of(1).unwrap() + 8, &[5])
    }),
    (Rule::FileConsistent, "a file longer than its folios", |v| {
        v.put(v.memfd().at + 8, &[4 * 4096])
    }),
    (Rule::FileConsistent, "a file shorter than its folios", |v| {
        v.put(v.memfd().at + 8, &[4096])
    }),
    (Rule::FileConsistent, "a frame number that no address has", |v| {
        let at = v.memfd().record_of(0).unwrap();
        v.put(at, &[v.get(at) | 1 << 41]);
    }),
    (Rule::MetadataPlausible, "a release with a newline", |v| {
        v.memory
            .write(v.handover.sub_blob("kexec-metadata").unwrap().address + 4, b"\n")
            .unwrap();
    }),
    (Rule::MetadataPlausible, "live update 0", |v| {
        v.put(v.handover.luo().unwrap().at + 8, &[0])
    }),
    (Rule::CountAgrees, "an FDT of another size than stated", |v| {
        v.put_property("memblock", "blob-size", 4)
    }),
    (Rule::RecordReadable, "a blob outside RAM", |v| {
        v.put_property("unknown", "preserved-data", 1 << 50)
    }),
];

/// The same pages with the last page of RAM gone.
fn shrink(memory: &SparseMemory) -> SparseMemory {
    let mut smaller = SparseMemory::new(vec![Region::new(0, RAM - 4096)]);
    memory
        .pages()
        .for_each(|(address, page)| smaller.insert(address, *page));
    smaller
}

#[test]
fn what_was_built_is_sound() {
    for abi in Abi::ALL.into_iter().filter(|abi| abi.luo().is_some()) {
        let victim = Victim::new(abi);
        let verdict = victim.verify();
        let wrong: Vec<_> = verdict
            .findings
            .iter()
            .filter(|finding| finding.severity() > Severity::Note)
            .collect();
        assert!(wrong.is_empty(), "{abi}: {wrong:?}");
    }
}

#[test]
fn every_damage_breaks_its_rule() {
    let count = |verdict: &Verdict, rule| verdict.findings.of(rule).count();
    let undamaged = Victim::new(Abi::KhoV4).verify();
    for (rule, damage, apply) in DAMAGES {
        let mut victim = Victim::new(Abi::KhoV4);
        apply(&mut victim);
        let verdict = victim.verify();
        let broken: Vec<_> = verdict.findings.iter().map(|finding| finding.rule).collect();
        assert!(
            count(&verdict, *rule) > count(&undamaged, *rule),
            "{damage}: expected {rule}, found {broken:?}"
        );
    }
}

#[test]
fn every_rule_has_a_damage() {
    // Only kho-v1 has bitmaps of two sizes, and bitmaps at arbitrary addresses.
    let v1_only = [Rule::BitmapSizeCertain, Rule::BlockAligned];
    for rule in Rule::ALL.iter().filter(|rule| !v1_only.contains(rule)) {
        assert!(DAMAGES.iter().any(|(damaged, ..)| damaged == rule), "{rule}");
    }
}

#[test]
fn damaged_chunks_of_kho_v1_are_told() {
    let broken = |abi: Abi, apply: fn(&mut Victim)| -> Vec<Rule> {
        let mut victim = Victim::new(abi);
        apply(&mut victim);
        victim
            .verify()
            .findings
            .iter()
            .map(|finding| finding.rule)
            .collect()
    };
    let rules = broken(Abi::KhoV1, |v| {
        let first = v.handover.map.root();
        v.put(first, &[first]);
    });
    assert!(rules.contains(&Rule::RecordShared), "{rules:?}");
    let rules = broken(Abi::KhoV1, |v| v.put(v.handover.map.root() + 8, &[1000 << 32]));
    assert!(rules.contains(&Rule::CountFits), "{rules:?}");
    let rules = broken(Abi::KhoV1, |v| v.put(v.handover.map.root() + 8, &[1 << 32 | 60]));
    assert!(rules.contains(&Rule::MapKey), "{rules:?}");
    // The first bitmap of the orders above 0 begins somewhere inside a block.
    let rules = broken(Abi::KhoV1, |v| {
        let second = v.get(v.handover.map.root());
        v.put(second + 16, &[0x1000]);
    });
    assert!(rules.contains(&Rule::BlockAligned), "{rules:?}");
}

#[test]
fn two_bitmaps_at_page_boundaries_are_no_evidence_of_their_size() {
    let plan = Blueprint {
        blocks: vec![Block::new(0x20_0000, 9)],
        ..Blueprint::default()
    };
    let mut memory = SparseMemory::new(vec![Region::new(0, RAM)]);
    let mut allocator = FreeRegions::new(vec![Region::new(0x10_0000, 1 << 20)]);
    let entry = build(&plan, Abi::KhoV1, &mut memory, &mut allocator).unwrap();
    let handover = Handover::read(&memory, entry.fdt, entry.scratch).unwrap();
    assert_eq!(handover.findings.of(Rule::BitmapSizeCertain).count(), 1);
}

#[test]
fn a_rule_with_nothing_to_look_at_says_so() {
    let mut memory = SparseMemory::new(vec![Region::new(0, RAM)]);
    let mut allocator = FreeRegions::new(vec![Region::new(0x10_0000, 1 << 20)]);
    let entry = build(&Blueprint::default(), Abi::KhoV4, &mut memory, &mut allocator).unwrap();
    let handover = Handover::read(&memory, entry.fdt, entry.scratch).unwrap();
    let verdict = verify(&handover, &memory);
    assert!(verdict.is_sound());
    assert_eq!(
        (
            verdict.judged(Rule::DataPreserved),
            verdict.judged(Rule::RecordPreserved)
        ),
        (0, 1)
    );
}
