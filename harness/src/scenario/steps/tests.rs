use super::*;
use crate::scenario::parse;
use guest_agent::protocol::Part;

const HEAD: &str = "name = \"s\"\n[[memfd]]\nname = \"m\"\nsize = \"64 KiB\"\nsession = \"vm\"\ntoken = 1\n";
/// The beginning of most lists.
const PRESERVED: &[&str] = &[
    "do = \"create\"\nobject = \"m\"",
    "do = \"create\"\nsession = \"vm\"",
    "do = \"preserve\"\nobject = \"m\"",
];

fn text(steps: &[&str]) -> String {
    let steps = steps.iter().map(|step| format!("[[step]]\n{step}\n"));
    format!("{HEAD}{}", steps.collect::<String>())
}

fn given(steps: &[&str]) -> Vec<Given> {
    let scenario = parse("s.toml", &text(steps)).unwrap_or_else(|error| panic!("{error}"));
    scenario.given(scenario.seed)
}

fn error(steps: &[&str]) -> String {
    parse("s.toml", &text(steps))
        .expect_err("must be refused")
        .to_string()
}

fn preserved_and(more: &[&'static str]) -> Vec<&'static str> {
    [PRESERVED, more].concat()
}

#[test]
fn a_list_is_completed_with_the_kexecs_that_it_leaves_out() {
    let all = given(&preserved_and(&[
        "do = \"retrieve\"\nsession = \"vm\"\ngeneration = 1",
        "do = \"retrieve\"\nobject = \"m\"",
        "do = \"finish\"\nsession = \"vm\"",
    ]));
    let deeds: Vec<_> = all.iter().map(|given| (given.number, given.generation)).collect();
    assert_eq!(
        deeds,
        [(1, 0), (2, 0), (3, 0), (0, 0), (0, 0), (4, 1), (5, 1), (6, 1)]
    );
    assert_eq!((&all[3].deed, &all[4].deed), (&Deed::Load, &Deed::Kexec));
    // A list that ends before the kexec goes on to it; and after one of its own the next generation begins.
    assert_eq!(given(PRESERVED).last().unwrap().deed, Deed::Kexec);
    let own = given(&preserved_and(&[
        "do = \"load\"",
        "do = \"kexec\"",
        "do = \"retrieve\"\nsession = \"vm\"",
    ]));
    let deeds: Vec<_> = own.iter().map(|given| (given.number, given.generation)).collect();
    assert_eq!(deeds, [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 1)]);
    assert!(parse("s.toml", HEAD).unwrap().given(1).is_empty());
}

#[test]
fn each_write_has_a_pattern_of_its_own_and_the_first_the_memfd_s() {
    let write = "do = \"write\"\nobject = \"m\"\nat = \"8 KiB\"\nsize = \"24 B\"";
    let all = given(&["do = \"create\"\nobject = \"m\"", write, write]);
    let seeds: Vec<u64> = all
        .iter()
        .filter_map(|given| match given.deed {
            Deed::Change {
                change: Change::Write { seed, part, .. },
                ..
            } => {
                assert_eq!(
                    part,
                    Part {
                        offset: 8192,
                        bytes: 24
                    }
                );
                Some(seed)
            }
            _ => None,
        })
        .collect();
    assert_eq!(seeds[0], crate::seed::seed_for(1, "memfd/m"));
    assert_ne!(seeds[0], seeds[1]);
}

#[test]
fn a_memfd_that_is_sealed_later_is_made_for_it() {
    let flags = |steps: &[&str]| match given(steps)[0].deed {
        Deed::CreateMemfd { flags, .. } => flags,
        _ => panic!("it begins with the memfd"),
    };
    let create = "do = \"create\"\nobject = \"m\"";
    assert_eq!(flags(&[create]), 0);
    let seal = "do = \"seal\"\nobject = \"m\"\nseals = [\"write\", \"grow\"]";
    assert_eq!(flags(&[create, seal]), 2);
    assert_eq!(
        given(&[create, seal])[1].deed,
        Deed::Change {
            object: 1,
            change: Change::Seal(0b1100)
        }
    );
}

#[test]
fn a_list_that_cannot_be_done_is_refused_with_its_place() {
    let create = PRESERVED[0];
    for (steps, said) in [
        (vec!["do = \"jump\""], "unknown variant `jump`"),
        (vec!["do = \"create\""], "found no object or session"),
        (vec!["do = \"finish\"\nobject = \"m\""], "found no session"),
        (
            vec!["do = \"write\"\nobject = \"x\""],
            "no [[memfd]] is named \"x\"",
        ),
        (
            vec!["do = \"write\"\nobject = \"m\""],
            "does not hold memfd \"m\"",
        ),
        (vec![create, create], "made already"),
        (
            vec![create, "do = \"write\"\nobject = \"m\"\ntoken = 1"],
            "found token",
        ),
        (
            vec![create, "do = \"write\"\nobject = \"m\"\nat = \"4 B\""],
            "multiples of 8",
        ),
        (
            vec![create, "do = \"write\"\nobject = \"m\"\nsize = \"65 KiB\""],
            "multiples of 8",
        ),
        (
            vec![create, "do = \"write\"\nobject = \"m\"\nsize = \"0 B\""],
            "multiples of 8",
        ),
        (vec![create, "do = \"seal\"\nobject = \"m\""], "found no seals"),
        (
            vec![create, "do = \"seal\"\nobject = \"m\"\nseals = []"],
            "found no seal,",
        ),
        (
            vec![create, "do = \"write\"\nobject = \"m\"\nerrno = \"EBUSSY\""],
            "EBUSSY",
        ),
        (vec![create, PRESERVED[2]], "is not created and open"),
        (vec!["do = \"wait\""], "found no time"),
        (vec!["do = \"kexec\""], "no kernel is loaded"),
        (vec!["do = \"load\"\ngeneration = 1"], "the last one"),
        (vec!["do = \"load\"\ngeneration = 2"], "expected 0 to 1"),
        (
            vec![
                "do = \"wait\"\ntime = \"1 ms\"\ngeneration = 1",
                "do = \"load\"\ngeneration = 0",
            ],
            "expected 1 to 1",
        ),
        (
            vec!["do = \"retrieve\"\nsession = \"vm\"\ngeneration = 1"],
            "was handed over",
        ),
        (
            preserved_and(&["do = \"unpreserve\"\nsession = \"vm\"", PRESERVED[2]]),
            "is not created and open",
        ),
        (
            preserved_and(&["do = \"retrieve\"\nobject = \"m\"\ngeneration = 1"]),
            "is not retrieved and open",
        ),
        (
            vec![
                create,
                "do = \"seal\"\nobject = \"m\"\nseals = [\"write\"]",
                "do = \"write\"\nobject = \"m\"\nby = \"store\"",
            ],
            "forbid the writable mapping",
        ),
    ] {
        let message = error(&steps);
        assert!(message.contains(said), "{said}: {message}");
        assert!(message.starts_with("s.toml:"), "{message}");
    }
}

#[test]
fn what_has_to_fail_may_be_what_cannot_succeed() {
    for steps in [
        vec!["do = \"retrieve\"\nsession = \"vm\"\nerrno = \"ENOENT\""],
        vec!["do = \"kexec\"\nerrno = \"EINVAL\""],
        preserved_and(&["do = \"create\"\nsession = \"vm\"\nerrno = \"EEXIST\""]),
        preserved_and(&["do = \"finish\"\nsession = \"vm\"\nside = \"outgoing\"\nerrno = \"EINVAL\""]),
    ] {
        given(&steps);
    }
}

#[test]
fn what_belongs_to_the_life_cycle_is_refused_beside_steps() {
    let sized = format!("{}[run]\nworkload = \"1 MiB\"\n", text(PRESERVED));
    let message = parse("s.toml", &sized).unwrap_err().to_string();
    assert!(message.contains("a workload with a size"), "{message}");
    for key in ["end = \"left\"", "hops = 1"] {
        let text = text(PRESERVED).replace("token = 1\n", &format!("token = 1\n{key}\n"));
        let message = parse("s.toml", &text).unwrap_err().to_string();
        assert!(message.contains("beside steps"), "{message}");
    }
}

#[test]
fn a_loop_is_a_step_that_leaves_things_as_they_are() {
    let looped = "do = \"write\"\nobject = \"m\"\nsize = \"8 KiB\"\nloop = true";
    let beside = "do = \"punch-hole\"\nobject = \"m\"\nat = \"8 KiB\"";
    given(&preserved_and(&[looped, beside]));
    let all = given(&preserved_and(&[
        looped,
        "do = \"create\"\nsession = \"other\"\nloop = true",
        "do = \"create\"\nsession = \"other\"",
    ]));
    let flags: Vec<bool> = all.iter().map(|given| given.looped).collect();
    assert_eq!(flags, [false, false, false, true, true, false, false, false]);
    for (step, said) in [
        ("do = \"punch-hole\"\nobject = \"m\"", "depend on chance"),
        ("do = \"load\"\nloop = true", "found loop"),
        (
            "do = \"preserve\"\nobject = \"m\"\nloop = true",
            "each round creates and closes",
        ),
        (
            "do = \"read\"\nobject = \"m\"\nloop = true\nerrno = \"EIO\"",
            "found errno",
        ),
        (
            "do = \"allocate\"\nobject = \"m\"\nloop = true\nerrno = \"EIO\"",
            "begins with a success",
        ),
    ] {
        let message = error(&preserved_and(&[looped, step]));
        assert!(message.contains(said), "{said}: {message}");
    }
}

#[test]
fn hugetlb_needs_steps_and_whole_huge_pages() {
    let of = |size: &str, steps: &str| {
        let text = HEAD.replace("64 KiB", size);
        parse("s.toml", &format!("{text}hugetlb = true\n{steps}"))
    };
    let create = "[[step]]\ndo = \"create\"\nobject = \"m\"\n";
    let scenario = of("4 MiB", create).unwrap();
    let flags = 4 | 21 << 26;
    assert_eq!(scenario.given(1)[0].deed, Deed::CreateMemfd { object: 1, flags });
    for (size, steps, said) in [
        ("4 MiB", "", "without steps"),
        ("1 MiB", create, "a multiple of 2 MiB"),
    ] {
        let message = of(size, steps).unwrap_err().to_string();
        assert!(message.contains(said), "{message}");
    }
}

/// The engine takes 16 KiB of the memfd: list, descriptors, count, and four small buffers.
const DMA: &str = "[dma]\nrate = \"1 MB/s\"\nring = 4\nbuffer = \"64 B\"\n";

#[test]
fn the_ring_s_memfd_goes_over_every_kexec_and_is_the_engine_s_alone() {
    let retrieved: &[&str] = &[
        "do = \"retrieve\"\nsession = \"vm\"\ngeneration = 1",
        "do = \"retrieve\"\nobject = \"m\"",
    ];
    let with = |steps: &[&str], dma: &str| parse("s.toml", &format!("{}{dma}", text(steps)));
    let refused = |steps: &[&str], dma: &str, said: &str| {
        let message = with(steps, dma).expect_err("must be refused").to_string();
        assert!(message.contains(said), "{said}: {message}");
    };
    let good = [PRESERVED, retrieved].concat();
    with(&good, DMA).unwrap();
    refused(PRESERVED, DMA, "such a step in generation 1");
    refused(&PRESERVED[..2], DMA, "no step preserves it");
    let late = ["do = \"create\"\nsession = \"vm\"\ngeneration = 1"];
    refused(
        &[&PRESERVED[..1], &late[..]].concat(),
        DMA,
        "no step preserves it",
    );
    let between = |step: &'static str| [PRESERVED, &[step], retrieved].concat();
    for (step, said) in [
        ("do = \"close\"\nobject = \"m\"", "as long as the engine runs"),
        (
            "do = \"write\"\nobject = \"m\"\nat = \"12 KiB\"\nsize = \"8 KiB\"",
            "depend on chance",
        ),
        ("do = \"punch-hole\"\nobject = \"m\"", "depend on chance"),
        ("do = \"collapse\"\nobject = \"m\"", "depend on chance"),
    ] {
        refused(&between(step), DMA, said);
    }
    // What must fail changes nothing, what is behind the buffers is nobody else's, and before the start all is allowed.
    for step in [
        "do = \"punch-hole\"\nobject = \"m\"\nerrno = \"EPERM\"",
        "do = \"write\"\nobject = \"m\"\nat = \"16 KiB\"",
        "do = \"read\"\nobject = \"m\"",
    ] {
        with(&between(step), DMA).unwrap();
    }
    let early = |step: &'static str| [&PRESERVED[..2], &[step], &PRESERVED[2..], retrieved].concat();
    with(&early("do = \"write\"\nobject = \"m\""), DMA).unwrap();
    let seal = "do = \"seal\"\nobject = \"m\"\nseals = [\"write\"]";
    refused(&early(seal), DMA, "writable mapping");
    let looped = "do = \"write\"\nobject = \"m\"\nloop = true";
    refused(&early(looped), DMA, "depend on chance");
    // Two kexecs need two preservations.
    let twice = text(&good).replacen("[[memfd]]", "kexecs = 2\n[[memfd]]", 1);
    let message = parse("s.toml", &format!("{twice}{DMA}")).unwrap_err().to_string();
    assert!(message.contains("preserves it in generation 1"), "{message}");
    let closed = [&good[..], &["do = \"close\"\nobject = \"m\""]].concat();
    with(&closed, DMA).unwrap();
}

#[test]
fn after_a_handover_the_steps_begin_in_generation_1_with_all_memfds() {
    const HANDOVER: &str = "[handover]\nabi = \"kho-v4\"\n";
    let with = |steps: &[&str], more: &str| parse("s.toml", &format!("{}{HANDOVER}{more}", text(steps)));
    let steps = [
        "do = \"retrieve\"\nsession = \"vm\"",
        "do = \"retrieve\"\nobject = \"m\"",
        "do = \"write\"\nobject = \"m\"",
    ];
    with(&steps[..2], DMA).unwrap();
    let scenario = with(&steps, "").unwrap();
    let all = scenario.given(1);
    assert!(all.iter().all(|given| given.generation == 1), "{all:?}");
    // The memfd has the first pattern already.
    let Deed::Change {
        change: Change::Write { seed, .. },
        ..
    } = all[2].deed
    else {
        panic!("{:?}", all[2]);
    };
    assert_ne!(seed, crate::seed::seed_for(1, "memfd/m"));
    // The engine runs from the beginning.
    let message = with(&steps, DMA).unwrap_err().to_string();
    assert!(message.contains("depend on chance"), "{message}");
    for (steps, said) in [
        (vec!["do = \"create\"\nobject = \"m\""], "made already"),
        (
            vec!["do = \"retrieve\"\nsession = \"vm\"\ngeneration = 0"],
            "expected 1 to 1",
        ),
    ] {
        let message = with(&steps, "").unwrap_err().to_string();
        assert!(message.contains(said), "{said}: {message}");
    }
}

#[test]
fn what_is_to_be_kept_open_has_to_be_closed_by_a_step() {
    let with = |steps: &[&str]| parse("s.toml", &format!("{}[fault]\nkeep = \"m\"\n", text(steps)));
    with(&preserved_and(&["do = \"close\"\nobject = \"m\""])).unwrap();
    let message = with(PRESERVED).unwrap_err().to_string();
    assert!(message.contains("no step closes memfd \"m\""), "{message}");
}

#[test]
fn a_jump_back_leaves_no_next_kernel_loaded() {
    let load = "do = \"load\"";
    given(&[load, "do = \"jump-back\"", load, "do = \"kexec\""]);
    let message = error(&[load, "do = \"jump-back\"", "do = \"kexec\""]);
    assert!(message.contains("no kernel is loaded here"), "{message}");
    // The loads that a list leaves out come where they are needed.
    let all = given(&[load, "do = \"jump-back\""]);
    let deeds: Vec<&Deed> = all.iter().map(|given| &given.deed).collect();
    assert_eq!(deeds, [&Deed::Load, &Deed::JumpBack, &Deed::Load, &Deed::Kexec]);
}

#[test]
fn a_finalization_that_is_taken_back_leaves_the_next_kernel_loaded() {
    let all = given(&["do = \"load\"", "do = \"abort-finalize\"", "do = \"kexec\""]);
    let deeds: Vec<&Deed> = all.iter().map(|given| &given.deed).collect();
    assert_eq!(deeds, [&Deed::Load, &Deed::AbortFinalize, &Deed::Kexec]);
    let message = error(&["do = \"abort-finalize\"\nobject = \"m\""]);
    assert!(message.contains("found object"), "{message}");
}
