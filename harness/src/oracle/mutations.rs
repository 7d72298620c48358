//! One mutation per rule: evidence damaged in the one way that the rule is there to see. Exactly that rule speaks, and
//! all others say of it what they say of good evidence.

use super::*;
use crate::evidence::*;
use crate::scenario::Errno;
use crate::testing::{JUMP, MEMFD, OWN, PAGES, RAM, blob, change_page, cpu_write, device_write, good};
use guest_agent::kpageflags::BUDDY;
use guest_agent::pattern::PAGE_BYTES;
use guest_agent::protocol::{FlagRun, ProgramEnd};
use kho_core::Region;
use vmm::ledger::Kind;

/// A page frame that belongs to no object.
const ELSEWHERE: u64 = 0x3000;

fn block(index: u64, time: u64) -> vmm::ledger::Entry {
    let kind = Kind::Block {
        sequence: 20,
        descriptor: 0,
    };
    device_write(index, time, ELSEWHERE * PAGE, 4096, kind)
}

/// Good evidence with the damage that `rule` is there to see.
fn damaged(rule: RuleName) -> Evidence {
    let mut evidence = good();
    match rule {
        // A byte that the device never wrote to.
        RuleName::PreservedContent => change_page(&mut evidence, 1, 15, |page| page[100] ^= 1),
        // A block outside all objects, written before the jump, of which the memory has nothing.
        RuleName::DeviceWritesLanded => {
            evidence.ledger.entries.insert(0, block(0, JUMP.0 - 1));
            let content = evidence.captures.take_stray(&[0; PAGE_BYTES]).unwrap();
            evidence.captures.checkpoints[1].strays.push((ELSEWHERE, content));
        }
        // A write that leaves the page as it is to be.
        RuleName::NoCpuWriteBeforeRetrieval => {
            let write = cpu_write((MEMFD + 12) * PAGE, JUMP.1 + 10);
            evidence.cpu_writes.push(write);
        }
        RuleName::DmaOnlyToPreserved => evidence.ledger.entries.push(block(40, 2_390_000)),
        // The map is what it is to be, but the scratch array lies outside RAM.
        RuleName::BlobWellFormed => {
            let kho = evidence.blobs[0].kho.as_mut().unwrap();
            kho.scratch = Region::new(RAM * 2, 16);
        }
        RuleName::MapCoversPreserved => {
            evidence.blobs = vec![blob((MEMFD..=MEMFD + PAGES).chain([OWN]))];
        }
        // The engine was started four periods before its first block.
        RuleName::DeviceNeverSilent => {
            let started = evidence
                .dma
                .as_mut()
                .and_then(|dma| dma.started.as_mut())
                .unwrap();
            started.time_ns -= 300_000;
        }
        RuleName::SessionRetrieved => {
            evidence.failures.push(AgentFailure {
                generation: 1,
                phase: Phase::Restore,
                request: "retrieve session \"s\"".into(),
                call: "ioctl".into(),
                errno: 2,
                detail: String::new(),
            });
            evidence.retrievals[0].failure = Some(0);
        }
        // The last interrupt is not taken.
        RuleName::InterruptsNeitherLostNorInvented => drop(evidence.trace.records.pop()),
        // A closed page that the kernel still has in use, and that nobody wrote to.
        RuleName::NothingLeaked => evidence.reused[0].pages[0].count -= 1,
        // A page that the kernel has in its free lists while the agent holds it.
        RuleName::KeptFromAllocator => {
            let flags = &mut evidence.page_flags[1].flags;
            flags[0].count -= 1;
            flags.push(FlagRun {
                flags: BUDDY,
                count: 1,
            });
        }
        // A record that is on no console.
        RuleName::KernelQuiet => {
            let record = &mut evidence.kernel_logs[1].records[0];
            record.text = "BUG: Bad page state in process init  pfn:01234".into();
        }
        // A step fails that has to succeed.
        RuleName::StepsAnswered => {
            evidence.steps[0].failure = Some(StepFailure {
                call: "ioctl".into(),
                errno: Some(Errno::of(16)),
                detail: String::new(),
            });
        }
        // The program of the new kernel says that it failed.
        RuleName::PayloadPassed => {
            let ends = evidence.payload.iter_mut().flat_map(|payload| &mut payload.ends);
            ends.for_each(|end| end.end = ProgramEnd::Exit(i32::from(end.generation > 0)));
        }
    }
    evidence
}

#[test]
fn each_rule_speaks_of_its_own_damage_alone() {
    let sound = judge(&good(), &[]);
    for rule in RuleName::ALL {
        for (result, before) in judge(&damaged(rule), &[]).iter().zip(&sound) {
            if result.rule == rule {
                assert!(result.findings.total > 0, "{rule} does not see its damage");
            } else {
                let said = &result.findings.kept;
                assert!(
                    before.held() && result.held(),
                    "{} speaks of the damage for {rule}: {said:#?}",
                    result.rule
                );
            }
        }
    }
}
