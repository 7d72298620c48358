//! softcpu against the host's own processor, instruction by instruction.
//!
//! Each case is one random instruction with random registers and memory, run natively in this process and on softcpu in
//! user mode, there by the interpreter and by the translator. These two must agree in everything. General registers, RFLAGS, XMM, MXCSR, x87 state, scratch memory, RIP and the exception (vector, error
//! code, CR2) must be the same. What the architecture leaves undefined is listed in [`compare`], what processors do
//! differently because the manuals leave it open in [`choices`], and what is not run in [`catalog`]. Instructions that
//! softcpu does not have must say so: see [`unoffered`] and the last test.
//!
//! softcpu does the same on every host. Where processors are free and programs could see it, it does what the AMD EPYC
//! (family 25) does that it was first compared with: BSF and BSR of zero keep the destination, CMPXCHG keeps a register
//! that it does not exchange.
//!
//! ```text
//! generate -> fixup -> Case -> native ---\
//!                          \-> soft ------> compare, and with soft translated
//! ```
//!
//! `BATON_DIFF_CASES` (default 1000000), `BATON_DIFF_SEED`, `BATON_DIFF_CASE` (just that one) and
//! `BATON_DIFF_FORMS` (only forms whose name contains this, such as `Cvt` or `xmmm32`) change what is run.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod approximate;
mod catalog;
mod choices;
mod compare;
mod fixup;
mod generate;
mod native;
mod rng;
mod soft;
mod state;
mod tell;
mod unoffered;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;

use iced_x86::Code;

use generate::Case;
use rng::Rng;
use soft::Ran;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Prints a line past the test harness, which would show it only for a test that fails.
macro_rules! say {
    ($($argument:tt)*) => {
        // Where nobody listens, nothing is lost.
        let _ = writeln!(std::io::stderr(), $($argument)*);
    };
}

/// Forms that are translated, at least.
const TRANSLATED_FORMS: usize = 250;
/// Differences told in full before only counting them.
const SHOWN: u32 = 20;

#[test]
fn softcpu_computes_what_the_host_does() {
    let seed = setting("BATON_DIFF_SEED").unwrap_or(0x6261_746f_6e00_0001);
    let cases = setting("BATON_DIFF_CASES").unwrap_or(1_000_000);
    let only = setting("BATON_DIFF_CASE");
    let mut codes = catalog::runnable();
    if let Ok(part) = std::env::var("BATON_DIFF_FORMS") {
        codes.retain(|code| format!("{code:?}").contains(&part));
    }
    assert!(!codes.is_empty(), "no instruction form is left to run");
    say!(
        "seed {seed:#x}, {cases} cases over {} instruction forms",
        codes.len()
    );

    let mut native = native::Native::new();
    let mut soft = soft::Soft::new();
    let mut translated = soft::Soft::translated();
    let mut in_translation: BTreeSet<String> = BTreeSet::new();
    let mut runs: HashMap<Code, u64> = HashMap::new();
    let mut different: BTreeMap<String, u64> = BTreeMap::new();
    let mut faults: BTreeMap<u8, u64> = BTreeMap::new();
    let mut shown = 0;
    let numbers = only.map_or(0..cases, |case| case..case + 1);
    for number in numbers {
        let mut rng = Rng::for_case(seed, number);
        let code = codes[usize::try_from(number).expect("an index") % codes.len()];
        let Some(case) = (0..64).find_map(|_| make(code, &mut rng, &native)) else {
            continue;
        };
        *runs.entry(case.insn.code()).or_default() += 1;
        let expected = native.run(&case);
        if let Some(fault) = expected.fault {
            *faults.entry(fault.vector).or_default() += 1;
        }
        let before = translated.in_translation();
        let found = match (soft.run(&case), translated.run(&case)) {
            (Ran::Done(outcome), Ran::Done(other)) => {
                compare::differences(&case, &expected, &outcome) + &compare::translation(&outcome, &other)
            }
            (Ran::Odd(what), _) => {
                format!("  native ran it (fault {:x?}), softcpu: {what}\n", expected.fault)
            }
            (_, Ran::Odd(what)) => format!("  the interpreter ran it, the translator: {what}\n"),
        };
        if translated.in_translation() != before {
            in_translation.insert(format!("{:?}", case.insn.code()));
        }
        if found.is_empty() {
            continue;
        }
        let count = different.entry(format!("{:?}", case.insn.code())).or_default();
        *count += 1;
        if *count == 1 && shown < SHOWN {
            shown += 1;
            println!("{}", describe(seed, number, &case, &found));
        }
    }

    say!("faults raised by both, by vector: {faults:?}");
    say!("{} forms run in translation", in_translation.len());
    if only.is_none() {
        report_coverage(&codes, &runs);
    }
    if only.is_none() && cases >= 1_000_000 && codes.len() > 500 {
        assert!(in_translation.len() >= TRANSLATED_FORMS, "{in_translation:?}");
    }
    let total: u64 = different.values().sum();
    assert!(
        different.is_empty(),
        "{total} cases differ, seed {seed:#x}, by form: {different:#?}"
    );
}

#[test]
fn what_cpuid_does_not_offer_is_undefined() {
    let seed = setting("BATON_DIFF_SEED").unwrap_or(0x6261_746f_6e00_0002);
    let (seen, wrong) = unoffered::run(seed, 300_000);
    say!("seed {seed:#x}: {seen} instruction forms of extensions that are not offered");
    assert!(seen > 500, "only {seen} forms were reached");
    assert!(wrong.is_empty(), "seed {seed:#x}: not #UD: {wrong:#?}");
}

#[test]
fn what_is_not_implemented_is_said_and_not_guessed() {
    let mut soft = soft::Soft::new();
    let (mut refused, mut unexpected) = (0, Vec::new());
    for (number, code) in (0..).zip(Code::values().filter(|code| catalog::offered(*code))) {
        let mut rng = Rng::for_case(1, number);
        let Some(case) = (0..64).find_map(|_| generate::case(code, &mut rng, 0, 0)) else {
            continue;
        };
        // LOCK makes it #UD before it is anything.
        if case.insn.code() != code || case.insn.has_lock_prefix() {
            continue;
        }
        let unknown = matches!(soft.run(&case), Ran::Odd(what) if what.contains("Unknown"));
        match (unknown, catalog::is_implemented(code)) {
            (true, false) => refused += 1,
            (false, true) => {}
            _ => unexpected.push(code),
        }
    }
    assert!(refused > 10, "only {refused} forms were refused");
    assert!(
        unexpected.is_empty(),
        "implemented or not, against the list: {unexpected:?}"
    );
}

/// A case whose instruction is one of those that may be run.
fn make(code: Code, rng: &mut Rng, native: &native::Native) -> Option<Case> {
    let case = generate::case(code, rng, native.fs_base(), state::GS_BASE)?;
    let decoded = case.insn.code();
    (catalog::offered(decoded) && catalog::excluded(decoded).is_none()).then_some(case)
}

fn report_coverage(codes: &[Code], runs: &HashMap<Code, u64>) {
    let never: Vec<_> = codes.iter().filter(|code| !runs.contains_key(code)).collect();
    say!(
        "{} forms run, {} forms never run: {never:?}",
        runs.len(),
        never.len()
    );
    let mut reasons: BTreeMap<&str, Vec<Code>> = BTreeMap::new();
    for code in Code::values().filter(|code| catalog::offered(*code)) {
        if let Some(reason) = catalog::excluded(code) {
            reasons.entry(reason).or_default().push(code);
        }
    }
    for (reason, codes) in &reasons {
        println!("not run ({} forms): {reason}", codes.len());
    }
    for (mnemonics, flags) in compare::UNDEFINED_FLAGS
        .iter()
        .chain(compare::UNDEFINED_AFTER_SHIFT)
    {
        println!("flags not compared: {flags:#x} after {mnemonics:?}");
    }
    println!(
        "flags not compared: OF when the count is above 1 after {:?}",
        compare::OF_UNDEFINED_ABOVE_ONE
    );
    println!(
        "x87 results within a unit in the last place, C1 not compared: {:?}",
        approximate::MNEMONICS
    );
    for choice in choices::CHOICES {
        println!("processors differ: {} ({})", choice.what, choice.source);
    }
    assert!(
        never.is_empty() || runs.values().sum::<u64>() < codes.len() as u64,
        "forms never run: {never:?}"
    );
}

/// All that is needed to look at a case, and to run it again.
fn describe(seed: u64, number: u64, case: &Case, found: &str) -> String {
    let told = tell::case(case);
    format!("case {number} (BATON_DIFF_SEED={seed:#x} BATON_DIFF_CASE={number})\n{told}{found}")
}
