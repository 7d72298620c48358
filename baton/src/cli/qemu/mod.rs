//! `baton qemu`: boots a kernel as QEMU would, so that test scripts for kernels run as they are. A link to baton whose
//! name begins with `qemu-system-` is the same.

mod options;

use super::boot::machine::{Booted, Guest};
use super::boot::status;
use super::boot::terminal::{Keys, RawTerminal, Screen, Terminal};
use super::outputs::Outputs;
use super::{BackendChoice, Exit, complain, open_backend, print};
use clap::Args;
use harness::boot::{Ended, Limits, drive};
use options::{Options, Parsed, Serial, parse};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use vmm::processors::Backend;
use vmm::soft::Soft;

/// How the name of a link begins that makes the program take QEMU's options.
const NAME: &str = "qemu-system-";

pub(super) const HELP: &str = "\
Options, as QEMU has them:
  -kernel FILE  -initrd FILE  -append TEXT  -m SIZE  -smp N  -seed N
  -serial stdio|mon:stdio|file:FILE|null|none  -nographic  -no-reboot
Taken, and without effect because the machine is so or has no such part:
  -machine pc|q35|microvm, -M  -cpu MODEL  -accel NAME  -enable-kvm  -display none  -vga none  -monitor none
  -parallel none  -net none  -nic none  -name TEXT  -nodefaults  -no-user-config
  With -accel kvm or -enable-kvm guest code is executed by KVM if this host's is sound, otherwise by softcpu.
Anything else is an error.

Exit status: 0 where QEMU exits with 0: the guest switched the machine off, or reset it with -no-reboot. Otherwise as \
`baton boot`, and 2 for an option that is not understood.";

#[derive(Debug, Args)]
pub(super) struct QemuArgs {
    /// Options of QEMU.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    pub options: Vec<OsString>,
}

/// The options if the program was called by the name of a QEMU.
pub(super) fn called_as_qemu(mut arguments: impl Iterator<Item = OsString>) -> Option<Vec<OsString>> {
    let program = arguments.next()?;
    let name = Path::new(&program).file_name()?.to_str()?;
    name.starts_with(NAME).then(|| arguments.collect())
}

/// Boots what the options say.
pub(super) fn qemu(arguments: &[OsString]) -> ExitCode {
    match try_qemu(arguments) {
        Ok(status) => ExitCode::from(status),
        Err(failed) => failed.into(),
    }
}

fn try_qemu(arguments: &[OsString]) -> Result<u8, Exit> {
    let usage = |error: String| {
        complain(format!("qemu: {error}"));
        Exit::Usage
    };
    let options = match parse(arguments).map_err(usage)? {
        Parsed::Machine(options) => *options,
        Parsed::Help => return print(HELP).map(|()| 0),
        Parsed::Version => {
            let version = concat!(
                "baton ",
                env!("CARGO_PKG_VERSION"),
                ", which takes options of QEMU"
            );
            return print(version).map(|()| 0);
        }
    };
    let booted = Booted::read(&guest(&options)).map_err(usage)?;
    let choice = if options.kvm {
        BackendChoice::Auto
    } else {
        BackendChoice::Soft
    };
    let backend = open_backend(choice, Soft::default(), None)?;
    let (screen, file, keys) = match &options.serial {
        Serial::Stdio => (Screen::Output, None, Keys::of_standard_input()),
        Serial::File(path) => (Screen::Nowhere, Some(path.as_path()), Keys::None),
        Serial::Nowhere => (Screen::Nowhere, None, Keys::None),
    };
    let written = Outputs {
        reports: file.into_iter().collect(),
        ..Outputs::default()
    };
    written.confine([])?;
    let mut terminal = Terminal::new(screen, file, keys).map_err(usage)?;
    let raw = (options.serial == Serial::Stdio).then(RawTerminal::enter);
    let ended = until_off(&booted, backend.as_ref(), &mut terminal, options.no_reboot);
    drop(raw);
    let failed = |error: String| {
        complain(error);
        Exit::Failed
    };
    let ended = ended.map_err(failed)?;
    terminal.finish().map_err(failed)?;
    eprintln!("baton: {ended}");
    Ok(if ended.reset { 0 } else { status(ended.end) })
}

/// Runs the machine, and after each reset again unless that ends it.
fn until_off(
    booted: &Booted,
    backend: &dyn Backend,
    terminal: &mut Terminal,
    no_reboot: bool,
) -> Result<Ended, String> {
    loop {
        let mut machine = booted.power_on(backend)?;
        let ended = drive(
            &mut machine,
            &Limits::default(),
            terminal,
            backend.is_repeatable(),
        );
        if !ended.reset || no_reboot {
            return Ok(ended);
        }
    }
}

fn guest(options: &Options) -> Guest {
    Guest {
        kernel: options.kernel.clone(),
        next_kernel: None,
        initramfs: options.initrd.clone(),
        shell: false,
        command_line: options.append.clone(),
        ram_bytes: options.ram_bytes,
        vcpus: options.vcpus,
        seed: options.seed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_knows_when_it_is_called_as_qemu() {
        let called = |words: &[&str]| called_as_qemu(words.iter().map(OsString::from));
        let options = called(&["/usr/bin/qemu-system-x86_64", "-m", "1G"]);
        assert_eq!(options, Some(vec!["-m".into(), "1G".into()]));
        assert_eq!(called(&["baton", "qemu-system-x86_64"]), None);
        assert_eq!(called(&["/opt/qemu-system-x86_64/baton", "run"]), None);
        assert_eq!(called(&[]), None);
    }
}
