//! Many runs: campaigns (scenarios by kernels by variants by seeds) and sweeps (one kind of fault at every place).
//!
//! ```text
//! campaign.toml -> plan: cells -> workers: a result per cell, a line each -> summary: counts, groups
//! ```
//!
//! | stage | module | from | to |
//! | --- | --- | --- | --- |
//! | read | [`mod@file`] | file | [`file::Campaign`], or one message with file, line and column |
//! | expand | [`mod@plan`] | campaign | [`plan::CampaignPlan`]: cells with content-addressed identities |
//! | pick | [`partition`] | plan | the cells of one machine of several |
//! | run | [`worker`] | a job: cells that share a scenario, kernels and seed | [`result::CellResult`]s |
//! | drive | [`drive`] | cells | worker processes, results appended to [`store`] |
//! | merge | [`merge`] | directories of results | one directory, or which cells are missing or differ |
//! | sweep | [`sweep`] | a plan | one bent field of the handover after the other, classed |
//! | pair | [`matrix`] | a scenario and kernels | what each pair of kernels does with each kind of object |
//! | compare | [`mutation`] | a run with injections and one without | what came of each injection |
//! | shrink | [`minimise`] | a failing scenario with injections | the smallest that fails in the same way |
//! | sum up | [`summary`] | results | [`summary::Summary`]: counts, and failures grouped by what they show |
//!
//! A result is one line of a file, and everything else is computed from these lines. So a campaign that is killed goes
//! on where it stopped. This is the only crate with an asynchronous runtime, and only [`drive`] uses it: a worker runs
//! its cells one after another. Cells run on softcpu, where a run is a pure function of its inputs; therefore two
//! results of one cell are equal, wherever they were made. Nothing here prints.
#![forbid(unsafe_code)]

pub mod drive;
pub mod file;
mod job;
pub mod json_lines;
pub mod matrix;
pub mod merge;
pub mod minimise;
pub mod mutation;
pub mod partition;
pub mod plan;
pub mod range;
pub mod result;
pub mod store;
pub mod summary;
pub mod sweep;
pub mod worker;
