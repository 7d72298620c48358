//! The report as text.

use super::{grouped, last_lines, phase_lines, printable, reproduce};
use harness::cause::{cause, kernel_lines};
use harness::evidence::{Evidence, OutcomeKind, PAGE};
use harness::oracle::{Finding, RuleName, RuleResult, unit_of};
use harness::scenario::{Bytes, Expected};
use harness::verdict::{Judged, ended_before};
use std::fmt::Write;

/// Most groups of findings that are printed for one rule; a group is findings on adjacent pages ([`grouped`]).
const SHOWN: usize = 6;

/// Most lines of the kernel about the handover that are printed.
const QUOTED: usize = 12;

/// The report on one scenario; every line ends with a line break.
pub fn text(judged: &Judged) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(judged, &mut out);
    out
}

fn write_all(judged: &Judged, out: &mut String) -> std::fmt::Result {
    let Judged {
        evidence,
        results,
        judgement,
    } = judged;
    let verdict = judgement.verdict.name().to_uppercase();
    writeln!(out, "{}: {verdict}", evidence.name)?;
    outcome(evidence, out)?;
    let ended_early = evidence.outcome.kind != OutcomeKind::Completed;
    let saw_nothing = |(result, (_, expected, _)): &(&RuleResult, &(RuleName, Expected, bool))| {
        ended_early && result.saw_nothing() && matches!(expected, Expected::Holds | Expected::Any)
    };
    let (silent, told): (Vec<_>, Vec<_>) = results.iter().zip(&judgement.rules).partition(saw_nothing);
    let silent = (!silent.is_empty()).then(|| ended_before(silent.len(), evidence));
    // What the line on the outcome and the one under the rules say is not said twice.
    let known = format!(": {}", evidence.outcome.text);
    for reason in judgement
        .reasons
        .iter()
        .filter(|reason| Some(*reason) != silent.as_ref())
    {
        writeln!(out, "  ! {}", reason.strip_suffix(&known).unwrap_or(reason))?;
    }
    console(judged, out)?;
    head(evidence, out)?;
    writeln!(
        out,
        "  phases            guest ms  instructions   wall ms  device writes  device bytes"
    )?;
    for line in phase_lines(evidence) {
        let record = line.record;
        writeln!(
            out,
            "    {:<9} gen {}  {:>8}  {:>12}  {:>8}  {:>13}  {:>12}",
            record.phase.name(),
            record.generation,
            thousandths(record.guest_ns / 1000),
            record
                .instructions
                .map_or("-".to_owned(), |count| count.to_string()),
            thousandths(record.wall_us),
            line.device_writes,
            line.device_bytes
        )?;
    }
    super::injections::write(judged, out)?;
    writeln!(out, "  had to hold")?;
    // A rule that the scenario leaves open and that had nothing to look at says nothing.
    let told = told
        .into_iter()
        .filter(|(result, (_, expected, _))| *expected != Expected::Any || !result.saw_nothing());
    for (result, (_, expected, met)) in told {
        rule(result, *expected, *met, out)?;
    }
    if let Some(silent) = silent {
        writeln!(out, "    --  {silent}")?;
    }
    for result in results.iter().filter(|result| result.findings.total > 0) {
        findings(result, out)?;
    }
    writeln!(
        out,
        "  state hash {}, ledger digest {}",
        evidence.state_hash,
        evidence.ledger_digest()
    )?;
    writeln!(out, "  reproduce: {}", reproduce(evidence))
}

/// How the run ended, and why.
fn outcome(evidence: &Evidence, out: &mut String) -> std::fmt::Result {
    let outcome = &evidence.outcome;
    writeln!(
        out,
        "  ended as {} in {} of generation {}: {}",
        outcome.kind.name(),
        outcome.phase,
        outcome.generation,
        outcome.text
    )?;
    match cause(evidence) {
        Some(cause) => writeln!(out, "  because {cause}"),
        None => Ok(()),
    }
}

/// What the kernel said of KHO, LUO and kexec, and the last lines of the console if the run ended otherwise than it
/// should.
fn console(judged: &Judged, out: &mut String) -> std::fmt::Result {
    let evidence = &judged.evidence;
    if evidence.outcome.kind != OutcomeKind::Completed {
        quoted(
            "the kernel on the handover",
            kernel_lines(&evidence.console).take(QUOTED),
            out,
        )?;
    }
    quoted("the console's last lines", last_lines(judged).into_iter(), out)
}

/// Lines of the guest under a heading; nothing if there are none.
fn quoted<'a>(heading: &str, lines: impl Iterator<Item = &'a str>, out: &mut String) -> std::fmt::Result {
    for (number, line) in lines.enumerate() {
        if number == 0 {
            writeln!(out, "  {heading}")?;
        }
        writeln!(out, "    | {}", printable(line))?;
    }
    Ok(())
}

fn head(evidence: &Evidence, out: &mut String) -> std::fmt::Result {
    let kernels: Vec<_> = evidence.booted().map(|(_, kernel)| kernel.release()).collect();
    writeln!(
        out,
        "  seed {}, backend {}, {} of RAM, Linux {}",
        evidence.seed,
        evidence.backend,
        Bytes(evidence.ram_bytes),
        kernels.join(" -> ")
    )?;
    if let Some(handover) = &evidence.handover {
        writeln!(out, "  no first kernel: handed over is {handover}")?;
    }
    let pages = evidence.preserved_pages();
    writeln!(
        out,
        "  preserved {pages} pages ({}), {} device writes",
        Bytes(pages * PAGE),
        evidence.ledger.made
    )?;
    let blackouts: Vec<_> = evidence
        .blackouts_ns
        .iter()
        .map(|ns| format!("{} ms", thousandths(ns / 1000)))
        .collect();
    if blackouts.is_empty() {
        writeln!(out, "  no blackout was measured")?;
    } else {
        // On KVM user code is noticed only when it accesses a device: before the old kernel's last user instruction and
        // after the new kernel's first. The measured time is therefore an upper bound.
        let at_most = if evidence.is_from_kvm() { "at most " } else { "" };
        writeln!(out, "  blackout {at_most}{} of guest time", blackouts.join(", "))?;
    }
    symbol_notes(evidence, out)?;
    backend_notes(evidence, out)
}

/// Lines about kernels that lay elsewhere than linked, and about symbol files that are those of other kernels.
fn symbol_notes(evidence: &Evidence, out: &mut String) -> std::fmt::Result {
    for (generation, kernel) in evidence.booted() {
        if let Some(offset) = kernel.symbols.offset().filter(|offset| *offset != 0) {
            writeln!(
                out,
                "  the kernel of generation {generation} lay {offset:#x} above the addresses it was linked for"
            )?;
        }
        if let Some(refusal) = kernel.symbols.refusal() {
            writeln!(out, "  generation {generation}: {refusal}")?;
        }
    }
    Ok(())
}

/// Lines about device time, about the precision of each jump's time, and about instructions that softcpu executed for
/// KVM.
fn backend_notes(evidence: &Evidence, out: &mut String) -> std::fmt::Result {
    if evidence.slowdown > 1 {
        writeln!(out, "  device time was slowed {} times", evidence.slowdown)?;
    }
    for (number, not_before) in (1..).zip(&evidence.jumps_not_before) {
        if not_before.is_none() && evidence.is_from_kvm() {
            writeln!(out, "  jump {number} was seen at its very instruction")?;
        }
        if let Some(not_before) = not_before {
            let jump = evidence.jump_time(number - 1).unwrap_or(*not_before);
            let late = thousandths(jump.saturating_sub(*not_before) / 1000);
            writeln!(
                out,
                "  jump {number} was noticed at the next kernel's entry: it lies in the {late} ms before"
            )?;
        }
    }
    if !evidence.emulated.is_empty() {
        let total: u64 = evidence.emulated.iter().map(|(_, count)| count).sum();
        let mut most = evidence.emulated.clone();
        most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let most: Vec<String> = most
            .iter()
            .take(6)
            .map(|(mnemonic, count)| format!("{mnemonic} {count}"))
            .collect();
        writeln!(
            out,
            "  softcpu executed {total} instructions that KVM could not ({})",
            most.join(", ")
        )?;
    }
    Ok(())
}

fn rule(result: &RuleResult, expected: Expected, met: bool, out: &mut String) -> std::fmt::Result {
    let said = match (result.findings.total, result.unjudged()) {
        (_, Some(why)) => why,
        (0, None) => "held".to_owned(),
        (1, None) => "1 finding".to_owned(),
        (total, None) => format!("{total} findings"),
    };
    let mark = if met { "ok " } else { "NOT" };
    let looked = &result.looked_at;
    let expected = match expected {
        Expected::Holds => String::new(),
        other => format!(", expected {}", other.name()),
    };
    write!(
        out,
        "    {mark} {:<36} {said}{expected}; looked at {} {}",
        result.rule.name(),
        looked.count,
        unit_of(looked.count, looked.unit)
    )?;
    if looked.note.is_empty() {
        writeln!(out)
    } else {
        writeln!(out, " ({})", looked.note)
    }
}

fn findings(result: &RuleResult, out: &mut String) -> std::fmt::Result {
    writeln!(out, "  {} - {}", result.rule.name(), result.rule.story())?;
    let groups = grouped(&result.findings.kept);
    for group in groups.iter().take(SHOWN) {
        finding(group, out)?;
    }
    let shown: usize = groups.iter().take(SHOWN).map(|group| group.len()).sum();
    let rest = result.findings.total.saturating_sub(shown as u64);
    if rest > 0 {
        writeln!(out, "    ... and {rest} more findings")?;
    }
    Ok(())
}

fn finding(group: &[Finding], out: &mut String) -> std::fmt::Result {
    let [first, ..] = group else { return Ok(()) };
    writeln!(out, "    * {}", first.text)?;
    match (first.page, group.len()) {
        (Some(page), 1) => writeln!(out, "      page {page:#x}, owner {}", first.owner)?,
        (Some(page), more) => {
            let last = page + more as u64 - 1;
            writeln!(
                out,
                "      pages {page:#x} to {last:#x} ({more} alike), owner {}",
                first.owner
            )?;
        }
        (None, _) => writeln!(out, "      owner {}", first.owner)?,
    }
    if first.actual.contains('\n') {
        writeln!(out, "      expected {}, actual", first.expected)?;
        for line in first.actual.lines() {
            writeln!(out, "        {line}")?;
        }
    } else {
        writeln!(out, "      expected {}, actual {}", first.expected, first.actual)?;
    }
    if first.last_writer != harness::oracle::Writer::Nobody {
        writeln!(out, "      last writer: {}", first.last_writer)?;
    }
    if !first.explained_by.is_empty() {
        let numbers: Vec<String> = first.explained_by.iter().map(u32::to_string).collect();
        writeln!(out, "      explained by injection {}", numbers.join(", "))?;
    }
    Ok(())
}

/// Formats a number of thousandths as a decimal number.
pub(super) fn thousandths(value: u64) -> String {
    format!("{}.{:03}", value / 1000, value % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::testing;

    #[test]
    fn a_pass_says_what_was_looked_at_and_how_to_have_it_again() {
        let text = text(&Judged::new(testing::good()).unwrap());
        for part in [
            "small: PASS\n",
            "held; looked at 36 pages",
            "held; looked at 1 handover blob (",
            "blackout 0.900 ms",
            "reproduce: baton run small.toml --seed 1 --backend soft\n",
            "Linux 7.3.4 -> 7.3.4",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn the_lines_of_a_kernel_s_report_are_told() {
        let mut evidence = testing::good();
        evidence.console += "[    0.250000] BUG: Bad page state in process init  pfn:01234\n";
        evidence.console += "[    0.250010] page: refcount:0 mapcount:1\n";
        let text = text(&Judged::new(evidence).unwrap());
        for part in [
            "small: FAIL\n",
            "    * bad page, from the kernel of generation 1 in boot-new, at 0.250000 s of its log: BUG: Bad page state",
            "        page: refcount:0 mapcount:1\n",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn an_unexpected_end_comes_first_with_its_cause_and_the_consoles_last_lines() {
        let mut evidence = testing::good();
        evidence.outcome.kind = OutcomeKind::SetupFailed;
        evidence.outcome.generation = 0;
        evidence.outcome.phase = harness::evidence::Phase::Prepare;
        evidence.outcome.text = "create session \"s\": open(/dev/liveupdate) failed".into();
        let hello = evidence.kernels[0].hello.as_mut().unwrap();
        (hello.liveupdate, hello.release) = (false, "6.17.8".into());
        evidence.console = (0..40)
            .map(|line| format!("[ {line}.0] line {line}\r\n"))
            .collect();
        evidence.console.push_str("[ 40.0] KHO: \u{1b}[31mdisabled\n");
        evidence.dma = None;
        evidence.ledger.entries.clear();
        let report = text(&Judged::new(evidence.clone()).unwrap());
        let first: Vec<_> = report.lines().take(3).collect();
        assert_eq!(
            first,
            [
                "small: ERROR",
                "  ended as setup-failed in prepare of generation 0: create session \"s\": open(/dev/liveupdate) failed",
                "  because Linux 6.17.8 has no Live Update Orchestrator (6.19 and later, CONFIG_LIVEUPDATE)"
            ]
        );
        assert!(
            report.contains("    | [ 40.0] KHO: \u{fffd}[31mdisabled\n"),
            "{report}"
        );
        assert!(
            report.contains("| [ 39.0] line 39\n") && !report.contains("line 20"),
            "{report}"
        );
        assert!(
            report.contains("rules had nothing to look at, because the run ended in prepare"),
            "{report}"
        );
        // The console of a run that ended as it should is of no interest.
        evidence
            .scenario_text
            .push_str("[expect]\noutcome = \"setup-failed\"\n");
        let report = text(&Judged::new(evidence).unwrap());
        assert!(
            report.starts_with("small: PASS\n  ended as setup-failed"),
            "{report}"
        );
        assert!(report.contains("KHO:") && !report.contains("line 39"), "{report}");
    }

    #[test]
    fn findings_on_adjacent_pages_are_one() {
        let mut evidence = testing::good();
        for page in 10..14 {
            testing::change_page(&mut evidence, 1, page, |page| page[7] ^= 1);
        }
        let text = text(&Judged::new(evidence).unwrap());
        assert!(text.contains("small: FAIL\n"), "{text}");
        assert!(text.contains("pages 0x100a to 0x100d (4 alike)"), "{text}");
    }
}
