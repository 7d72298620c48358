//! Steps that jump into an image that returns at once (KEXEC_PRESERVE_CONTEXT): the same kernel goes on, in the same
//! generation, and nothing is handed over by it.

use tests::{Finished, NIGHTLY, built_for, ready, run_text, scenarios};

/// The kernels that can, each with the variable whose presence says that it must be there.
const KERNELS: [(&str, &str); 2] = [("7.3.4+jump", "CI"), ("6.19.11+jump", NIGHTLY)];

fn text_of(name: &str) -> String {
    let file = scenarios().join(format!("jump/{name}.toml"));
    std::fs::read_to_string(file).expect("the scenario")
}

/// Those of the kernels that are built. Says of the others that `test` goes without them.
fn kernels(test: &str) -> Vec<&'static str> {
    if !ready(test) {
        return Vec::new();
    }
    let is_there =
        |(kernel, needed): (&'static str, &str)| built_for(test, kernel, &[needed]).map(|_| kernel);
    KERNELS.into_iter().filter_map(is_there).collect()
}

/// How many jumps into a new kernel the report has.
fn jumps(finished: &Finished) -> usize {
    let phases = finished.scenario()["phases"].as_array().expect("phases").iter();
    phases.filter(|phase| phase["name"] == "jump").count()
}

#[test]
fn the_same_kernel_goes_on_with_all_that_it_had() {
    for kernel in kernels("jumps that come back") {
        for vcpus in ["1", "2", "4"] {
            let run = || run_text(&text_of("back"), &["--kernel", kernel, "--vcpus", vcpus]);
            let finished = run();
            assert_eq!(finished.status, 0, "{kernel}: {}", finished.text);
            assert_eq!(jumps(&finished), 1, "{kernel}: {}", finished.text);
            assert_eq!(finished.scenario()["outcome"]["generation"], 1);
            if vcpus == "2" {
                let hash = &finished.scenario()["state_hash"];
                assert_eq!(hash, &run().scenario()["state_hash"], "{kernel}");
            }
        }
        let without = run_text(&text_of("without-luo"), &["--kernel", kernel]);
        assert_eq!(without.status, 0, "{kernel}: {}", without.text);
    }
}

#[test]
fn each_jump_stops_the_other_processors_and_starts_them_anew() {
    for kernel in kernels("processors over a jump that comes back") {
        let arguments = [
            "--kernel",
            kernel,
            "--vcpus",
            "2",
            "--append",
            "loglevel=8",
            "--console",
        ];
        let text = text_of("back");
        let steps = text.matches("do = \"jump-back\"").count();
        let count = |finished: &Finished, line: &str| finished.text.matches(line).count();
        let finished = run_text(&text, &arguments);
        assert_eq!(
            count(&finished, "CPU 1 is now offline"),
            steps,
            "{}",
            finished.text
        );
        assert_eq!(count(&finished, "CPU1 is up"), steps, "{}", finished.text);
        // The negative control: the same run with a wait in place of each jump.
        let waits = text.replace("do = \"jump-back\"", "do = \"wait\"\ntime = \"1 ms\"");
        let waits = waits.replace("do = \"kexec\"\nerrno = \"EINVAL\"\n", "do = \"kexec\"\n");
        let finished = run_text(&waits, &arguments);
        assert_eq!(finished.status, 0, "{}", finished.text);
        assert_eq!(count(&finished, "CPU1 is up"), 0, "{}", finished.text);
    }
}

#[test]
fn a_kernel_that_cannot_jump_back_says_so_and_goes_on() {
    if !ready("jumps back without the kernel's support") {
        return;
    }
    let plain = run_text(&text_of("without-luo"), &["--kernel", "7.3.4"]);
    assert_eq!(plain.status, 1, "{}", plain.text);
    assert_eq!(plain.scenario()["outcome"]["kind"], "completed", "{}", plain.text);
    assert_eq!(plain.findings("steps-answered").len(), 4, "{}", plain.text);
    let named = "ENOSYS from kexec_load(KEXEC_PRESERVE_CONTEXT), which needs CONFIG_KEXEC_JUMP";
    assert!(plain.text.contains(named), "{}", plain.text);
    // A scenario may say that it has to be so, and then a kernel that can is the one that is told of.
    let refused =
        text_of("without-luo").replace("do = \"jump-back\"", "do = \"jump-back\"\nerrno = \"ENOSYS\"");
    let finished = run_text(&refused, &["--kernel", "7.3.4"]);
    assert_eq!(finished.status, 0, "{}", finished.text);
    for kernel in kernels("jumps back that must fail") {
        let finished = run_text(&refused, &["--kernel", kernel]);
        assert_eq!(finished.status, 1, "{}", finished.text);
        assert_eq!(
            finished.findings("steps-answered")[0]["actual"],
            "success",
            "{}",
            finished.text
        );
    }
}
