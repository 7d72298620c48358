//! Boots a kernel with its console on this terminal: `boot KERNEL [INITRAMFS] [--cmdline LINE] [--memory MIB]`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use vmm::backend::Soft;
use vmm::devices::dma::{BusMaster, DmaConfig};
use vmm::kvm::Kvm;
use vmm::machine::{Event, Machine, MachineConfig};
use vmm::processors::Backend;

/// Boots a kernel with its console on this terminal.
#[derive(Parser)]
struct Options {
    /// A bzImage.
    kernel: PathBuf,
    /// A cpio archive.
    initramfs: Option<PathBuf>,
    /// Kernel command line.
    #[arg(
        long,
        default_value = "console=ttyS0 earlyprintk=ttyS0 no_timer_check lpj=5000000 mitigations=off"
    )]
    cmdline: String,
    /// Guest RAM in MiB.
    #[arg(long, default_value_t = 256)]
    memory: u64,
    /// On KVM instead of softcpu.
    #[arg(long)]
    kvm: bool,
    /// Seconds of guest time without output after which to give up.
    #[arg(long, default_value_t = 5)]
    patience: u64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let kvm = options.kvm.then(Kvm::open).transpose()?;
    if let Some(kvm) = &kvm {
        eprintln!("{:?}, {:?}", kvm.measured(), kvm.workarounds());
    }
    let more = kvm.as_ref().map_or("", |kvm| kvm.workarounds().command_line());
    let backend: &dyn Backend = kvm.as_ref().map_or(&Soft, |kvm| kvm);
    let config = MachineConfig {
        ram_bytes: options.memory << 20,
        kernel: std::fs::read(&options.kernel)?,
        initramfs: options
            .initramfs
            .map(std::fs::read)
            .transpose()?
            .unwrap_or_default(),
        command_line: format!("{} {more}", options.cmdline),
        seed: 1,
        dma: DmaConfig {
            rate: 100_000_000,
            seed: 1,
            bus_master: BusMaster::Retained,
        },
        progress_limit_ns: options.patience * 1_000_000_000,
        vcpus: 1,
        ledger_entries: vmm::ledger::DEFAULT_CAPACITY,
    };
    let mut machine = Machine::new(&config, backend)?;
    machine.set_console_sink(Box::new(|bytes| {
        // Nothing sensible is left to do when the terminal is gone.
        let _ = std::io::stdout()
            .write_all(bytes)
            .and_then(|()| std::io::stdout().flush());
    }));
    let start = Instant::now();
    let event = loop {
        match machine.run()? {
            Event::Message(message) => {
                eprintln!(
                    "message of {} bytes from the agent: answered with nothing",
                    message.len()
                );
                machine.reply(&[])?;
            }
            event if event.is_final() => break event,
            event => eprintln!("{event}"),
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    let retired = machine.moment().retired.unwrap_or_default();
    eprintln!("\n{event}");
    eprintln!(
        "{:.1} million instructions in {seconds:.2} s, {:.1} MIPS",
        retired as f64 / 1e6,
        retired as f64 / 1e6 / seconds
    );
    eprintln!("{:x?}", machine.registers());
    Ok(())
}
