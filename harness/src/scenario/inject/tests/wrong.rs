//! What is wrong in a file is told with its place.

use super::{all_there_is, error};
use crate::scenario::parse;
use crate::testing;

#[test]
fn what_is_wrong_with_a_deed_at_a_moment_is_told_with_its_place() {
    let mut wrong = Vec::new();
    for (what, place, words) in [
        ("interrupt = \"mislaid\"", "16:18", "`lost`"),
        ("interrupt.vector.to = 31", "16:1", "expected 32 to 255"),
        ("interrupt.spurious.vector = 256", "16:34", "256"),
        ("interrupt.late.from = \"1 us\"", "16:21", "available keys: by"),
        (
            "interrupt.storm = { messages = 0, distance = \"1 us\" }",
            "16:1",
            "expected 1 to 1024",
        ),
        (
            "interrupt.storm = { messages = 2, distance = \"0 us\" }",
            "16:1",
            "distance = 0",
        ),
        ("engine.silent = {}", "16:22", "missing field `for`"),
        ("engine.silent.for = \"0 us\"", "16:1", "changes nothing"),
        ("engine.ignore-stop.for = \"0 us\"", "16:1", "changes nothing"),
        ("engine.burst.blocks = 0", "16:1", "expected 1 to 4096"),
        ("bus = \"moved\"", "16:12", "`bar-moved`"),
        ("bus.bar-moved = { bar = 1, to = 0 }", "16:1", "expected 0 or 2"),
        (
            "bus.bar-moved = { bar = 0, to = 0xe8000010 }",
            "16:1",
            "a multiple of 4096",
        ),
        ("machine.nmi.processor = 2", "16:1", "expected 0 to 1"),
        ("machine.unstoppable.processor = 0", "16:1", "expected 1 to 1"),
        ("machine.unstoppable = {}", "16:28", "missing field `processor`"),
        ("time.tsc-back.by = \"0 s\"", "16:1", "more than 0"),
        ("time.tsc-forward.by = \"2000000 s\"", "16:1", "at most"),
        (
            "time.slow-device = { by = \"1 us\", for = \"0 s\" }",
            "16:1",
            "changes nothing",
        ),
    ] {
        let text = all_there_is(&format!("when.at = \"jump\"\nwhat.{what}"));
        let said = parse("s.toml", &text).expect_err(what).to_string();
        if !said.starts_with(&format!("s.toml:{place}: ")) || !said.contains(words) {
            wrong.push(format!("{what}: {said}"));
        }
    }
    assert_eq!(wrong, [] as [String; 0]);
    let of = all_there_is("when = { phase = \"armed\", of = \"block\" }\nwhat.interrupt = \"lost\"");
    let said = parse("s.toml", &of).expect_err("of").to_string();
    assert!(said.contains("nothing in it is about device writes"), "{said}");
    let without = error("when.at = \"jump\"\nwhat.interrupt.spurious = {}");
    assert!(without.contains("no dma.interrupts = true"), "{without}");
    let alone = error("when.at = \"jump\"\nwhat.machine.unstoppable.processor = 1");
    assert!(alone.contains("set vcpus"), "{alone}");
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let drop = "what.dma = \"drop\"";
    let flip = "what.memory.flip.at = 4096";
    for (inject, place, words) in [
        (format!("when = {{}}\n{drop}"), "12:8", "says nothing of when"),
        (
            format!("when = {{ write = 0 }}\n{drop}"),
            "12:8",
            "counted from 1",
        ),
        (
            format!("when = {{ write = 1, read = 1 }}\n{drop}"),
            "12:8",
            "expected one of them",
        ),
        (
            format!("when = {{ at = \"jump\", phase = \"armed\" }}\n{drop}"),
            "12:8",
            "at and phase",
        ),
        (
            format!("when = {{ phase = \"armed\", generation = 1 }}\n{drop}"),
            "12:8",
            "generation 1 has no phase armed",
        ),
        (
            format!("when = {{ phase = \"boot-new\", generation = 0 }}\n{drop}"),
            "12:8",
            "expected 1 to 1",
        ),
        (
            format!("when = {{ write = 1, generation = 0 }}\n{drop}"),
            "12:8",
            "without at or phase",
        ),
        (
            format!("when = {{ phase = \"later\" }}\n{drop}"),
            "12:18",
            "\"boot-new\"",
        ),
        (
            format!("when = {{ phase = \"armed\", after = \"1 ms\", instructions = 1 }}\n{drop}"),
            "12:8",
            "after and instructions",
        ),
        (
            format!("when = {{ phase = \"armed\", of = \"block\" }}\n{flip}"),
            "12:8",
            "nothing in it is about device writes",
        ),
        (
            format!("when.write = 1\n{drop}\nwhy = 1"),
            "14:1",
            "unknown field `why`",
        ),
        ("when.write = 1\nwhat.dma = \"explode\"".into(), "13:12", "`drop`"),
        (
            "when.write = 1\nwhat.dma.delay.from = \"1 ms\"".into(),
            "13:16",
            "available keys: by",
        ),
        (
            "when.write = 1\nwhat.dma.redirect.to = \"nowhere\"".into(),
            "13:24",
            "\"hole\"",
        ),
        (
            "when.write = 1\nwhat.dma.redirect.to.object = \"other\"".into(),
            "13:1",
            "no [[memfd]] is named \"other\"",
        ),
        (
            "when.write = 1\nwhat.dma.redirect.to = { object = \"m\", page = 18 }".into(),
            "13:1",
            "has 18",
        ),
        (
            "when.write = 1\nwhat.dma.redirect.to = { object = \"m\", offset = 4096 }".into(),
            "13:1",
            "less than 4096",
        ),
        (
            "when.write = 1\nwhat.dma.redirect.to = { page = 1 }".into(),
            "13:24",
            "one of object and place",
        ),
        (
            "when.write = 1\nwhat.dma.count.by = 0".into(),
            "13:1",
            "changes nothing",
        ),
        (
            "when = { write = 1, of = \"block\" }\nwhat.dma.count.by = 1".into(),
            "12:8",
            "completion counts alone",
        ),
        (
            "when = { write = 1, of = \"any\" }\nwhat.dma.content.block = 1".into(),
            "12:8",
            "blocks alone",
        ),
        (
            "when.write = 1\nwhat.memory.flip = { at = 1, bit = 8 }".into(),
            "13:1",
            "expected 0 to 7",
        ),
        (
            "when.write = 1\nwhat.memory.write = { at = 1, bytes = \"0\" }".into(),
            "13:39",
            "two hexadecimal digits",
        ),
        (
            format!("when.write = 1\n{drop}\ncount = 0"),
            "14:9",
            "expected 1 to",
        ),
        (
            format!("when.write = 1\n{drop}\nevery = 0"),
            "14:9",
            "expected more",
        ),
        (
            format!("when.write = 1\n{drop}\nevery = \"1 ms\""),
            "14:9",
            "expected a number",
        ),
        (
            format!("when.phase = \"armed\"\n{flip}\nevery = 2"),
            "14:9",
            "expected a time",
        ),
        (
            format!("when.phase = \"armed\"\n{flip}\ncount = 2"),
            "14:9",
            "the time between two",
        ),
    ] {
        let said = error(&inject);
        assert!(
            said.starts_with(&format!("s.toml:{place}: ")) && said.contains(words),
            "{inject}\n{said}"
        );
    }
}

#[test]
fn without_a_device_nothing_waits_for_one() {
    let without = |inject: &str| format!("{}[[inject]]\n{inject}\n", testing::SCENARIO);
    let parse = |inject: &str| parse("s.toml", &without(inject));
    assert!(parse("when.at = \"jump\"\nwhat.memory.flip.at = 4096").is_ok());
    for inject in [
        "when.at = \"jump\"\nwhat.dma = \"drop\"",
        "when.write = 1\nwhat.memory.flip.at = 4096",
        "when.at = \"jump\"\nwhat.engine.burst.blocks = 1",
        "when.at = \"jump\"\nwhat.bus = \"gone\"",
        "when.at = \"jump\"\nwhat.time.slow-device = { by = \"1 us\", for = \"1 us\" }",
    ] {
        let said = parse(inject).unwrap_err().to_string();
        assert!(said.contains("has no [dma]"), "{said}");
    }
}
