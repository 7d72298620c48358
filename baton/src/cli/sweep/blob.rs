//! `baton sweep blob`: every field of the handover, with every wrong value.

use super::Common;
use super::sink::Sink;
use crate::cli::{Exit, complain};
use crate::report::{SweepReport, html};
use campaign::sweep::{Class, Line, Only, Sweep, left, table};
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct BlobArgs {
    #[command(flatten)]
    common: Common,
    /// Only these cases: PATH, PATH=VALUE, or PATH* for all fields whose paths begin so. May be given several times.
    #[arg(long, value_name = "PATH[=VALUE]")]
    only: Vec<Only>,
    /// Branch at the new kernel's entry always, not as late as gives the same result.
    #[arg(long, hide = true)]
    from_entry: bool,
}

/// Runs the command.
pub(super) fn blob(args: &BlobArgs) -> Result<Exit, Exit> {
    let failed = |error: &dyn std::fmt::Display| {
        complain(error);
        Exit::Failed
    };
    let said = args.common.check()?;
    let agent = harness::agent::load().map_err(|error| failed(&error))?;
    let plans = args.common.plans()?;
    let results = args.common.results();
    let mut lines: Vec<Line> = args.common.lines()?;
    let sink = Sink::open(
        args.common.json,
        results.as_deref(),
        "interesting",
        |line: &Line| line.class.is_interesting() || line.class == Class::NotJudged,
    )
    .map_err(|error| failed(&error))?;
    let soft = args.common.soft.backend();
    let jobs = args.common.jobs();
    args.common.confine(&plans)?;
    for (kernel, plan) in &plans {
        let command = args.common.command("blob", *kernel, plan.seed);
        let mut sweep = Sweep::new(plan, &agent, &command, soft).map_err(|error| failed(&error))?;
        sweep.from_entry = args.from_entry;
        sweep.hashed = args.common.out.is_some();
        let cases = sweep.cases(&args.only).map_err(|error| {
            complain(error);
            Exit::Usage
        })?;
        if cases.is_empty() {
            let kernel = sweep.kernel();
            complain(format!(
                "--only names no case: no such field of {kernel} can have such a value, or it has it already"
            ));
            return Err(Exit::Usage);
        }
        let cases = left(cases, sweep.kernel(), &lines);
        sink.begin(sweep.kernel(), cases.len());
        sweep.run_all(&cases, jobs, args.common.out.as_deref(), &|result| {
            sink.take(result)
        });
        sink.end(sweep.base.snapshots());
    }
    let (new, any_failed) = sink.into_lines();
    lines.extend(new);
    let text = format!("{}{}", table(&lines), interesting(&lines));
    args.common
        .report(said, &text, &|| html::sweep(&SweepReport::new(&lines)))?;
    Ok(if any_failed { Exit::Failed } else { Exit::Met })
}

/// The cases in which the kernel did what it should not, one line each, worst first.
fn interesting(lines: &[Line]) -> String {
    let mut some: Vec<&Line> = lines.iter().filter(|line| line.class.is_interesting()).collect();
    some.sort_by_key(|line| {
        (
            std::cmp::Reverse(line.class),
            line.kernel.clone(),
            line.path.clone(),
        )
    });
    let mut out = String::new();
    for line in some {
        let Line {
            kernel,
            path,
            set,
            was,
            value,
            class,
            what,
            ..
        } = line;
        out.push_str(&format!(
            "{class} {kernel}: {path}={set} ({value}, was {was}): {what}\n"
        ));
    }
    out
}
