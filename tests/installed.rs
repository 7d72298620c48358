//! The program away from its source tree, and what its command line takes for kernels and scenarios.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tests::{built, program, ready, skipped, small};

/// A copy of the program in a folder of its own.
struct Installed {
    folder: tempfile::TempDir,
}

impl Installed {
    /// `None`, having said so, if `test` cannot run here: the build has to have put the agent into the program.
    fn new(test: &str) -> Option<Self> {
        if !ready(test) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(program(), folder.path().join("baton")).unwrap();
        let installed = Self { folder };
        let doctor = loop {
            match installed.command(&["doctor"]).output() {
                // A process that another test is just starting still holds the copy open for writing.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::yield_now()
                }
                output => break text(&output.unwrap()),
            }
        };
        if !doctor.contains(", in the program") {
            assert!(
                std::env::var_os("CI").is_none(),
                "{test} needs a program with the agent in it:\n{doctor}"
            );
            skipped(&format!(
                "{test}: needs a program with the agent in it (run `make build`)"
            ));
            return None;
        }
        Some(installed)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where the program runs: nothing is beside it, and no variable points elsewhere.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path().join("baton"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_remove("BATON_AGENT");
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a scenario on soft, and gives exit status and all output.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.output(&[&["run", "--backend", "soft"], arguments].concat());
        (output.status.code().unwrap_or(-1), text(&output))
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn the_program_alone_runs_a_scenario_that_it_brings() {
    let Some(installed) = Installed::new("a program away from its source tree") else {
        return;
    };
    let (status, said) = installed.run(&["receiver-kho-off"]);
    assert_eq!(status, 0, "{said}");
    assert!(
        said.contains("reproduce: baton run receiver-kho-off --seed 1"),
        "{said}"
    );
    let (status, said) = installed.run(&["no-such-scenario"]);
    assert_eq!(status, 2, "{said}");
    assert!(
        said.contains("neither a file nor a scenario that baton brings"),
        "{said}"
    );
}

#[test]
fn kernels_are_listed_and_found_and_what_is_missing_is_named() {
    let Some(installed) = Installed::new("kernels away from the source tree") else {
        return;
    };
    let list = text(&installed.output(&["kernel", "list"]));
    assert!(
        list.lines()
            .any(|line| line.starts_with("7.3.4 ") && line.contains("/kernels/7.3.4-")),
        "{list}"
    );
    let folder = built("7.3.4").unwrap();
    for name in ["7.3.4", folder.to_str().unwrap()] {
        let output = installed.output(&["kernel", "path", name]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert_eq!(
            text(&output).trim_end(),
            folder.join("bzImage").to_str().unwrap(),
            "{name}"
        );
    }
    let series = text(&installed.output(&["kernel", "path", "7.3"]));
    assert!(series.contains("/kernels/7.3."), "{series}");
    // An empty cache, and another one in which nothing may be written.
    for cache in ["empty", "baton/cache"] {
        let output = installed
            .command(&["kernel", "path", "7.3"])
            .env("BATON_CACHE", installed.path().join(cache))
            .output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert!(
            text(&output).contains("kernel 7.3 is not built"),
            "{}",
            text(&output)
        );
    }
    let output = installed.output(&["kernel", "build", "no-such-version"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(
        text(&output).contains("unknown kernel version \"no-such-version\""),
        "{}",
        text(&output)
    );
    let vmlinux = folder.join("vmlinux");
    let output = installed.output(&["boot", "--kernel", vmlinux.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output).contains("give arch/x86/boot/bzImage of the same build"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_message_blames_what_is_at_fault() {
    let Some(installed) = Installed::new("messages") else {
        return;
    };
    let image = built("7.3.4").unwrap().join("bzImage");
    installed.write("s.toml", &small(""));
    installed.write("k/named.toml", &small("[kernel]\nold = \"no/bzImage\"\n"));
    installed.write("empty/x", "");
    let image = image.to_str().unwrap();
    for (arguments, said) in [
        (
            &[image][..],
            "bzImage: a kernel, not a scenario; give it with --kernel",
        ),
        (
            &["s.toml", "--kernel", "no/bzImage"],
            "error: kernel no/bzImage: cannot be read",
        ),
        (
            &["s.toml", "--kernel", "s.toml"],
            "error: kernel s.toml: not a usable bzImage",
        ),
        (
            &["k/named.toml"],
            "k/named.toml:14:7: kernel k/no/bzImage: cannot be read",
        ),
        (&["no.toml"], "no.toml: cannot be read"),
        (&["empty"], "empty: a folder without scenario files"),
        (
            &["s.toml", "--ram", "100M"],
            "with --ram 100 MiB: found ram of 100 MiB, expected 128 MiB to 64 GiB",
        ),
        (
            &["s.toml", "--vcpus", "9"],
            "with --vcpus 9: found 9 vcpus, expected 1 to 8",
        ),
        (&["s.toml", "--ram", "1 gig"], "a whole number"),
    ] {
        let (status, output) = installed.run(arguments);
        assert_eq!(status, 2, "{arguments:?}: {output}");
        assert!(
            output.contains(said),
            "{arguments:?}: {said:?} is not in:\n{output}"
        );
    }
}

#[test]
fn the_command_line_overrides_the_machine_of_a_scenario_and_a_path_in_it_is_relative_to_it() {
    let Some(installed) = Installed::new("overridden scenarios") else {
        return;
    };
    let kernel = small("[kernel]\nold = \"../boot/bzImage\"\nappend = \"loglevel=4\"\n");
    installed.write("scenarios/a.toml", &kernel);
    std::fs::create_dir(installed.path().join("boot")).unwrap();
    let image = built("7.3.4").unwrap().join("bzImage");
    std::os::unix::fs::symlink(&image, installed.path().join("boot/bzImage")).unwrap();
    let json = installed.path().join("r.json");
    let options = [
        "scenarios",
        "--ram",
        "384M",
        "--vcpus",
        "2",
        "--append",
        "loglevel=3",
        "--json",
        json.to_str().unwrap(),
    ];
    let (status, said) = installed.run(&options);
    assert_eq!(status, 0, "{said}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let scenario = &report["scenarios"][0];
    assert_eq!(scenario["kernels"][1]["processors"], 2, "{scenario}");
    let line = scenario["kernels"][0]["command_line"].as_str().unwrap();
    assert!(line.ends_with("loglevel=4 loglevel=3"), "{line}");
    assert!(
        scenario["kernels"][0]["symbol_offset"].is_u64(),
        "symbols are beside the real image"
    );
    let again = scenario["reproduce"].as_str().unwrap();
    assert!(
        again.ends_with("--ram '384 MiB' --vcpus 2 --append loglevel=3"),
        "{again}"
    );
    assert!(said.contains("384 MiB of RAM"), "{said}");
}

#[test]
fn make_install_brings_program_pages_and_completions() {
    const TEST: &str = "make install";
    let Some(installed) = Installed::new(TEST) else {
        return;
    };
    let folder = installed.path().join("share");
    let output = installed.output(&["man", folder.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    for page in ["baton.1", "baton-run.1", "baton-boot.1", "baton-kernel.1"] {
        assert!(folder.join(page).is_file(), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = installed.output(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(text(&output).contains("next-kernel"), "{shell}");
    }
    assert_eq!(installed.output(&["completions", "dos"]).status.code(), Some(2));
    assert_eq!(installed.output(&["man", "/dev/null/x"]).status.code(), Some(3));
}
