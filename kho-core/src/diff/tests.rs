use super::*;
use crate::blueprint::{FileContentPlan, FilePlan, FolioPlan, LuoPlan, MemfdPlan, NamedRegion, SessionPlan};
use crate::memory::{PhysicalMemoryMut, SparseMemory};
use crate::{Abi, Block, Blueprint, FreeRegions, build};
use alloc::vec;

const RAM: u64 = 1 << 30;

fn plan(base: u64) -> Blueprint {
    let folio = |index: u64| FolioPlan {
        block: Block::new(base + index * 4096, 0),
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
    Blueprint {
        reserve_mem: vec![NamedRegion {
            name: "kmx".into(),
            region: Region::new(300 << 20, 4096),
        }],
        luo: Some(LuoPlan {
            liveupdate_number: 1,
            sessions: vec![SessionPlan {
                name: "a".into(),
                files: vec![file],
            }],
            flbs: vec![],
        }),
        ..Blueprint::default()
    }
}

fn built(plan: &Blueprint, abi: Abi, pages: u64) -> (Handover, SparseMemory) {
    let mut memory = SparseMemory::new(vec![Region::new(0, RAM)]);
    let mut allocator = FreeRegions::new(vec![Region::new(pages, 16 << 20)]);
    let entry = build(plan, abi, &mut memory, &mut allocator).unwrap();
    (Handover::read(&memory, entry.fdt, entry.scratch).unwrap(), memory)
}

fn shown(before: &Handover, after: &Handover) -> Vec<String> {
    diff(before.into(), after.into())
        .differences
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn a_handover_does_not_differ_from_itself() {
    let (handover, memory) = built(&plan(256 << 20), Abi::KhoV4, 0x10_0000);
    let side = Side {
        handover: &handover,
        memory: Some(&memory),
    };
    assert_eq!(diff(side, side), Diff::default());
}

#[test]
fn what_moved_vanished_and_appeared_is_told_apart() {
    let (before, _) = built(&plan(256 << 20), Abi::KhoV4, 0x10_0000);
    let mut changed = plan(256 << 20);
    let luo = changed.luo.as_mut().unwrap();
    luo.liveupdate_number = 2;
    luo.sessions.push(SessionPlan {
        name: "b".into(),
        files: vec![],
    });
    luo.sessions[0].files[0].token = 2;
    changed.reserve_mem[0].region = Region::new(301 << 20, 4096);
    let (after, _) = built(&changed, Abi::KhoV4, 0x10_0000);
    let shown = shown(&before, &after);
    for expected in [
        "~ sub-blob \"LUO\" live update: 1 -> 2",
        "+ session \"b\"",
        "- session \"a\" / token 0x1",
        "+ session \"a\" / token 0x2",
        "> reserve_mem \"kmx\": 0x12c00000 -> 0x12d00000",
        "- preserved memory 0x12c00000-0x12c01000",
        "+ preserved memory 0x12d00000-0x12d01000",
    ] {
        assert!(
            shown.iter().any(|line| line == expected),
            "{expected}: {shown:#?}"
        );
    }
    assert_eq!(shown.iter().filter(|line| line.contains("page")).count(), 0);
}

#[test]
fn versions_and_moved_pages_are_told() {
    let (before, _) = built(&plan(256 << 20), Abi::KhoV3, 0x10_0000);
    let (after, _) = built(&plan(257 << 20), Abi::KhoV4, 0x20_0000);
    let shown = shown(&before, &after);
    for expected in [
        "~ KHO version: kho-v3 -> kho-v4",
        "~ sub-blob \"LUO\" version: luo-v1 -> luo-v5",
        "> session \"a\" / token 0x1 / page 1: 0x10001000 -> 0x10101000",
    ] {
        assert!(
            shown.iter().any(|line| line == expected),
            "{expected}: {shown:#?}"
        );
    }
}

#[test]
fn changed_bytes_are_found_in_the_page_they_are_in() {
    let (before, mut old) = built(&plan(256 << 20), Abi::KhoV4, 0x10_0000);
    let (after, mut new) = built(&plan(257 << 20), Abi::KhoV4, 0x10_0000);
    for page in 0..2 {
        old.write((256 << 20) + page * 4096, &[5; 4096]).unwrap();
        new.write((257 << 20) + page * 4096, &[5; 4096]).unwrap();
    }
    new.write((257 << 20) + 4096 + 7, &[6]).unwrap();
    let side = |handover, memory| Side {
        handover,
        memory: Some(memory),
    };
    let changes: Vec<_> = diff(side(&before, &old), side(&after, &new)).differences;
    let changed: Vec<_> = changes
        .iter()
        .filter(|change| change.what.contains("at byte"))
        .map(ToString::to_string)
        .collect();
    assert_eq!(changed.len(), 1);
    assert!(
        changed[0].starts_with("~ session \"a\" / token 0x1 / page 1 at byte 0x7: 0505"),
        "{changed:?}"
    );
}

#[test]
fn regions_are_subtracted() {
    let regions = [Region::new(0, 100), Region::new(200, 100)];
    let others = [Region::new(50, 10), Region::new(90, 120), Region::new(400, 1)];
    assert_eq!(
        subtract(&regions, &others),
        [Region::new(0, 50), Region::new(60, 30), Region::new(210, 90)]
    );
    assert_eq!(subtract(&others, &[]), others);
    assert_eq!(subtract(&[], &others), []);
}
