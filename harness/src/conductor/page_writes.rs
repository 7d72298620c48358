//! The choice of CPU writes that become evidence, and until when the record of them is complete.

use vmm::phase::{Phase, Stamp};
use vmm::provenance::{PageWrite, PhaseWrites};

/// Most CPU writes that are kept as evidence.
pub(super) const MAX_CPU_WRITES: usize = 200_000;

/// First writes to pages, in order of time, and how far they reach.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub writes: Vec<(Stamp, PageWrite)>,
    /// Guest time from which writes are missing; `None` if none is.
    pub until_ns: Option<u64>,
}

/// The first `most` writes from the first jump on that matter.
pub(super) fn keep(phases: &[PhaseWrites], matters: impl Fn(&PageWrite) -> bool, most: usize) -> Kept {
    let after_jump = |phase: &&PhaseWrites| phase.stamp.generation > 0 || phase.stamp.phase == Phase::Jump;
    let mut all = phases
        .iter()
        .filter(after_jump)
        .flat_map(|phase| phase.writes.iter().map(|write| (phase.stamp, *write)))
        .filter(|(_, write)| matters(write));
    let writes: Vec<_> = all.by_ref().take(most).collect();
    let cut = all.next().map(|(_, write)| write.time);
    // The machine's room is shared by all phases: once it is used up, no later write is on record.
    let dropped = phases.iter().any(|phase| phase.dropped > 0);
    let last = phases.iter().rev().find_map(|phase| phase.writes.last());
    let dropped = dropped.then(|| last.map_or(0, |write| write.time));
    let until_ns = [cut, dropped].into_iter().flatten().min();
    Kept { writes, until_ns }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::vcpu::CpuWrite;

    fn phase(generation: u16, phase: Phase, writes: &[(u64, u64)], dropped: u64) -> PhaseWrites {
        let write = |(page, time): &(u64, u64)| {
            PageWrite::from(CpuWrite {
                gpa: page << 12,
                len: 8,
                rip: 1,
                time: *time,
                user: false,
            })
        };
        PhaseWrites {
            stamp: Stamp { generation, phase },
            writes: writes.iter().map(write).collect(),
            dropped,
        }
    }

    fn pages(kept: &Kept) -> Vec<u64> {
        kept.writes.iter().map(|(_, write)| write.pfn()).collect()
    }

    #[test]
    fn writes_before_the_jump_and_to_other_pages_do_not_count() {
        let phases = [
            phase(0, Phase::Armed, &[(5, 10)], 0),
            phase(0, Phase::Jump, &[(5, 20), (6, 21)], 0),
            phase(1, Phase::BootNew, &[(7, 30), (5, 31)], 0),
        ];
        let kept = keep(&phases, |write| write.pfn() != 6, 3);
        assert_eq!((pages(&kept), kept.until_ns), (vec![5, 7, 5], None));
    }

    #[test]
    fn a_record_that_is_cut_says_from_when_on() {
        let phases = [
            phase(0, Phase::Jump, &[(5, 20)], 0),
            phase(1, Phase::BootNew, &[(6, 30), (5, 31)], 0),
            phase(1, Phase::Restore, &[(9, 50)], 4),
        ];
        let dropped = keep(&phases, |_| true, 9);
        assert_eq!((pages(&dropped), dropped.until_ns), (vec![5, 6, 5, 9], Some(50)));
        let cut = keep(&phases, |_| true, 2);
        assert_eq!((pages(&cut), cut.until_ns), (vec![5, 6], Some(31)));
        // Writes that are left out because they do not matter are not missing.
        let sound = [phase(1, Phase::BootNew, &[(6, 30), (5, 31)], 0)];
        assert_eq!(keep(&sound, |write| write.pfn() == 6, 1).until_ns, None);
    }
}
