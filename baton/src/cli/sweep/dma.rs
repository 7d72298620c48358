//! `baton sweep dma`: a fault in one device write, at one moment after the other.

use super::Common;
use super::sink::Sink;
use crate::cli::{Exit, complain};
use crate::report::html;
use campaign::mutation::Fate;
use campaign::sweep::{CaseError, DmaCase, DmaLine, DmaSweep, dma_table, each_of};
use clap::Args;
use std::collections::HashSet;
use std::path::Path;

#[derive(Debug, Args)]
pub(super) struct DmaArgs {
    #[command(flatten)]
    common: Common,
    /// Moments, at equal distances from the beginning of armed to the end of restore.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    moments: u32,
    /// Only this case: drop or extra, and guest time. May be given several times.
    #[arg(long, value_name = "DEED@NANOSECONDS")]
    only: Vec<DmaCase>,
}

/// Runs the command.
pub(super) fn dma(args: &DmaArgs) -> Result<Exit, Exit> {
    let failed = |error: &dyn std::fmt::Display| {
        complain(error);
        Exit::Failed
    };
    let said = args.common.check()?;
    let agent = harness::agent::load().map_err(|error| failed(&error))?;
    let plans = args.common.plans()?;
    let results = args.common.results();
    let mut lines: Vec<DmaLine> = args.common.lines()?;
    let sink = Sink::open(args.common.json, results.as_deref(), "not noticed", is_gap)
        .map_err(|error| failed(&error))?;
    let soft = args.common.soft.backend();
    let jobs = args.common.jobs();
    args.common.confine(&plans)?;
    for (kernel, plan) in &plans {
        let command = args.common.command("dma", *kernel, plan.seed);
        let sweep = DmaSweep::new(plan, &agent, &command, soft).map_err(|error| failed(&error))?;
        let done: HashSet<_> = lines.iter().map(DmaLine::key).collect();
        let mut cases = match &args.only[..] {
            [] => sweep.cases(args.moments.into()),
            only => only.to_vec(),
        };
        cases.retain(|case| !done.contains(&(sweep.kernel().to_owned(), *case)));
        sink.begin(sweep.kernel(), cases.len());
        let keep = args.common.out.as_deref();
        each_of(&cases, jobs, |case| {
            let line = sweep.run(*case, keep.is_some()).and_then(|(line, judged)| {
                if let Some(folder) = keep.filter(|_| is_gap(&line)) {
                    keep_evidence(&line, &judged, folder)?;
                }
                Ok(line)
            });
            sink.take(line.as_ref());
        });
        sink.end(sweep.snapshots());
    }
    let (new, any_failed) = sink.into_lines();
    lines.extend(new);
    let text = format!("{}{}", dma_table(&lines), gaps(&lines));
    args.common.report(said, &text, &|| html::moments(&lines))?;
    Ok(if any_failed { Exit::Failed } else { Exit::Met })
}

/// Whether something differs that nothing noticed.
fn is_gap(line: &DmaLine) -> bool {
    line.fate == Fate::NotNoticed
}

fn keep_evidence(line: &DmaLine, judged: &harness::verdict::Judged, out: &Path) -> Result<(), CaseError> {
    let case = line.key().1.to_string();
    let folder = out.join(format!("{}-{case}", line.kernel));
    harness::evidence::save(&judged.evidence, &folder).map_err(|error| CaseError {
        path: case,
        reason: error.to_string(),
    })
}

/// The cases that nothing noticed, a line each.
fn gaps(lines: &[DmaLine]) -> String {
    let gaps = lines.iter().filter(|line| is_gap(line));
    let line = |line: &DmaLine| {
        let (kernel, case) = line.key();
        format!(
            "not noticed {kernel}: {case} in {}: {}\n  {}\n",
            line.phase, line.what, line.reproduce
        )
    };
    gaps.map(line).collect()
}
