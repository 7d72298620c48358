//! The JSON report of `baton boot`; docs/your-own-kernel.md describes it.

use harness::boot::{End, Ended, Generation};
use harness::kernel::KernelImage;
use serde::Serialize;

/// Version of the report, which counts up when a field goes or changes its meaning.
const VERSION: u32 = 1;

/// Report of one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootReport {
    /// Always `baton-boot`.
    pub schema: &'static str,
    /// Version of the report.
    pub version: u32,
    /// Version of baton.
    pub baton: &'static str,
    /// `soft` or `kvm`.
    pub backend: String,
    /// Seed of every random choice.
    pub seed: u64,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Virtual processors.
    pub vcpus: u8,
    /// Command line of the first kernel, without what the backend adds.
    pub command_line: String,
    /// How it ended.
    pub end: BootEnd,
    /// The kernels that ran, in order.
    pub kernels: Vec<BootKernel>,
    /// Whether every kexec was seen; if not, there may have been more kernels.
    pub kexecs_seen: bool,
    /// Bytes on the console.
    pub console_bytes: u64,
    /// Digest of the whole machine at its end: equal in equal runs. Null on a backend whose runs cannot be repeated.
    pub state_hash: Option<String>,
}

/// How a boot ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootEnd {
    /// The kind.
    pub kind: End,
    /// The same for people.
    pub text: String,
    /// Exit status of baton.
    pub exit_status: u8,
    /// Guest time in nanoseconds.
    pub guest_ns: u64,
    /// Instructions, where they are counted.
    pub instructions: Option<u64>,
    /// Whether a jump to a further kernel was under way.
    pub between: bool,
}

/// A kernel that ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootKernel {
    /// 0 for the first.
    pub generation: usize,
    /// Its release, as its image has it; null if it is not known which image it was.
    pub release: Option<String>,
    /// The image; null likewise.
    pub image: Option<String>,
    /// XXH3 of the image; null likewise.
    pub image_hash: Option<String>,
    /// Guest time of its first instruction, in nanoseconds.
    pub began_ns: u64,
    /// Guest time at which it jumped to the next one; null if it is the last.
    pub jumped_ns: Option<u64>,
}

/// What a boot began with.
#[derive(Debug, Clone, Copy)]
pub struct BootFacts<'a> {
    /// `soft` or `kvm`.
    pub backend: &'a str,
    /// Seed of every random choice.
    pub seed: u64,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Virtual processors.
    pub vcpus: u8,
    /// Command line of the first kernel.
    pub command_line: &'a str,
    /// The first kernel.
    pub kernel: &'a KernelImage,
    /// Each later kernel, if it is known.
    pub next_kernel: Option<&'a KernelImage>,
}

impl BootReport {
    /// The report on a boot that ended so, with this many bytes on its console.
    pub fn new(
        facts: &BootFacts<'_>,
        ended: &Ended,
        exit_status: u8,
        console_bytes: u64,
        state_hash: Option<u128>,
    ) -> Self {
        let kernel = |(generation, times): (usize, &Generation)| {
            let image = if generation == 0 {
                Some(facts.kernel)
            } else {
                facts.next_kernel
            };
            BootKernel {
                generation,
                release: image.map(|image| image.release.clone()),
                image: image.map(|image| image.path.display().to_string()),
                image_hash: image.map(|image| format!("{:016x}", image.hash)),
                began_ns: times.began_ns,
                jumped_ns: times.jumped_ns,
            }
        };
        Self {
            schema: "baton-boot",
            version: VERSION,
            baton: env!("CARGO_PKG_VERSION"),
            backend: facts.backend.into(),
            seed: facts.seed,
            ram_bytes: facts.ram_bytes,
            vcpus: facts.vcpus,
            command_line: facts.command_line.into(),
            end: BootEnd {
                kind: ended.end,
                text: ended.text.clone(),
                exit_status,
                guest_ns: ended.at.time,
                instructions: ended.at.retired,
                between: ended.between,
            },
            kernels: ended.kernels.iter().enumerate().map(kernel).collect(),
            kexecs_seen: ended.kexecs_seen,
            console_bytes,
            state_hash: state_hash.map(|hash| format!("{hash:032x}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::machine::Moment;
    use vmm::phase::Stamp;

    #[test]
    fn every_field_is_documented() {
        let ended = Ended {
            end: End::PowerOff,
            reset: false,
            text: "off".into(),
            at: Moment {
                time: 9,
                retired: Some(7),
                rip: None,
                stamp: Stamp::START,
            },
            kernels: vec![
                Generation {
                    began_ns: 0,
                    jumped_ns: Some(4),
                },
                Generation {
                    began_ns: 5,
                    jumped_ns: None,
                },
            ],
            between: false,
            kexecs_seen: true,
        };
        let plan = harness::testing::plan(harness::testing::SCENARIO);
        let facts = BootFacts {
            backend: "soft",
            seed: 1,
            ram_bytes: 2,
            vcpus: 3,
            command_line: "quiet",
            kernel: plan.kernel(0),
            next_kernel: None,
        };
        let report = serde_json::to_value(BootReport::new(&facts, &ended, 0, 6, Some(1))).unwrap();
        assert_eq!(report["end"]["kind"], "power-off");
        assert!(report["kernels"][0]["release"].is_string() && report["kernels"][1]["release"].is_null());
        let documented = include_str!("../../../docs/your-own-kernel.md");
        for object in [&report, &report["end"], &report["kernels"][0]] {
            for key in object.as_object().unwrap().keys() {
                assert!(
                    documented.contains(&format!("`{key}`")),
                    "{key} is not in docs/your-own-kernel.md"
                );
            }
        }
    }
}
