//! Options of QEMU. What is not understood is an error: an option that is ignored would make a test pass for another
//! machine than the one that it asks for.

use std::ffi::OsString;
use std::path::PathBuf;
use vmm::machine::MAX_VCPUS;

const MIB: u64 = 1 << 20;
/// QEMU's own default.
const DEFAULT_RAM: u64 = 128 * MIB;

/// What the options ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A machine.
    Machine(Box<Options>),
    /// `-help`.
    Help,
    /// `-version`.
    Version,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    /// Path of the bzImage.
    pub kernel: String,
    /// Path of the initramfs, if there is one.
    pub initrd: Option<PathBuf>,
    /// The whole command line.
    pub append: String,
    /// RAM in bytes.
    pub ram_bytes: u64,
    /// Processors.
    pub vcpus: u8,
    /// Seed of the guest's random numbers.
    pub seed: u64,
    /// Whether a reset ends the machine.
    pub no_reboot: bool,
    /// Where the serial port leads.
    pub serial: Serial,
    /// Whether KVM is asked for, be it with others.
    pub kvm: bool,
}

/// Where the serial port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Serial {
    /// To standard input and output.
    Stdio,
    /// To a file.
    File(PathBuf),
    /// Nowhere.
    Nowhere,
}

/// What has been read so far.
#[derive(Default)]
struct Reading {
    kernel: Option<String>,
    initrd: Option<PathBuf>,
    append: String,
    ram_bytes: Option<u64>,
    vcpus: Option<u8>,
    seed: Option<u64>,
    no_reboot: bool,
    serial: Option<Serial>,
    no_display: bool,
    accelerators: Vec<String>,
}

/// Reads the options.
pub(super) fn parse(arguments: &[OsString]) -> Result<Parsed, String> {
    let text = |argument: &OsString| {
        let text = argument.to_str().map(str::to_owned);
        text.ok_or_else(|| format!("{}: not UTF-8", argument.display()))
    };
    let arguments: Vec<String> = arguments.iter().map(text).collect::<Result<_, _>>()?;
    let mut reading = Reading::default();
    let mut rest = arguments.iter().map(String::as_str);
    while let Some(argument) = rest.next() {
        let Some(name) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            return Err(format!(
                "\"{argument}\" is a disk image, and the machine has no disks"
            ));
        };
        match name {
            "h" | "help" => return Ok(Parsed::Help),
            "version" => return Ok(Parsed::Version),
            _ => reading.option(name, &mut rest)?,
        }
    }
    reading
        .machine()
        .map(|options| Parsed::Machine(Box::new(options)))
}

impl Reading {
    fn option<'a>(&mut self, name: &str, rest: &mut impl Iterator<Item = &'a str>) -> Result<(), String> {
        let mut value = || rest.next().ok_or_else(|| format!("-{name} needs a value"));
        let none = |value: &str| match value {
            "none" | "null" => Ok(()),
            other => Err(format!(
                "-{name} {other}: the machine has no such part; expected none"
            )),
        };
        match name {
            "kernel" => self.kernel = Some(value()?.to_owned()),
            "initrd" => self.initrd = Some(value()?.into()),
            "append" => value()?.clone_into(&mut self.append),
            "m" => self.ram_bytes = Some(memory(value()?)?),
            "smp" => self.vcpus = Some(processors(value()?)?),
            "seed" => {
                let text = value()?;
                let seed = text
                    .parse()
                    .map_err(|_| format!("-seed {text}: expected a number"))?;
                self.seed = Some(seed);
            }
            "serial" => self.serial(value()?)?,
            "nographic" => self.no_display = true,
            "no-reboot" => self.no_reboot = true,
            "action" => match value()? {
                "reboot=shutdown" => self.no_reboot = true,
                "reboot=reset" => self.no_reboot = false,
                other => {
                    return Err(format!(
                        "-action {other}: expected reboot=shutdown or reboot=reset"
                    ));
                }
            },
            "display" => {
                none(value()?)?;
                self.no_display = true;
            }
            "vga" | "monitor" | "parallel" | "net" | "nic" => none(value()?)?,
            "machine" | "M" => self.machine_type(value()?)?,
            "cpu" => model(value()?)?,
            "accel" => {
                let accelerator = value()?.split(',').next().unwrap_or_default();
                self.accelerators.push(accelerator.to_owned());
            }
            "enable-kvm" => self.accelerators.push("kvm".into()),
            "name" => {
                value()?;
            }
            "nodefaults" | "no-user-config" => {}
            _ => {
                return Err(format!(
                    "option -{name} is not understood; `baton qemu -help` lists those that are"
                ));
            }
        }
        Ok(())
    }

    fn serial(&mut self, value: &str) -> Result<(), String> {
        let serial = match value {
            "stdio" | "mon:stdio" => Serial::Stdio,
            "none" | "null" => Serial::Nowhere,
            _ => match value.strip_prefix("file:") {
                Some(path) if !path.is_empty() && !path.contains(',') => Serial::File(path.into()),
                _ => {
                    return Err(format!(
                        "-serial {value}: expected stdio, mon:stdio, file:FILE, null or none"
                    ));
                }
            },
        };
        match (&self.serial, &serial) {
            (None, _) => self.serial = Some(serial),
            (Some(_), Serial::Nowhere) => {}
            (Some(_), _) => return Err(format!("-serial {value}: the machine has one serial port")),
        }
        Ok(())
    }

    fn machine_type(&mut self, value: &str) -> Result<(), String> {
        let mut parts = value.split(',').peekable();
        if let Some(kind) = parts.next_if(|part| !part.contains('=') || part.starts_with("type=")) {
            let kind = kind.strip_prefix("type=").unwrap_or(kind);
            let known = ["pc", "q35", "microvm"].contains(&kind) || kind.starts_with("pc-");
            if !known {
                return Err(format!("-machine {kind}: expected pc, q35 or microvm"));
            }
        }
        for part in parts {
            match part.split_once('=') {
                Some(("accel", names)) => self.accelerators.extend(names.split(':').map(str::to_owned)),
                // Parts that the machine does not have.
                Some(("usb" | "graphics" | "smm" | "vmport" | "hpet" | "pit" | "pic", "off")) => {}
                _ => return Err(format!("-machine: {part} is not understood")),
            }
        }
        Ok(())
    }

    fn machine(self) -> Result<Options, String> {
        let serial = match self.serial {
            Some(serial) => serial,
            None if self.no_display => Serial::Stdio,
            None => {
                return Err(
                    "the machine has no display: give -nographic, or -serial and -display none".into(),
                );
            }
        };
        let known = ["kvm", "tcg"];
        let mut accelerators = self.accelerators.iter().map(String::as_str);
        if !self.accelerators.is_empty() && !accelerators.clone().any(|name| known.contains(&name)) {
            return Err(format!(
                "-accel {}: expected kvm or tcg among them",
                self.accelerators.join(", ")
            ));
        }
        Ok(Options {
            kernel: self
                .kernel
                .ok_or("-kernel is missing: the machine boots nothing else")?,
            initrd: self.initrd,
            append: self.append,
            ram_bytes: self.ram_bytes.unwrap_or(DEFAULT_RAM),
            vcpus: self.vcpus.unwrap_or(1),
            seed: self.seed.unwrap_or(1),
            no_reboot: self.no_reboot,
            serial,
            kvm: accelerators.any(|name| name == "kvm"),
        })
    }
}

/// `SIZE` or `size=SIZE`, in MiB unless it has a suffix.
fn memory(value: &str) -> Result<u64, String> {
    let wrong = || format!("-m {value}: expected a size such as 512 (MiB), 512M or 1G");
    let text = value.strip_prefix("size=").unwrap_or(value);
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "M" | "m" => MIB,
        "B" | "b" => 1,
        "K" | "k" => 1 << 10,
        "G" | "g" => 1 << 30,
        "T" | "t" => 1 << 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

/// `N` or `cpus=N`.
fn processors(value: &str) -> Result<u8, String> {
    let number = value.strip_prefix("cpus=").unwrap_or(value).parse();
    let number = number.ok().filter(|number| (1..=MAX_VCPUS).contains(number));
    number.ok_or_else(|| {
        format!("-smp {value}: expected a number of processors from 1 to {MAX_VCPUS}, without a topology")
    })
}

/// A model of processor. baton has one of its own, so the name does not matter, but features do.
fn model(value: &str) -> Result<(), String> {
    match value.split_once(',') {
        None => Ok(()),
        Some((_, features)) => Err(format!(
            "-cpu {value}: the processor's features cannot be chosen ({features})"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(line: &str) -> Result<Parsed, String> {
        let words: Vec<OsString> = line.split_ascii_whitespace().map(OsString::from).collect();
        parse(&words)
    }

    fn machine(line: &str) -> Options {
        match read(line) {
            Ok(Parsed::Machine(options)) => *options,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// As upstream's tools/testing/selftests/kho/vmtest.sh has it (7.3).
    const VMTEST: &str = "-m 1G -smp 2 -no-reboot -nographic -nodefaults -accel kvm -accel hvf -accel tcg \
                          -serial file:/tmp/s -append kho=on -kernel /b/bzImage -initrd /tmp/i";

    #[test]
    fn the_options_of_upstream_s_test_are_understood() {
        let options = machine(VMTEST);
        let expected = Options {
            kernel: "/b/bzImage".into(),
            initrd: Some("/tmp/i".into()),
            append: "kho=on".into(),
            ram_bytes: 1 << 30,
            vcpus: 2,
            seed: 1,
            no_reboot: true,
            serial: Serial::File("/tmp/s".into()),
            kvm: true,
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn defaults_and_other_spellings() {
        let options = machine("--kernel k -nographic");
        assert_eq!(
            (options.ram_bytes, options.vcpus, options.kvm),
            (128 * MIB, 1, false)
        );
        assert_eq!((options.serial, options.no_reboot), (Serial::Stdio, false));
        let options =
            machine("-kernel k -display none -serial null -M q35,accel=kvm:tcg,usb=off -cpu host -m 512");
        assert_eq!(
            (options.serial, options.kvm, options.ram_bytes),
            (Serial::Nowhere, true, 512 * MIB)
        );
        assert_eq!(
            machine("-kernel k -serial mon:stdio -m size=2048K").ram_bytes,
            2 * MIB
        );
        assert!(!machine("-kernel k -nographic -accel tcg,thread=multi").kvm);
        assert_eq!(read("-version"), Ok(Parsed::Version));
        assert_eq!(read("-kernel k --help -x"), Ok(Parsed::Help));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (further, said) in [
            ("-drive file=x", "-drive"),
            ("-device virtio-rng-pci", "-device"),
            ("disk.img", "disk.img"),
            ("-smp 2,cores=2", "cores=2"),
            ("-smp 9", "1 to 8"),
            ("-smp 0", "1 to 8"),
            ("-m 1X", "-m 1X"),
            ("-m 99999999999G", "expected a size"),
            ("-m", "needs a value"),
            ("-serial tcp:localhost:1", "tcp:localhost:1"),
            ("-serial stdio -serial file:x", "one serial port"),
            ("-monitor stdio", "expected none"),
            ("-machine virt", "virt"),
            ("-machine q35,acpi=off", "acpi=off"),
            ("-cpu host,-x2apic", "-x2apic"),
            ("-accel hvf", "hvf"),
            ("-action panic=none", "panic=none"),
            ("-seed x", "-seed x"),
        ] {
            let error = read(&format!("-kernel k -nographic {further}")).unwrap_err();
            assert!(error.contains(said), "{further}: {error}");
        }
        assert!(read("-nographic").unwrap_err().contains("-kernel"));
        assert!(read("-kernel k").unwrap_err().contains("-nographic"));
    }

    proptest! {
        #[test]
        fn any_options_are_survived(words in prop::collection::vec("-?[a-z0-9=,:ä]{0,12}", 0..8)) {
            let _ = parse(&words.iter().map(OsString::from).collect::<Vec<_>>());
        }
    }
}
