//! The harness: from a scenario to a verdict.
//!
//! ```text
//! scenario.toml -> plan -> machine (kernel, agent, DMA engine) -> evidence -> oracle -> verdict
//! ```
//!
//! | stage | module | from | to |
//! | --- | --- | --- | --- |
//! | read | [`scenario`] | file | [`scenario::Scenario`], or one message with file, line and column |
//! | resolve | [`mod@plan`] | scenario and command line | [`plan::Plan`]: kernels, sizes, the steps of each generation |
//! | run | [`conductor`] | plan | [`evidence::Evidence`] |
//! | look | [`oracle`] | evidence | findings per rule |
//! | judge | [`verdict`] | rule results and expectations | [`verdict::Judged`] |
//! | explain | [`mod@cause`] | evidence | why the run ended as it did, in words |
//!
//! [`mod@handover`] makes what a kernel is given in place of the first kernel. [`run::run`] goes from a plan to the
//! judgement; [`backend`], [`kernel`], [`agent`] and [`initramfs`] are what it is given. Only the conductor touches the
//! machine of a run; [`boot`] drives one without a scenario. Evidence can be saved, and judged again from the directory
//! without booting; [`mod@compare`] tells where the evidence of two runs differs first. Nothing here prints: the
//! command line and the reports are in the crate `baton`.
#![forbid(unsafe_code)]

pub mod agent;
pub mod backend;
pub mod bend;
pub mod blob;
pub mod boot;
pub mod cause;
pub mod compare;
pub mod conductor;
mod embedded;
pub mod evidence;
pub mod fate;
pub mod handover;
pub mod hex;
pub mod initramfs;
pub mod kernel;
pub mod kernel_log;
pub mod ktap;
pub mod oracle;
pub mod payload;
pub mod plan;
mod resolve;
pub mod run;
pub mod scenario;
pub mod seed;
pub mod snapshot;
pub mod trunk;
pub mod verdict;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
