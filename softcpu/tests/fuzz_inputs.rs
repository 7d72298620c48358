//! The fuzz target of `fuzz/` on random inputs: softcpu against the host's own processor, as in `differential`.
//!
//! `BATON_FUZZ_INPUTS` (default 20000) changes how many.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(dead_code)] // the differential test uses more of what it shares

#[path = "differential/approximate.rs"]
mod approximate;
#[path = "differential/catalog.rs"]
mod catalog;
#[path = "differential/choices.rs"]
mod choices;
#[path = "differential/compare.rs"]
mod compare;
#[path = "differential/fixup.rs"]
mod fixup;
#[path = "differential/generate.rs"]
mod generate;
#[path = "differential/native.rs"]
mod native;
#[path = "differential/rng.rs"]
mod rng;
#[path = "differential/soft.rs"]
mod soft;
#[path = "differential/state.rs"]
mod state;
#[path = "../fuzz/src/target.rs"]
mod target;
#[path = "differential/tell.rs"]
mod tell;

use rng::Rng;
use target::Both;

const SEED: u64 = 0x6261_746f_6e00_0003;

fn input(number: u64) -> Vec<u8> {
    let mut rng = Rng::for_case(SEED, number);
    let length = 2 + rng.below(600);
    (0..length).map(|_| rng.next().to_le_bytes()[0]).collect()
}

#[test]
fn both_processors_do_the_same_with_any_input() {
    let inputs = std::env::var("BATON_FUZZ_INPUTS").map_or(20_000, |text| text.parse().expect("a number"));
    let mut both = Both::new();
    assert!(both.case(&[]).is_none() && both.case(&[1]).is_none());
    let (mut tried, mut noticed) = (0u32, 0u32);
    let (mut run, mut forms) = (0, std::collections::BTreeSet::new());
    for number in 0..inputs {
        let input = input(number);
        let Some(case) = both.case(&input) else { continue };
        let again = both.case(&input).expect("the same case");
        assert_eq!((&again.bytes, again.state.gpr), (&case.bytes, case.state.gpr));
        let found = both.differences(&case);
        assert!(found.is_empty(), "input {number}\n{}{found}", tell::case(&case));
        // The negative control: with another register to begin with, softcpu ends elsewhere, unless the instruction
        // overwrites it.
        if number % 16 == 0 {
            let mut other = case;
            other.state.gpr[15] ^= 1;
            tried += 1;
            noticed += u32::from(!both.differences_between(&again, &other).is_empty());
        }
        run += 1;
        forms.insert(format!("{:?}", again.insn.code()));
    }
    assert!(
        noticed >= tried / 10 * 9,
        "{noticed} of {tried} wrong outcomes were noticed"
    );
    assert!(run > inputs / 4, "only {run} of {inputs} inputs made a case");
    assert!(
        inputs < 20_000 || forms.len() > 500,
        "only {} forms were run",
        forms.len()
    );
}
