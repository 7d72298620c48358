//! Reads scenario files, and reports where one is wrong.

use super::{Expected, Scenario, check};
use crate::oracle::RuleName;
use std::ops::Range;
use std::path::Path;

/// Maximum size of a scenario file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a scenario cannot be used. Each message is one line with file, line and column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {reason}")]
    Unreadable {
        /// Path as given.
        file: String,
        /// What the system says.
        reason: String,
    },
    /// Something in the file is wrong.
    #[error("{file}:{line}:{column}: {message}")]
    Wrong {
        /// Path as given.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What was found and what is allowed.
        message: String,
    },
}

/// Reads and checks the scenario at `path`. Also returns its text, which evidence keeps.
pub fn load(path: &Path) -> Result<(Scenario, String), ScenarioError> {
    let file = path.display().to_string();
    let unreadable = |reason: String| ScenarioError::Unreadable {
        file: file.clone(),
        reason,
    };
    let size = std::fs::metadata(path)
        .map_err(|e| unreadable(e.to_string()))?
        .len();
    if size > MAX_FILE_BYTES {
        return Err(unreadable(format!(
            "{size} bytes, a scenario has at most {MAX_FILE_BYTES}"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(e.to_string()))?;
    let scenario = parse(&file, &text)?;
    Ok((scenario, text))
}

/// Parses and checks scenario `text`; `file` is for messages.
pub fn parse(file: &str, text: &str) -> Result<Scenario, ScenarioError> {
    let wrong = |span: Range<usize>, message: String| wrong_at(file, text, span, message);
    let mut scenario: Scenario = toml::from_str(text)
        .map_err(|error| wrong(error.span().unwrap_or(0..0), one_line(error.message())))?;
    check::check(&scenario).map_err(|problem| wrong(problem.span, problem.message))?;
    // Few scenarios have interrupts, steps or a payload. The others need not say that they have none.
    let mut absent = Vec::new();
    if !scenario.has_interrupts() {
        absent.push(RuleName::InterruptsNeitherLostNorInvented);
    }
    if !scenario.gives_steps() {
        absent.push(RuleName::StepsAnswered);
    }
    match &scenario.payload {
        None => absent.push(RuleName::PayloadPassed),
        Some(_) => absent.extend(beside_a_payload(scenario.dma.is_some())),
    }
    for rule in absent {
        scenario.expect.rules.entry(rule).or_insert(Expected::Any);
    }
    Ok(scenario)
}

/// The rules that have nothing to look at beside a payload, because only an agent that makes the objects could tell them.
fn beside_a_payload(dma: bool) -> Vec<RuleName> {
    let mut rules = vec![
        RuleName::SessionRetrieved,
        RuleName::NothingLeaked,
        RuleName::KeptFromAllocator,
    ];
    if !dma {
        rules.extend([
            RuleName::PreservedContent,
            RuleName::DeviceWritesLanded,
            RuleName::DmaOnlyToPreserved,
            RuleName::DeviceNeverSilent,
        ]);
    }
    rules
}

/// An error at `span` of a scenario's text.
pub fn wrong_at(file: &str, text: &str, span: Range<usize>, message: String) -> ScenarioError {
    let (line, column) = position(text, span.start);
    ScenarioError::Wrong {
        file: file.into(),
        line,
        column,
        message,
    }
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Line and column, both from 1, of byte `offset` of `text`.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::{MemfdEnd, OutcomeKind};
    use crate::scenario::{Bytes, Workload};
    use proptest::prelude::*;

    const GOOD: &str = "name = \"a\"\n[[memfd]]\nname = \"m\"\nsize = \"64 MiB\"\ntoken = 1\n";

    fn error(text: &str) -> String {
        parse("s.toml", text).expect_err("must be refused").to_string()
    }

    #[test]
    fn defaults_and_values() {
        let scenario = parse("s.toml", GOOD).unwrap();
        assert_eq!(*scenario.memfd[0].size.get_ref(), Bytes(64 << 20));
        assert_eq!(*scenario.ram.get_ref(), Bytes(512 << 20));
        assert_eq!(scenario.expect.of(RuleName::PreservedContent), Expected::Holds);
    }

    #[test]
    fn every_rate_that_is_allowed_is_one_that_the_machine_has() {
        let text = |rate: u64| format!("{GOOD}[dma]\nrate = \"{rate} B/s\"\n");
        let (least, most) = (1_000, vmm::machine::MAX_RATE);
        for rate in [least, most] {
            let scenario = parse("s.toml", &text(rate)).unwrap();
            assert_eq!(scenario.dma.unwrap().get_ref().rate.get_ref().0, rate);
        }
        for rate in [least - 1, most + 1] {
            let message = error(&text(rate));
            assert!(message.contains("expected 1000 to 20000000000 B/s"), "{message}");
        }
    }

    #[test]
    fn a_memfd_that_is_not_retrieved_goes_over_one_kexec_and_has_no_ring() {
        let text = |end: &str, further: &str| format!("{GOOD}end = \"{end}\"\n{further}");
        let of = |text: &str| parse("s.toml", text).unwrap().memfd[0].end();
        assert_eq!(of(GOOD), MemfdEnd::Retrieved);
        assert_eq!(of(&text("finished", "")), MemfdEnd::Finished);
        assert_eq!(of(&text("left", "")), MemfdEnd::Left);
        let other =
            |end: &str| format!("[[memfd]]\nname = \"o\"\nsize = \"4 KiB\"\ntoken = 2\nend = \"{end}\"\n");
        assert_eq!(of(&text("left", &other("left"))), MemfdEnd::Left);
        for (text, said) in [
            (text("dropped", ""), "expected one of"),
            (text("finished", "hops = 1\n"), "goes over one kexec"),
            (text("left", &other("finished")), "so it is asked for"),
            (text("left", &other("retrieved")), "so it is asked for"),
            (
                text("finished", "[dma]\nrate = \"1 MB/s\"\n"),
                "has to be retrieved",
            ),
        ] {
            let message = error(&text);
            assert!(message.contains(said), "{said}: {message}");
        }
    }

    #[test]
    fn an_engine_has_32_to_64_address_bits() {
        let text = |bits: &str| format!("{GOOD}[dma]\nrate = \"1 MB/s\"\n{bits}");
        for (given, bits) in [("", 64), ("address_bits = 32", 32), ("address_bits = 64", 64)] {
            let scenario = parse("s.toml", &text(given)).unwrap();
            assert_eq!(*scenario.dma.unwrap().get_ref().address_bits.get_ref(), bits);
        }
        for bits in [0, 31, 65] {
            let message = error(&text(&format!("address_bits = {bits}")));
            assert!(message.starts_with("s.toml:8:16: "), "{message}");
            let found = format!("found {bits} address bits, expected 32 to 64");
            assert!(message.contains(&found), "{message}");
        }
    }

    #[test]
    fn a_ring_and_its_buffers_must_fit_their_memfd() {
        // A page each for list, descriptors and count, and then 256 buffers of a page.
        let text = |pages: u64| {
            let memfd = GOOD.replace("64 MiB", &format!("{} KiB", pages * 4));
            format!("{memfd}[dma]\nrate = \"1 MB/s\"\n")
        };
        parse("s.toml", &text(259)).unwrap();
        let message = error(&text(258));
        assert!(
            message.contains("the ring of 256 entries with its buffers needs 1060864 bytes"),
            "{message}"
        );
    }

    #[test]
    fn expectations() {
        let text = format!("{GOOD}[expect]\noutcome = \"session-lost\"\nsession-retrieved = \"violated\"\n");
        let expect = parse("s.toml", &text).unwrap().expect;
        assert_eq!(expect.outcome, Some(OutcomeKind::SessionLost));
        assert_eq!(expect.of(RuleName::SessionRetrieved), Expected::Violated);
        let text = format!("{GOOD}[expect]\ndevice-never-silent = {{ most = 1, phase = \"handover\" }}\n");
        let expect = parse("s.toml", &text).unwrap().expect;
        assert_eq!(expect.of(RuleName::DeviceNeverSilent), Expected::Violated);
        assert_eq!(expect.findings[&RuleName::DeviceNeverSilent].most, Some(1));
        let message = error(&format!(
            "{GOOD}[expect]\ndevice-never-silent = {{ mosst = 1 }}\n"
        ));
        assert!(
            message.contains("mosst") && message.contains("`most`"),
            "{message}"
        );
        let message = error(&format!("{GOOD}[expect]\nsession-retrieved = \"maybe\"\n"));
        assert!(
            message.starts_with("s.toml:7:21: ") && message.contains("\"unjudged\""),
            "{message}"
        );
        let message = error(&format!("{GOOD}[expect]\nno-such-rule = \"holds\"\n"));
        assert!(
            message.starts_with("s.toml:7:1: ") && message.contains("preserved-content"),
            "{message}"
        );
    }

    #[test]
    fn a_fault_is_one_thing_in_a_generation_that_runs() {
        for fault in ["misbehave = \"spin\"", "provoke = \"BUG\"\ngeneration = 1"] {
            assert!(
                parse("s.toml", &format!("{GOOD}[fault]\n{fault}\n")).is_ok(),
                "{fault}"
            );
        }
        for (fault, words) in [
            (
                "misbehave = \"spin\"\nprovoke = \"BUG\"",
                "the guest ends at the first",
            ),
            ("provoke = \"PANIC\"", "unknown variant"),
            ("provoke = \"BUG\"\ngeneration = 2", "expected 0 to 1"),
        ] {
            let message = error(&format!("{GOOD}[fault]\n{fault}\n"));
            assert!(message.contains(words), "{fault}: {message}");
        }
    }

    #[test]
    fn an_allowed_complaint_has_to_be_specific() {
        let text = |list: &str| format!("{GOOD}[expect]\nallowed-complaints = {list}\n");
        let expect = parse("s.toml", &text("[\"at mm/\"]")).unwrap().expect;
        assert_eq!(expect.allowed_complaints, ["at mm/"]);
        let message = error(&text("[\"at mm/\", \" W  \"]"));
        assert!(message.contains("4 characters"), "{message}");
        assert!(error(&text("\"at mm/\"")).contains("sequence"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let message = error("name = \"a\"\nramm = \"1 GiB\"\n");
        assert!(
            message.starts_with("s.toml:2:1: ") && message.contains("ramm"),
            "{message}"
        );
        assert!(message.contains("`ram`") && !message.contains('\n'), "{message}");
    }

    #[test]
    fn a_bad_size_is_named_with_its_place() {
        let message = error("name = \"a\"\nram = \"64 MEGS\"\n");
        assert!(
            message.starts_with("s.toml:2:7: ") && message.contains("MiB"),
            "{message}"
        );
    }

    #[test]
    fn a_workload_is_a_size_or_all_memory() {
        let workload = |value: &str| parse("s.toml", &format!("{GOOD}[run]\nworkload = \"{value}\"\n"));
        let size = Workload::Size(Bytes(3 << 20));
        assert_eq!(workload("3 MiB").unwrap().run.workload, Some(size));
        assert_eq!(workload("all").unwrap().run.workload, Some(Workload::All));
        let message = workload("everything").unwrap_err().to_string();
        assert!(
            message.contains("MiB") && message.contains("or \"all\""),
            "{message}"
        );
    }

    #[test]
    fn a_fault_is_a_death_or_a_leak_of_a_memfd() {
        let fault = |text: &str| format!("{GOOD}[fault]\n{text}\n");
        for good in [
            "misbehave = \"exit\"",
            "keep = \"m\"",
            "misbehave = \"exit\"\nkeep = \"m\"",
        ] {
            assert!(parse("s.toml", &fault(good)).is_ok(), "{good}");
        }
        let message = error(&fault("generation = 1"));
        assert!(
            message.contains("none of misbehave, provoke and keep"),
            "{message}"
        );
        let message = error(&fault("keep = \"other\""));
        assert!(message.contains("no [[memfd]] is named \"other\""), "{message}");
    }

    #[test]
    fn relations_are_checked_with_their_place() {
        let message = error(&GOOD.replace("64 MiB", "600 MiB"));
        assert!(
            message.starts_with("s.toml:4:8: ") && message.contains("512 MiB"),
            "{message}"
        );
        let message = error(&GOOD.replace("64 MiB", "5000 B"));
        assert!(message.contains("4096"), "{message}");
        let twice = format!("{GOOD}[[memfd]]\nname = \"n\"\nsize = \"1 MiB\"\ntoken = 1\n");
        assert!(error(&twice).contains("token 1"), "{}", error(&twice));
        let dma = format!("{GOOD}[dma]\nrate = \"1 MB/s\"\nbuffer = \"3 KiB\"\n");
        assert!(error(&dma).starts_with("s.toml:8:10: "), "{}", error(&dma));
        let memfd = format!("{GOOD}[dma]\nrate = \"1 MB/s\"\nmemfd = \"x\"\n");
        assert!(error(&memfd).contains("\"x\""), "{}", error(&memfd));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}", at in 0usize..70) {
            let _ = parse("s.toml", &text);
            let mut mixed = GOOD.to_string();
            mixed.insert_str(at.min(GOOD.len()), &text);
            let _ = parse("s.toml", &mixed);
        }
    }
}
