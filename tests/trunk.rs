//! Runs that branch from a common beginning end as they do from power-on, wherever their injections are armed.

use harness::compare::first_difference;
use harness::plan::{Overrides, Plan, plan};
use harness::run::{Listeners, run};
use harness::scenario::parse;
use harness::trunk::Trunk;
use harness::verdict::Judged;
use tests::ready;
use vmm::soft::Soft;

const SILENT: Listeners<'_> = Listeners {
    observer: &(),
    again: &|_| {},
};

/// Injections, armed at power-on and at each kind of place, and some that never are.
const FAULTS: [&str; 11] = [
    "",
    "when.write = 3\nwhat.dma.flip.bit = 5",
    "when.phase = \"prepare\"\nwhat.memory.flip = { at = 0x3000000, bit = 1 }",
    "when = { phase = \"armed\", write = 5 }\nwhat.dma.delay.by = \"200 us\"\ncount = 3",
    "when = { phase = \"armed\", instructions = 3000 }\nwhat.memory.flip.at = { object = \"data\", page = 1 }",
    "when.at = \"jump\"\nwhat.memory.flip.at = { object = \"data\", page = 2 }",
    "when.at = \"jump\"\nwhat.dma.redirect.to = { object = \"data\", page = 4 }\n\n\
     [[inject]]\nwhen.at = \"jump\"\nwhat.memory.write = { at = 0x2000000, bytes = \"0102\" }",
    "when.at = \"entry\"\nwhat.memory.flip.at = { object = \"data\", page = 5 }",
    "when = { at = \"entry\", instructions = 100000 }\nwhat.dma.redirect.to = \"hole\"",
    "when = { phase = \"restore\", write = 2 }\nwhat.dma = \"drop\"",
    "when = { phase = \"restore\", generation = 2 }\nwhat.dma = \"drop\"",
];

fn with(fault: &str, vcpus: u32, kexecs: u32) -> Plan {
    let inject = if fault.is_empty() {
        String::new()
    } else {
        format!("[[inject]]\n{fault}\n")
    };
    let text = format!(
        r#"name = "trunk"
ram = "256 MiB"
vcpus = {vcpus}
kexecs = {kexecs}

[[memfd]]
name = "ring"
size = "128 KiB"
token = 1

[[memfd]]
name = "data"
size = "64 KiB"
token = 2

[dma]
rate = "10 MB/s"
buffer = "4 KiB"
ring = 16

{inject}
[expect]
"#
    );
    let scenario = parse("trunk.toml", &text).unwrap();
    plan(&scenario, "trunk.toml", &text, &Overrides::default()).unwrap()
}

/// Without host times.
fn timeless(mut judged: Judged) -> Judged {
    for phase in &mut judged.evidence.phases {
        phase.wall_us = 0;
    }
    judged
}

fn each_ends_as_from_power_on(faults: &[&str], vcpus: u32, kexecs: u32) {
    let agent = harness::agent::load().unwrap();
    let mut trunk = Trunk::new(&with("", vcpus, kexecs), &agent, Soft::default());
    // The first one once more finds its snapshot there.
    for fault in faults.iter().chain(&faults[..1]) {
        let plan = with(fault, vcpus, kexecs);
        assert!(trunk.serves(&plan));
        let branch = timeless(trunk.run(&plan, &SILENT).unwrap());
        let whole = timeless(run(&plan, &agent, &Soft::default(), &[], &SILENT).unwrap());
        let differs = first_difference(&whole.evidence, &branch.evidence);
        assert!(differs.is_none(), "{vcpus} processors, {fault:?}: {differs:?}");
        assert!(whole.evidence == branch.evidence, "{vcpus} processors, {fault:?}");
        assert_eq!(whole.judgement, branch.judgement, "{vcpus} processors, {fault:?}");
    }
}

#[test]
fn a_branch_ends_as_a_run_from_power_on() {
    if !ready("branches of a common beginning") {
        return;
    }
    // The last fault needs a third kernel.
    let (_, one) = FAULTS.split_last().unwrap();
    each_ends_as_from_power_on(one, 1, 1);
    each_ends_as_from_power_on(&FAULTS[4..6], 4, 1);
    each_ends_as_from_power_on(&FAULTS[9..], 2, 2);
}

#[test]
fn a_plan_that_begins_otherwise_is_not_served() {
    if !ready("a run that does not branch") {
        return;
    }
    let trunk = Trunk::new(&with("", 1, 1), &harness::agent::load().unwrap(), Soft::default());
    assert!(!trunk.serves(&with("", 2, 1)));
}
