//! `baton matrix` finds by itself which pairs of kernels keep which kinds of object, which refuse, lose and panic.

use serde_json::Value;
use std::collections::BTreeMap;
use tests::{Finished, NIGHTLY, baton, built_for, ready, scenarios};

/// Kernels of `all_pairs_are_as_the_records_allow`, with spaces between them, beside those that are always there.
const KERNELS: &str = "BATON_MATRIX";

/// One kernel, an object of each kind that it has, and `further` keys.
fn scenario(further: &str) -> String {
    let text = std::fs::read_to_string(scenarios().join("matrix/all-kinds.toml")).unwrap();
    format!("{text}\n{further}")
}

fn matrix(text: &str, kernels: &str) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pairs.toml");
    std::fs::write(&file, text).unwrap();
    let html = folder.path().join("pairs.html");
    let arguments = [
        "matrix",
        file.to_str().unwrap(),
        "--kernels",
        kernels,
        "--html",
        html.to_str().unwrap(),
    ];
    let run = baton(arguments);
    if run.status == 0 {
        let page = std::fs::read_to_string(html).unwrap();
        assert!(page.contains("What becomes of memfd"), "{page}");
    }
    run
}

/// Fate and reason by kind, first kernel and new kernel.
fn fates(run: &Finished) -> BTreeMap<(String, String, String), (String, String)> {
    assert_eq!(run.status, 0, "{}", run.text);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut all = BTreeMap::new();
    for pair in run.report["pairs"].as_array().unwrap() {
        for kind in pair["kinds"].as_array().unwrap() {
            let key = (text(&kind["kind"]), text(&pair["old"]), text(&pair["new"]));
            all.insert(key, (text(&kind["fate"]), text(&kind["why"])));
        }
    }
    all
}

/// What becomes of each kind with 7.3.4 on both sides, with `further` keys in the scenario.
fn of_one(further: &str) -> BTreeMap<String, (String, String)> {
    let run = matrix(&scenario(further), "7.3.4");
    let fates = fates(&run).into_iter();
    fates.map(|((kind, _, _), fate)| (kind, fate)).collect()
}

#[test]
fn one_kernel_keeps_what_it_preserves_and_every_way_to_lose_it_is_told_apart() {
    if !ready("matrix of one kernel") {
        return;
    }
    let bent = |field: &str, value: &str| {
        format!("[[inject]]\nwhen.at = \"jump\"\nwhat.blob = {{ field = \"{field}\", set = \"{value}\" }}\n")
    };
    for (further, memfd, reserve_mem, said) in [
        (String::new(), "kept", "kept", ""),
        // The whole handover, LUO's record, and one region's record are of versions that the kernel does not know.
        (
            bent("fdt/compatible", "text:kho-v9"),
            "refused",
            "refused",
            "incompatible",
        ),
        (bent("luo/compatible", "text:luo-v9"), "panic", "panic", "panic"),
        (
            bent("memblock/compatible", "text:memblock-v9"),
            "kept",
            "lost-and-said",
            "incompatible",
        ),
    ] {
        let found = of_one(&further);
        let fate = |kind: &str| found[kind].0.as_str();
        assert_eq!(
            (fate("memfd"), fate("reserve_mem")),
            (memfd, reserve_mem),
            "{further}{found:?}"
        );
        assert!(found["reserve_mem"].1.contains(said), "{further}{found:?}");
        // Whatever is bent, the first kernel has no test.
        assert_eq!(fate("test_kho"), "refused", "{further}{found:?}");
    }
}

#[test]
fn a_region_that_is_elsewhere_without_a_word_is_lost_silently() {
    if !ready("matrix with a lost region") {
        return;
    }
    // The new kernel believes the record, and takes other memory for the region.
    let moved = "[[inject]]\nwhen.at = \"jump\"\nwhat.blob = { field = \"memblock/trace/start\", set = \"next-page\" }\n";
    let found = of_one(moved);
    assert_eq!(found["reserve_mem"].0, "lost-silently", "{found:?}");
    assert!(found["reserve_mem"].1.contains("it was at"), "{found:?}");
    assert_eq!(found["memfd"].0, "kept", "{found:?}");
}

#[test]
fn a_pair_is_the_same_run_whichever_pairs_are_beside_it() {
    if !ready("matrix of two kernels") {
        return;
    }
    if built_for("matrix of two kernels", "7.3.4+kaslr", &["CI"]).is_none() {
        return;
    }
    let hash = |run: &Finished, new: &str| {
        let pairs = run.report["pairs"].as_array().unwrap().iter();
        let mut ours = pairs.filter(|pair| pair["old"] == "7.3.4" && pair["new"] == new);
        ours.next().unwrap()["state_hash"].as_str().unwrap().to_owned()
    };
    let alone = matrix(&scenario(""), "7.3.4");
    let both = matrix(&scenario(""), "7.3.4+kaslr,7.3.4");
    for ((kind, old, new), (fate, why)) in fates(&both) {
        let expected = if kind == "test_kho" { "refused" } else { "kept" };
        assert_eq!(fate, expected, "{kind} {old} -> {new}: {why}");
    }
    assert_eq!(hash(&alone, "7.3.4"), hash(&both, "7.3.4"));
    assert_ne!(
        hash(&both, "7.3.4"),
        hash(&both, "7.3.4+kaslr"),
        "other kernels are other runs"
    );
}

#[test]
fn what_cannot_be_a_matrix_is_refused() {
    if !ready("wrong matrices") {
        return;
    }
    let refused = |text: &str, kernels: &str, said: &str| {
        let run = matrix(text, kernels);
        assert_eq!(run.status, 2, "{}", run.text);
        assert!(run.text.contains(said), "{said}: {}", run.text);
    };
    refused(&scenario(""), "7.3.4,7.3.4", "each once");
    refused(&scenario(""), "0.0.1", "\"0.0.1\"");
    refused("name = \"none\"\n", "7.3.4", "no object");
    let handed =
        "name = \"h\"\n[handover]\nabi = \"kho-v4\"\n[[memfd]]\nname = \"m\"\nsize = \"4 KiB\"\ntoken = 1\n";
    refused(handed, "7.3.4", "no first kernel");
}

/// What the records of a version are (kernel headers: include/linux/kho/abi, before 7.1 the files named beside).
struct Records {
    version: &'static str,
    /// Compatible string of the root.
    root: &'static str,
    /// Bytes of a bitmap of the map (kernel/kexec_handover.c); 0 is a radix tree.
    bitmap: u32,
    /// LUO's record, its sessions, and a memfd.
    luo: Option<&'static str>,
    /// Where lib/test_kho.c has its list: in the FDT, or behind a vmalloc descriptor.
    test: &'static str,
}

const RECORDS: [Records; 6] = [
    Records {
        version: "6.17.8",
        root: "kho-v1",
        bitmap: 512,
        luo: None,
        test: "fdt",
    },
    Records {
        version: "6.18.15",
        root: "kho-v1",
        bitmap: 4096,
        luo: None,
        test: "vmalloc",
    },
    Records {
        version: "6.19.11",
        root: "kho-v1",
        bitmap: 4096,
        luo: Some("luo-v1 memfd-v1"),
        test: "vmalloc",
    },
    Records {
        version: "7.1.13",
        root: "kho-v3",
        bitmap: 0,
        luo: Some("luo-v1 memfd-v2"),
        test: "vmalloc",
    },
    Records {
        version: "7.2.12",
        root: "kho-v4",
        bitmap: 0,
        luo: Some("luo-v5 memfd-v2"),
        test: "vmalloc",
    },
    Records {
        version: "7.3.4",
        root: "kho-v4",
        bitmap: 0,
        luo: Some("luo-v5 memfd-v2"),
        test: "vmalloc",
    },
];

fn records(kernel: &str) -> &'static Records {
    let version = kernel.split('+').next().unwrap();
    let found = RECORDS.iter().find(|records| records.version == version);
    found.unwrap_or_else(|| panic!("no facts about {kernel}"))
}

/// What the records of two versions allow.
fn expected(kind: &str, old: &str, new: &str) -> &'static str {
    let tested = |kernel: &str| kernel.ends_with("+testkho");
    let (has_test, takes_test) = (tested(old), tested(new));
    let (old, new) = (records(old), records(new));
    let handed = match kind {
        "memfd" => old.luo.is_some(),
        "test_kho" => has_test,
        _ => true,
    };
    if !handed || old.root != new.root {
        return "refused";
    }
    if old.bitmap != new.bitmap {
        return of_other_bitmaps(kind, old, new);
    }
    match kind {
        // Opening /dev/liveupdate fails.
        "memfd" if new.luo.is_none() => "lost-and-said",
        "memfd" if old.luo != new.luo => "lost-and-said",
        "test_kho" if !takes_test || old.test != new.test => "lost-silently",
        _ => "kept",
    }
}

/// Two sizes of bitmaps under one version string, which neither kernel can tell.
fn of_other_bitmaps(kind: &str, old: &Records, new: &Records) -> &'static str {
    match kind {
        // It reads 4096 bytes where 512 were written: what follows them becomes preserved memory.
        _ if old.bitmap < new.bitmap => "panic",
        // It reads the first 512 bytes of each 4096: the rest of the memory is free.
        "memfd" => "lost-and-said",
        _ => "lost-silently",
    }
}

#[test]
fn all_pairs_are_as_the_records_allow() {
    let named = std::env::var(KERNELS)
        .ok()
        .filter(|kernels| !kernels.trim().is_empty());
    let Some(named) = named else {
        if std::env::var_os(NIGHTLY).is_some() {
            panic!("{KERNELS} names no kernels");
        }
        // `make matrix` names them. The tests above have the kernels that every test has.
        return;
    };
    assert!(ready("all pairs of kernels"), "baton is not built");
    let kernels: Vec<&str> = named.split_whitespace().collect();
    let run = matrix(&scenario(""), &kernels.join(","));
    println!("{}", run.text);
    let (mut wrong, mut right) = (Vec::new(), BTreeMap::new());
    for ((kind, old, new), (fate, why)) in fates(&run) {
        let expected = expected(&kind, &old, &new);
        if fate == expected {
            *right.entry(kind).or_insert(0) += 1;
        } else {
            wrong.push(format!(
                "{kind} {old} -> {new}: {fate}, expected {expected}: {why}"
            ));
        }
    }
    println!("right: {right:?} of {} each", kernels.len() * kernels.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(right.values().sum::<usize>(), 3 * kernels.len() * kernels.len());
}
