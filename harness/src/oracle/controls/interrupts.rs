//! Interrupts of the device.

use super::{only, result};
use crate::evidence::*;
use crate::oracle::*;
use crate::testing::{self, good};

#[test]
fn lost_invented_and_miscounted_interrupts_are_told_apart() {
    const RULE: RuleName = RuleName::InterruptsNeitherLostNorInvented;
    let texts = |evidence: &Evidence| -> Vec<String> {
        only(evidence, &[RULE])
            .into_iter()
            .map(|finding| finding.text)
            .collect()
    };
    assert_eq!(result(&good(), RULE).looked_at.count, testing::MESSAGES.2);

    let mut evidence = good();
    evidence.trace.records.pop();
    let found = texts(&evidence);
    assert!(
        found[0].starts_with("no processor took an interrupt for the message"),
        "{found:?}"
    );
    assert!(
        found[1].ends_with("counted 2 interrupts of the device, 1 were due"),
        "{found:?}"
    );

    // Two interrupts in a row, and no message between them.
    let mut evidence = good();
    let mut again = *evidence.trace.records.last().unwrap();
    again.time += 5;
    evidence.trace.records.push(again);
    let found = texts(&evidence);
    assert!(
        found[0].ends_with("for which the device sent no message"),
        "{found:?}"
    );

    for count in [1, 3] {
        let mut evidence = good();
        evidence.interrupts[0].disarmed.as_mut().unwrap().count = count;
        assert!(texts(&evidence)[0].contains(&format!("counted {count} interrupts")));
    }
    // A message that is sent while the agent disarms may be counted or not.
    for count in [1, 2] {
        let mut evidence = good();
        let disarmed = evidence.interrupts[0].disarmed.as_mut().unwrap();
        disarmed.count = count;
        disarmed.asked.time_ns = testing::MESSAGES.0 + 15_000;
        assert!(result(&evidence, RULE).held(), "{count}");
    }
}

#[test]
fn interrupts_that_are_not_on_record_cannot_be_judged() {
    const RULE: RuleName = RuleName::InterruptsNeitherLostNorInvented;
    let mut evidence = good();
    evidence.trace.dropped = 1;
    assert!(!result(&evidence, RULE).judged());
    let mut evidence = good();
    evidence.interrupts[0].disarmed = None;
    assert!(!result(&evidence, RULE).judged());
    // A backend without a trace bounds the number by the messages.
    for (count, held) in [(0, false), (1, true), (3, true), (4, false)] {
        let mut evidence = good();
        evidence.trace = Default::default();
        evidence.interrupts[0].disarmed.as_mut().unwrap().count = count;
        assert_eq!(result(&evidence, RULE).held(), held, "{count}");
    }
}
