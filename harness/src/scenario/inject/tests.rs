use crate::plan::{Ask, BlobAsk, FieldChange, InjectionPlan, Thing};
use crate::scenario::inject::NodeFault;
use crate::scenario::parse;
use crate::testing;
use proptest::prelude::*;
use vmm::devices::power::PowerRequest;
use vmm::injection::{Act, Change, Deed, Delay, Filter, Injection, Occurrence, Poke, Repeat, WriteKind};
use vmm::phase::{Phase, Stamp};

mod wrong;

const DMA: &str = "[dma]\nrate = \"1 MB/s\"\nbuffer = \"64 B\"\nring = 4\n";

fn text(inject: &str) -> String {
    format!("{}{DMA}[[inject]]\n{inject}\n", testing::SCENARIO)
}

/// The only injection of a scenario with this one.
fn planned(inject: &str) -> InjectionPlan {
    let mut all = testing::plan(&text(inject)).injections;
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn error(inject: &str) -> String {
    parse("s.toml", &text(inject)).expect_err(inject).to_string()
}

fn stamp(generation: u16, phase: Phase) -> Option<Stamp> {
    Some(Stamp { generation, phase })
}

#[test]
fn triggers_are_what_the_file_says() {
    let trigger = |when: &str| {
        planned(&format!("when = {{ {when} }}\nwhat.dma = \"drop\""))
            .injection
            .trigger
    };
    let first = trigger("write = 3");
    assert_eq!((first.since, first.nth), (None, 3));
    assert_eq!(first.on, Occurrence::Write(WriteKind::Block));
    assert_eq!(first.delay, Delay::Time(0));
    let completion = trigger("write = 1, of = \"completion\", phase = \"armed\"");
    assert_eq!(completion.on, Occurrence::Write(WriteKind::Completion));
    assert_eq!(completion.since, stamp(0, Phase::Armed));
    assert_eq!(trigger("read = 2").on, Occurrence::Read);
    assert_eq!(trigger("access = 2").on, Occurrence::Access);
    assert_eq!(trigger("msi = 2").on, Occurrence::Write(WriteKind::Message));
    for (when, since, delay) in [
        ("at = \"jump\"", stamp(0, Phase::Jump), Delay::Time(0)),
        ("at = \"entry\"", stamp(1, Phase::BootNew), Delay::Time(0)),
        (
            "phase = \"restore\", after = \"2 us\"",
            stamp(1, Phase::Restore),
            Delay::Time(2_000),
        ),
        (
            "phase = \"prepare\", instructions = 9",
            stamp(0, Phase::Prepare),
            Delay::Instructions(9),
        ),
        ("instructions = 9", None, Delay::Instructions(9)),
        ("after = \"9 ns\"", None, Delay::Time(9)),
    ] {
        let trigger = trigger(when);
        assert_eq!(
            (trigger.since, trigger.on, trigger.delay),
            (since, Occurrence::Begin, delay),
            "{when}"
        );
    }
}

#[test]
fn changes_of_device_writes_are_what_the_file_says() {
    let of = WriteKind::Block;
    for (what, change) in [
        ("what.dma = \"drop\"", Change::Drop),
        ("what.dma = \"reorder\"", Change::Reorder),
        ("what.dma.duplicate.after = \"1 us\"", Change::Duplicate(1_000)),
        ("what.dma.delay.by = \"2 us\"", Change::Delay(2_000)),
        (
            "what.dma.torn = { after = \"3 ns\", at = 16 }",
            Change::Tear { at: 16, after: 3 },
        ),
        ("what.dma.torn.after = \"3 ns\"", Change::Tear { at: 0, after: 3 }),
        ("what.dma.flip.bit = 77", Change::Flip(77)),
        ("what.dma.redirect.to = 0x1000", Change::Redirect(0x1000)),
    ] {
        let planned = planned(&format!("when.write = 1\n{what}"));
        assert_eq!(
            planned.injection.deed,
            Deed::Filter(Filter { of, change }),
            "{what}"
        );
        assert_eq!((planned.ask, planned.injection.repeat), (None, Repeat::ONCE));
    }
    let count = planned("when.write = 1\nwhat.dma.count.by = -2\ncount = 5\nevery = 3");
    let (of, change) = (WriteKind::Completion, Change::Add(-2));
    assert_eq!(count.injection.deed, Deed::Filter(Filter { of, change }));
    assert_eq!(count.injection.trigger.on, Occurrence::Write(of));
    assert_eq!(count.injection.repeat, Repeat { count: 5, every: 3 });
    let content = planned("when.write = 1\nwhat.dma.content.block = 4");
    let seed = crate::seed::seed_for(1, "dma");
    let change = Change::Content { seed, sequence: 4 };
    let of = WriteKind::Block;
    assert_eq!(content.injection.deed, Deed::Filter(Filter { of, change }));
}

#[test]
fn changes_of_memory_are_done_or_asked_for() {
    let write = planned("when.at = \"jump\"\nwhat.memory.write = { at = 4096, bytes = \"00Ff\" }");
    let (address, bytes) = (4096, vec![0, 0xff]);
    assert_eq!(write.injection.deed, Deed::Write(vec![Poke { address, bytes }]));
    let flip = planned(
        "when.phase = \"armed\"\nwhat.memory.flip = { at = 4096, bit = 7 }\ncount = 3\nevery = \"1 ms\"",
    );
    assert_eq!(
        flip.injection.deed,
        Deed::Flip {
            address: 4096,
            bit: 7
        }
    );
    assert_eq!(
        flip.injection.repeat,
        Repeat {
            count: 3,
            every: 1_000_000
        }
    );
    let object =
        planned("when.at = \"entry\"\nwhat.memory.flip.at = { object = \"m\", page = 2, offset = 9 }");
    assert_eq!(object.injection.deed, Deed::AskWhenDue);
    let Some(Ask::Flip { at, bit: 0 }) = object.ask else {
        panic!()
    };
    assert_eq!((at.what, at.page, at.offset), (Thing::Object(1), Some(2), 9));
    let redirect = planned("when.write = 1\nwhat.dma.redirect.to = \"hole\"");
    assert_eq!(redirect.injection.deed, Deed::AskWhenArmed);
    assert!(matches!(
        redirect.ask,
        Some(Ask::Redirect {
            of: WriteKind::Block,
            ..
        })
    ));
}

/// A scenario with interrupts and two processors, and this injection.
fn all_there_is(inject: &str) -> String {
    let dma = DMA.replace(
        "ring = 4\n",
        "ring = 4\nwhen_full = \"wait\"\ninterrupts = true\n",
    );
    format!("vcpus = 2\n{}{dma}[[inject]]\n{inject}\n", testing::SCENARIO)
}

#[test]
fn deeds_at_a_moment_are_what_the_file_says() {
    for (what, act) in [
        (
            "interrupt.spurious = {}",
            Act::Messages {
                vector: None,
                count: 1,
                every: 1,
            },
        ),
        (
            "interrupt.storm = { messages = 9, distance = \"2 us\", vector = 0x52 }",
            Act::Messages {
                vector: Some(0x52),
                count: 9,
                every: 2_000,
            },
        ),
        ("interrupt.pending = {}", Act::Pend { vector: None }),
        ("engine.ignore-stop = {}", Act::IgnoreStop { ns: None }),
        (
            "engine.ignore-stop.for = \"1 us\"",
            Act::IgnoreStop { ns: Some(1_000) },
        ),
        ("engine.silent.for = \"1 us\"", Act::Silence { ns: 1_000 }),
        ("engine.burst.blocks = 4", Act::Burst { blocks: 4 }),
        ("bus = \"master-cleared\"", Act::BusMaster { on: false }),
        ("bus = \"master-set\"", Act::BusMaster { on: true }),
        ("bus = \"function-reset\"", Act::ResetFunction),
        ("bus = \"gone\"", Act::Remove),
        (
            "bus.bar-moved = { bar = 2, to = 0xe8000000 }",
            Act::MoveBar {
                bar: 2,
                to: 0xe800_0000,
            },
        ),
        ("machine = \"reset\"", Act::Power(PowerRequest::Reset)),
        ("machine = \"power-off\"", Act::Power(PowerRequest::Off)),
        ("machine.nmi = {}", Act::Nmi { processor: 0 }),
        ("machine.nmi.processor = 1", Act::Nmi { processor: 1 }),
        (
            "machine.unstoppable.processor = 1",
            Act::Unstoppable { processor: 1 },
        ),
        ("time.tsc-forward.by = \"1 ms\"", Act::ShiftTsc { by: 1_000_000 }),
        ("time.tsc-back.by = \"1 ms\"", Act::ShiftTsc { by: -1_000_000 }),
        (
            "time.late-timer.by = \"1 ms\"",
            Act::DelayTimers { by: 1_000_000 },
        ),
        (
            "time.slow-device = { by = \"1 us\", for = \"1 ms\" }",
            Act::SlowAccesses {
                by: 1_000,
                ns: 1_000_000,
            },
        ),
    ] {
        let text = all_there_is(&format!("when.at = \"jump\"\nwhat.{what}"));
        let planned = testing::plan(&text).injections.remove(0);
        assert_eq!(planned.injection.deed, Deed::Act(act), "{what}");
        assert!(planned.injection.acts_on_machine());
        let words = planned.words.strip_prefix("at the jump out of generation 0: ");
        assert!(
            words.is_some_and(|words| !words.contains(['{', '('])),
            "{}",
            planned.words
        );
    }
}

#[test]
fn changes_of_interrupts_are_what_the_file_says() {
    let of = WriteKind::Message;
    for (what, change) in [
        ("interrupt = \"lost\"", Change::Drop),
        ("interrupt.duplicate.after = \"1 us\"", Change::Duplicate(1_000)),
        ("interrupt.late.by = \"1 us\"", Change::Delay(1_000)),
        ("interrupt.vector.to = 0x52", Change::Vector(0x52)),
    ] {
        let text = all_there_is(&format!("when.msi = 3\nwhat.{what}\ncount = 2\nevery = 4"));
        let Injection {
            trigger,
            deed,
            repeat,
        } = testing::plan(&text).injections.remove(0).injection;
        assert_eq!(deed, Deed::Filter(Filter { of, change }), "{what}");
        assert_eq!((trigger.on, trigger.nth), (Occurrence::Write(of), 3));
        assert_eq!(repeat, Repeat { count: 2, every: 4 });
    }
}

#[test]
fn what_only_one_backend_can_do_is_told_by_the_plan() {
    let told = |what: &str| {
        let text = all_there_is(&format!("when.at = \"jump\"\nwhat.{what}"));
        testing::plan(&text).needs_soft()
    };
    assert_eq!(told("machine.nmi = {}"), None);
    let shift = told("time.tsc-back.by = \"1 ms\"").expect("a reason");
    assert!(
        shift.starts_with("injection 0: it shifts") && shift.ends_with("use --backend soft"),
        "{shift}"
    );
    let counted = text("when.instructions = 9\nwhat.dma = \"drop\"");
    assert!(
        testing::plan(&counted)
            .needs_soft()
            .is_some_and(|why| why.contains("counts instructions"))
    );
}

#[test]
fn an_injection_is_told_in_words() {
    let words = |inject: &str| planned(inject).words;
    assert_eq!(
        words("when = { phase = \"armed\", write = 2, after = \"1 us\" }\nwhat.dma = \"drop\"\ncount = 3"),
        "at device write 2 since armed of generation 0, 1 us later: a device write is dropped, up to 3 times"
    );
    assert_eq!(
        words("when.at = \"jump\"\nwhat.memory.flip.at = 4096"),
        "at the jump out of generation 0: bit 0 is flipped of the byte at address 0x1000"
    );
    let words = |what: &str| {
        let words = words(&format!("when.at = \"jump\"\n{what}"));
        let words = words.strip_prefix("at the jump out of generation 0: ");
        words.expect("the trigger comes first").to_owned()
    };
    for (what, told) in [
        (
            "what.memory.write = { at = { object = \"m\", page = 2, offset = 9 }, bytes = \"00ff\" }",
            "2 bytes 00ff are written at page 2 of object \"m\" at offset 9",
        ),
        (
            "what.dma.redirect.to = \"hole\"",
            "a device write is sent to a page in the hole below 4 GiB",
        ),
        (
            "what.dma.count.by = -2",
            "a device write is made with -2 added to the completion count",
        ),
        (
            "what.dma.torn = { after = \"3 ns\", at = 16 }",
            "a device write is made up to byte 16, and the rest 3 ns later",
        ),
    ] {
        assert_eq!(words(what), told);
    }
}

proptest! {
    #[test]
    fn no_text_panics(when in ".{0,60}", what in ".{0,60}", number in any::<i64>()) {
        let _ = parse("s.toml", &text(&format!("when = {when}\nwhat = {what}")));
        let _ = parse("s.toml", &text(&format!("when.write = {number}\nwhat.dma.count.by = {number}\nevery = {number}")));
        let _ = parse("s.toml", &text(&format!("when.at = \"jump\"\nwhat.memory.flip = {{ at = {number}, bit = {number} }}")));
    }
}

#[test]
fn a_symbol_is_waited_for_in_the_kernel_of_its_generation() {
    let trigger = |when: &str| {
        planned(&format!("when = {{ {when} }}\nwhat.dma = \"drop\""))
            .injection
            .trigger
    };
    let on = Occurrence::Execute(0xffff_ffff_8100_0100);
    for (when, since) in [
        ("symbol = \"clear_page\"", stamp(1, Phase::BootNew)),
        (
            "symbol = \"clear_page\", generation = 0",
            stamp(0, Phase::BootOld),
        ),
        (
            "symbol = \"clear_page\", phase = \"handover\"",
            stamp(0, Phase::Handover),
        ),
        (
            "symbol = \"clear_page\", at = \"entry\"",
            stamp(1, Phase::BootNew),
        ),
    ] {
        let trigger = trigger(when);
        assert_eq!((trigger.since, trigger.on, trigger.nth), (since, on, 1), "{when}");
    }
    for (when, what) in [
        ("symbol = \"a\", write = 1", "several of write"),
        ("symbol = \"a\", at = \"jump\"", "nothing more"),
        ("symbol = \"a\", within = 3", "nothing is counted"),
        ("phase = \"armed\", within = 0", "within = 0"),
        ("phase = \"armed\", within = 7", "nothing is counted"),
        (
            "phase = \"armed\", instructions = 1, within = \"1 us\"",
            "beside instructions",
        ),
    ] {
        let error = error(&format!("when = {{ {when} }}\nwhat.dma = \"drop\""));
        assert!(error.contains(what), "{when}: {error}");
    }
}

#[test]
fn the_seed_chooses_within_a_window() {
    let trigger = |when: &str, seed: u64| {
        let text = format!(
            "seed = {seed}\n{}",
            text(&format!("when = {{ {when} }}\nwhat.dma = \"drop\""))
        );
        testing::plan(&text).injections[0].injection.trigger
    };
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let Delay::Time(time) = trigger("phase = \"armed\", after = \"5 us\", within = \"3 us\"", seed).delay
        else {
            panic!()
        };
        assert!((5_000..8_000).contains(&time), "{time}");
        let nth = trigger("write = 10, within = 4", seed).nth;
        assert!((10..14).contains(&nth), "{nth}");
        let Delay::Instructions(count) =
            trigger("at = \"entry\", instructions = 100, within = 9", seed).delay
        else {
            panic!()
        };
        assert!((100..109).contains(&count), "{count}");
        seen.insert((time, nth, count));
    }
    assert!(seen.len() > 10, "{seen:?}");
    assert_eq!(
        trigger("write = 10, within = 4", 3),
        trigger("write = 10, within = 4", 3)
    );
}

#[test]
fn every_place_has_a_name_and_words() {
    for (name, class) in super::Class::ALL {
        assert_eq!(class.name(), name);
        let planned = planned(&format!("when.at = \"jump\"\nwhat.memory.flip.at = \"{name}\""));
        let Some(Ask::Flip { at, .. }) = planned.ask else {
            panic!()
        };
        assert_eq!(at.what, Thing::Class(class));
        assert!(planned.words.contains("a page "), "{}", planned.words);
    }
}

#[test]
fn changes_of_the_handover_are_what_the_file_says() {
    let asked = |what: &str| {
        let planned = planned(&format!("when.at = \"entry\"\n{what}"));
        assert_eq!(planned.injection.deed, Deed::AskWhenDue, "{what}");
        match planned.ask {
            Some(Ask::Blob(ask)) => ask,
            other => panic!("{what}: {other:?}"),
        }
    };
    let field = |change| BlobAsk::Field {
        path: "luo/a".into(),
        change,
    };
    let set = |value: &str| field(FieldChange::Set(value.into()));
    for (what, ask) in [
        ("what.blob = { field = \"luo/a\", set = 66 }", set("0x42")),
        (
            "what.blob = { field = \"luo/a\", set = \"one-more\" }",
            set("one-more"),
        ),
        (
            "what.blob = { field = \"luo/a\", set = \"text:b\" }",
            set("text:b"),
        ),
        (
            "what.blob = { field = \"luo/a\", flip = 63 }",
            field(FieldChange::Flip(63)),
        ),
        ("what.blob.node = \"missing\"", BlobAsk::Node(NodeFault::Missing)),
        ("what.blob.node = \"twice\"", BlobAsk::Node(NodeFault::Twice)),
    ] {
        assert_eq!(asked(what), ask, "{what}");
    }
    for (inject, said) in [
        (
            "when.at = \"entry\"\nwhat.blob = { field = \"luo/a\" }",
            "one of set and flip",
        ),
        (
            "when.at = \"entry\"\nwhat.blob = { field = \"luo/a\", set = 1, flip = 1 }",
            "one of set and flip",
        ),
        (
            "when.at = \"entry\"\nwhat.blob = { set = 1 }",
            "one of field and node",
        ),
        (
            "when.at = \"entry\"\nwhat.blob = { field = \"a\", node = \"twice\" }",
            "one of field and node",
        ),
        (
            "when.at = \"entry\"\nwhat.blob = { field = \"a\", set = \"a-bit\" }",
            "one-more",
        ),
        (
            "when.at = \"entry\"\nwhat.blob = { field = \"a\", set = -1 }",
            "negative",
        ),
        ("when.at = \"jump\"\nwhat.blob.node = \"twice\"", "entry"),
        (
            "when = { at = \"entry\", after = \"1 us\" }\nwhat.blob.node = \"twice\"",
            "entry",
        ),
    ] {
        let error = error(inject);
        assert!(error.contains(said), "{inject}: {error}");
    }
}
