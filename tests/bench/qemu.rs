//! The cycle on QEMU: the agent does on its own what baton makes it do.

use crate::child;
use crate::samples::Sample;
use harness::plan::Plan;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How the agent's lines begin.
const SAYS: &str = "baton standalone: ";
/// QEMU's arguments besides memory and guest: no devices but one serial port, and exit at an unexpected reset.
const MACHINE: &str = "-accel tcg -machine q35 -smp 1 -nodefaults -no-user-config -display none -no-reboot";

/// One QEMU.
#[derive(Debug)]
pub struct Qemu {
    program: PathBuf,
    version: String,
}

impl Qemu {
    /// Asks the program for its version.
    pub fn find(program: &Path) -> Result<Self, String> {
        Ok(Self {
            program: program.to_owned(),
            version: version(program)?,
        })
    }

    /// Its own first line about itself.
    pub fn version(&self) -> &str {
        &self.version
    }
}

/// A guest that can be run again and again.
#[derive(Debug)]
pub struct Guest {
    program: PathBuf,
    arguments: Vec<OsString>,
    console: PathBuf,
    pages: u64,
}

impl Guest {
    /// Writes the initramfs into `work` and puts the command line together.
    pub fn prepare(qemu: &Qemu, plan: &Plan, agent: &[u8], work: &Path) -> Result<Self, String> {
        let initramfs = work.join("initramfs");
        let bytes = harness::initramfs::build(agent, Some(&plan.kernel(1).image));
        std::fs::write(&initramfs, bytes).map_err(|error| format!("{}: {error}", initramfs.display()))?;
        let memfd_bytes: u64 = plan.objects.iter().map(|object| object.bytes).sum();
        let console = work.join("console");
        let mut arguments: Vec<OsString> = MACHINE.split(' ').map(OsString::from).collect();
        arguments.extend(["-m".into(), format!("{}M", plan.ram_bytes >> 20).into()]);
        arguments.extend([
            "-serial".into(),
            [OsString::from("file:"), console.clone().into()]
                .into_iter()
                .collect(),
        ]);
        arguments.extend(["-kernel".into(), plan.old_kernel.path.clone().into()]);
        arguments.extend(["-initrd".into(), initramfs.into()]);
        arguments.extend(["-append".into(), command_line(plan, memfd_bytes).into()]);
        let pages = memfd_bytes / harness::evidence::PAGE;
        Ok(Self {
            program: qemu.program.clone(),
            arguments,
            console,
            pages,
        })
    }

    /// Runs it once, from boot to power-off.
    pub fn run(&self) -> Result<Sample, String> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let sample = child::run(&mut command);
        let console =
            std::fs::read(&self.console).map_err(|error| format!("{}: {error}", self.console.display()))?;
        let console = String::from_utf8_lossy(&console);
        let said = |error: String| format!("{error}; the guest's last lines:\n{}", tail(&console));
        let sample = sample.map_err(said)?;
        let compare_share = compare_share(&console, self.pages).map_err(said)?;
        Ok(Sample {
            compare_share: Some(compare_share),
            ..sample
        })
    }
}

/// The kernel command line: baton's, the parameters for the agent's standalone mode, and those that skip
/// calibrations, which take real time on QEMU and none on baton.
fn command_line(plan: &Plan, memfd_bytes: u64) -> String {
    let mut line = format!(
        "{} baton.standalone baton.memfd={memfd_bytes} nolapic_timer",
        plan.old_command_line
    );
    if let Some(khz) = crate::host::processor_khz() {
        line.push_str(&format!(" tsc_early_khz={khz}"));
    }
    line
}

fn version(program: &Path) -> Result<String, String> {
    let name = program.display();
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| {
        format!(
            "{name}: {error} (`images/setup bench` installs Debian's, `images/kvm-host svm` fetches a newer one)"
        )
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().filter(|_| output.status.success());
    line.map(str::to_owned)
        .ok_or_else(|| format!("{name} --version: {}", output.status))
}

/// Whether the guest got its memory back, and the share of its time since reset that comparing digests took.
fn compare_share(console: &str, pages: u64) -> Result<f64, String> {
    let wanted = format!("{SAYS}ok, {pages} pages intact; ");
    let steps = console.lines().find_map(|line| Some(line.split_once(&wanted)?.1));
    let steps =
        steps.ok_or_else(|| format!("the guest did not say \"{}\"", wanted.trim_end_matches("; ")))?;
    let ticks = |name: &str| {
        let value = steps
            .split("; ")
            .find_map(|step| step.trim().strip_prefix(name)?.trim().parse::<f64>().ok());
        value.ok_or_else(|| format!("the guest did not say how long \"{name}\" is: {steps}"))
    };
    Ok(ticks("compare ")? / ticks("since reset ")?)
}

fn tail(console: &str) -> String {
    ::tests::tail(console, 8, "  | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    1.0] x\r\n[    1.1] baton standalone: 8192 bytes preserved, kexec follows; preserve 3; since reset 100\r\n\
        [    1.2] baton standalone: ok, 2 pages intact; digest 30; compare 50; finish-session 2; since reset 200\r\n";

    #[test]
    fn the_second_kernels_line_is_read() {
        assert_eq!(compare_share(CONSOLE, 2), Ok(0.25));
    }

    #[test]
    fn a_guest_that_did_not_do_it_is_an_error() {
        assert!(
            compare_share(CONSOLE, 3)
                .unwrap_err()
                .contains("ok, 3 pages intact")
        );
        let failed = CONSOLE.replace("ok, 2 pages intact", "failed: compare");
        assert!(compare_share(&failed, 2).is_err());
        assert!(
            compare_share(&CONSOLE.replace("compare 50", "compare x"), 2)
                .unwrap_err()
                .contains("compare")
        );
        assert_eq!(tail("a\nb\n"), "  | a\n  | b\n");
    }
}
