//! The same live update on baton and on each QEMU, in turns.

use crate::baton::Cycle;
use crate::phases::Phase;
use crate::qemu::{Guest, Qemu};
use crate::samples::{Executed, Sample, Spread};
use crate::table;
use harness::plan::Plan;
use serde::Serialize;
use std::path::Path;

/// Memory that baton may use besides guest RAM, in bytes.
const MEMORY_MARGIN: u64 = 256 << 20;

/// One kernel's cycle on all of them.
#[derive(Debug, Serialize)]
pub struct Versus {
    /// Name of the scenario.
    pub scenario: String,
    /// Release of the guest kernels.
    pub kernel: String,
    /// Guest RAM.
    pub ram_bytes: u64,
    /// Preserved memory.
    pub memfd_bytes: u64,
    /// Runs on baton.
    pub baton: Vec<Sample>,
    /// Runs on each QEMU, in the same turns.
    pub peers: Vec<Peer>,
}

/// Runs on one QEMU.
#[derive(Debug, Serialize)]
pub struct Peer {
    /// What QEMU says of itself.
    pub version: String,
    /// Its runs.
    pub samples: Vec<Sample>,
}

/// What the runs on one program say.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Side {
    /// Wall time in seconds.
    pub wall_s: Option<Spread>,
    /// Processor time in seconds.
    pub cpu_s: Option<Spread>,
    /// Wall time less what the guest spent on comparing digests, in seconds.
    pub wall_without_compare_s: Option<Spread>,
    /// Largest resident set of any run.
    pub peak_rss_bytes: u64,
}

/// What all runs say.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Baton.
    pub baton: Side,
    /// Each QEMU.
    pub peers: Vec<Side>,
    /// Number of the QEMU with the least wall time.
    pub best: Option<usize>,
    /// Ratio of the medians of wall time, baton's to the best QEMU's.
    pub wall_ratio: Option<f64>,
    /// Ratio of the medians of processor time, baton's to that of the same QEMU.
    pub cpu_ratio: Option<f64>,
    /// Speed of softcpu from reset until the first agent spoke, in MIPS.
    pub boot_mips: Option<Spread>,
    /// Speed of softcpu over the whole cycle, in MIPS.
    pub cycle_mips: Option<Spread>,
    /// Guest instructions of the cycle divided by baton's processor time, in MIPS; less affected by other load.
    pub cycle_mips_by_cpu: Option<Spread>,
    /// Guest instructions of the cycle on baton, in millions.
    pub cycle_million_instructions: Option<Spread>,
    /// What baton's largest resident set may be.
    pub baton_peak_rss_limit_bytes: u64,
    /// Where baton's wall time went.
    pub parts: Vec<Part>,
}

/// A part of baton's wall time.
#[derive(Debug, Serialize)]
pub struct Part {
    /// The phase, or what is not in a phase.
    pub name: String,
    /// Wall time in seconds.
    pub wall_s: Option<Spread>,
    /// Its share of the wall time of the same run.
    pub share: Option<Spread>,
    /// Guest instructions in millions.
    pub million_instructions: Option<Spread>,
    /// How fast they were executed, in MIPS.
    pub mips: Option<Spread>,
}

/// Runs the cycle `runs` times on baton and on every QEMU. They take turns, so that other load affects all alike, and
/// each begins a turn as often as the others. `turn` is told the times of a turn when it is over.
pub fn measure(
    plan: &Plan,
    baton: &Cycle,
    qemus: &[Qemu],
    agent: &[u8],
    work: &Path,
    runs: u32,
    turn: &dyn Fn(&str),
) -> Result<Versus, String> {
    let guests: Result<Vec<Guest>, String> = qemus
        .iter()
        .map(|qemu| Guest::prepare(qemu, plan, agent, work))
        .collect();
    let guests = guests?;
    let mut samples = vec![Vec::new(); guests.len() + 1];
    // The first turn warms the page cache and is discarded.
    for run in 0..=runs as usize {
        let mut said = format!("turn {run} of {runs}");
        for place in 0..samples.len() {
            let side = (run + place) % samples.len();
            let sample = match side.checked_sub(1).and_then(|peer| guests.get(peer)) {
                Some(guest) => guest.run()?,
                None => baton.run()?,
            };
            let name = side
                .checked_sub(1)
                .and_then(|peer| qemus.get(peer))
                .map_or_else(|| "baton".to_owned(), |qemu| table::short(qemu.version()));
            said.push_str(&format!(
                "; {name} {:.2} s, {:.2} s of a processor",
                sample.wall_s, sample.cpu_s
            ));
            if run > 0 {
                samples[side].push(sample);
            }
        }
        turn(&said);
    }
    let mut samples = samples.into_iter();
    Ok(Versus {
        scenario: plan.name.clone(),
        kernel: plan.old_kernel.release.clone(),
        ram_bytes: plan.ram_bytes,
        memfd_bytes: plan.objects.iter().map(|object| object.bytes).sum(),
        baton: samples.next().unwrap_or_default(),
        peers: qemus
            .iter()
            .zip(samples)
            .map(|(qemu, samples)| Peer {
                version: qemu.version().to_owned(),
                samples,
            })
            .collect(),
    })
}

impl Versus {
    /// Whether baton kept to its memory.
    pub fn memory_is_bounded(&self) -> bool {
        let summary = self.summary();
        summary.baton.peak_rss_bytes <= summary.baton_peak_rss_limit_bytes
    }

    /// What the samples say together.
    pub fn summary(&self) -> Summary {
        let rate = |value: fn(&Sample) -> Option<Executed>| {
            Spread::of(self.baton.iter().filter_map(value).map(Executed::mips))
        };
        let of_cycle = |value: fn(&Sample, Executed) -> f64| {
            Spread::of(
                self.baton
                    .iter()
                    .filter_map(|sample| Some(value(sample, sample.cycle?))),
            )
        };
        let ratio = |b: Option<Spread>, c: Option<Spread>| Some(b?.median / c?.median);
        let baton = side(&self.baton);
        let peers: Vec<Side> = self.peers.iter().map(|peer| side(&peer.samples)).collect();
        let wall = |side: &Side| side.wall_s.map_or(f64::INFINITY, |wall| wall.median);
        let best = (0..peers.len()).min_by(|a, b| wall(&peers[*a]).total_cmp(&wall(&peers[*b])));
        let peer = best.map(|best| peers[best]);
        Summary {
            wall_ratio: peer.and_then(|peer| ratio(baton.wall_s, peer.wall_s)),
            cpu_ratio: peer.and_then(|peer| ratio(baton.cpu_s, peer.cpu_s)),
            baton,
            peers,
            best,
            boot_mips: rate(|sample| sample.boot),
            cycle_mips: rate(|sample| sample.cycle),
            cycle_mips_by_cpu: of_cycle(|sample, cycle| cycle.millions() / sample.cpu_s),
            cycle_million_instructions: of_cycle(|_, cycle| cycle.millions()),
            baton_peak_rss_limit_bytes: self.ram_bytes + MEMORY_MARGIN,
            parts: self.parts(),
        }
    }

    /// Each phase, then everything outside of phases: the start, the evidence's end and the oracle.
    fn parts(&self) -> Vec<Part> {
        let Some(first) = self.baton.first() else {
            return Vec::new();
        };
        let outside = |sample: &Sample| {
            let phases: f64 = sample.phases.iter().map(|phase| phase.wall_ms).sum();
            Some((sample.wall_s - phases / 1e3, None))
        };
        let parts = first.phases.iter().map(|wanted| {
            let inside = move |sample: &Sample| {
                let is_it = |phase: &&Phase| {
                    (phase.generation, phase.name.as_str()) == (wanted.generation, wanted.name.as_str())
                };
                let phase = sample.phases.iter().find(is_it)?;
                Some((phase.wall_ms / 1e3, phase.instructions))
            };
            part(
                format!("{} {}", wanted.name, wanted.generation),
                &self.baton,
                inside,
            )
        });
        let rest = part("start, captures, oracle".into(), &self.baton, outside);
        parts.chain([rest]).collect()
    }
}

fn side(samples: &[Sample]) -> Side {
    let of = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(value));
    Side {
        wall_s: of(|sample| sample.wall_s),
        cpu_s: of(|sample| sample.cpu_s),
        wall_without_compare_s: of(|sample| sample.wall_s * (1.0 - sample.compare_share.unwrap_or(0.0))),
        peak_rss_bytes: samples
            .iter()
            .map(|sample| sample.peak_rss_bytes)
            .max()
            .unwrap_or(0),
    }
}

/// One run's share in a part.
struct Piece {
    seconds: f64,
    /// Wall time of the whole run.
    whole_s: f64,
    millions: Option<f64>,
}

/// The part of each sample that `of` gives: seconds and instructions.
fn part(name: String, samples: &[Sample], of: impl Fn(&Sample) -> Option<(f64, Option<u64>)>) -> Part {
    #[allow(clippy::cast_precision_loss)] // for people
    let millions = |instructions: u64| instructions as f64 / 1e6;
    let pieces: Vec<Piece> = samples
        .iter()
        .filter_map(|sample| {
            let (seconds, instructions) = of(sample)?;
            Some(Piece {
                seconds,
                whole_s: sample.wall_s,
                millions: instructions.map(millions),
            })
        })
        .collect();
    let each = |value: fn(&Piece) -> Option<f64>| Spread::of(pieces.iter().filter_map(value));
    Part {
        name,
        wall_s: each(|piece| Some(piece.seconds)),
        share: each(|piece| Some(piece.seconds / piece.whole_s)),
        million_instructions: each(|piece| piece.millions),
        mips: each(|piece| Some(piece.millions? / piece.seconds)),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Three runs of each.
    pub fn versus(peak_rss_bytes: u64) -> Versus {
        let executed = |instructions, wall_ms| {
            Some(Executed {
                instructions,
                wall_ms,
            })
        };
        let phase = |name: &str, wall_ms, instructions| Phase {
            name: name.into(),
            wall_ms,
            instructions: Some(instructions),
            ..Phase::default()
        };
        let baton = |wall_s| Sample {
            wall_s,
            cpu_s: wall_s / 2.0,
            peak_rss_bytes,
            boot: executed(60_000_000, 500.0),
            cycle: executed(150_000_000, 2000.0),
            phases: vec![
                phase("boot-old", 500.0, 60_000_000),
                phase("done", 1000.0, 90_000_000),
            ],
            compare_share: None,
        };
        let qemu = |wall_s| Sample {
            wall_s,
            cpu_s: wall_s,
            compare_share: Some(0.5),
            ..Sample::default()
        };
        Versus {
            scenario: "s".into(),
            kernel: "7.3.4".into(),
            ram_bytes: 512 << 20,
            memfd_bytes: 64 << 20,
            baton: vec![baton(3.0), baton(2.0), baton(9.0)],
            peers: vec![
                Peer {
                    version: "QEMU emulator version 1.2.3 (x)".into(),
                    samples: vec![qemu(3.0), qemu(2.0), qemu(4.0)],
                },
                Peer {
                    version: "QEMU emulator version 4.5.6 (x)".into(),
                    samples: vec![qemu(1.5), qemu(1.0), qemu(2.0)],
                },
            ],
        }
    }

    #[test]
    fn ratios_are_of_medians_and_to_the_best() {
        let summary = versus(1).summary();
        assert_eq!(summary.best, Some(1));
        assert_eq!((summary.wall_ratio, summary.cpu_ratio), (Some(2.0), Some(1.0)));
        assert_eq!(summary.peers[1].wall_without_compare_s.unwrap().median, 0.75);
        assert_eq!(
            (
                summary.boot_mips.unwrap().median,
                summary.cycle_mips.unwrap().median
            ),
            (120.0, 75.0)
        );
    }

    #[test]
    fn parts_are_of_the_same_run() {
        let parts = versus(1).summary().parts;
        let names: Vec<_> = parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["boot-old 0", "done 0", "start, captures, oracle"]);
        assert_eq!(parts[1].mips.unwrap().median, 90.0);
        assert_eq!(parts[2].wall_s.unwrap().median, 1.5);
        assert_eq!(parts[2].share.unwrap().median, 0.5);
        assert!(parts[2].mips.is_none());
    }

    #[test]
    fn without_a_qemu_there_is_no_ratio() {
        let mut alone = versus(1);
        alone.peers.clear();
        let summary = alone.summary();
        assert!(summary.best.is_none() && summary.wall_ratio.is_none());
        assert!(summary.baton.wall_s.is_some());
    }

    #[test]
    fn memory_is_bounded_by_ram_and_a_margin() {
        assert!(versus(768 << 20).memory_is_bounded());
        assert!(!versus((768 << 20) + 1).memory_is_bounded());
    }
}
