//! `baton boot`: boots a kernel with its serial console on this terminal.

use super::{BootArgs, Exit, backend_of, complain};
use harness::kernel::KernelImage;
use harness::plan::COMMAND_LINE;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{IsTerminal, Read, Write};
use std::sync::mpsc::{Receiver, channel};
use vmm::devices::dma::DmaConfig;
use vmm::machine::{Event, Machine, MachineConfig};

/// Guest time between two polls of the keyboard and the console, in nanoseconds.
const TURN_NS: u64 = 5_000_000;
/// Ctrl-A, which begins a command to baton itself; the only command is `x`, which ends the machine.
const ESCAPE: u8 = 1;

/// Boots a kernel with its console on this terminal.
pub(super) fn boot(args: &BootArgs) -> Exit {
    let kernel = match KernelImage::resolve(&args.kernel) {
        Ok(kernel) => kernel,
        Err(error) => {
            complain(error);
            return Exit::Usage;
        }
    };
    let backend = match backend_of(args.execution.backend, &args.execution) {
        Ok(backend) => backend,
        Err(failed) => return failed,
    };
    let result = config(args, &kernel, backend.command_line()).and_then(|config| {
        let machine = Machine::new(&config, backend.as_ref());
        machine.map_err(|error| harness::conductor::chain(&error))
    });
    let mut machine = match result {
        Ok(machine) => machine,
        Err(error) => {
            complain(error);
            return Exit::Failed;
        }
    };
    eprintln!(
        "baton: {} from {}; Ctrl-A x ends it",
        kernel.release,
        kernel.path.display()
    );
    let raw = RawTerminal::enter();
    let end = drive(&mut machine);
    drop(raw);
    eprintln!("\nbaton: {}", end.unwrap_or_else(|error| error));
    Exit::Met
}

fn config(args: &BootArgs, kernel: &KernelImage, needed: &str) -> Result<MachineConfig, String> {
    let initramfs = match &args.initramfs {
        Some(path) => std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?,
        None => {
            let agent = harness::agent::load().map_err(|error| error.to_string())?;
            harness::initramfs::build(&agent, Some(&kernel.image))
        }
    };
    Ok(MachineConfig {
        ram_bytes: args.ram.0,
        kernel: kernel.image.as_ref().clone(),
        initramfs,
        command_line: [COMMAND_LINE, needed, &args.append]
            .join(" ")
            .trim_end()
            .to_owned(),
        seed: 1,
        dma: DmaConfig::default(),
        progress_limit_ns: u64::MAX,
        vcpus: 1,
        ledger_entries: vmm::ledger::DEFAULT_CAPACITY,
        injections: Vec::new(),
        handover: None,
    })
}

/// Runs the machine until it ends or the user types Ctrl-A x. Both `Ok` and `Err` say why it ended.
fn drive(machine: &mut Machine) -> Result<String, String> {
    let mut shown = 0;
    let keys = keyboard();
    let mut escaped = false;
    loop {
        while let Ok(key) = keys.try_recv() {
            let was_escaped = std::mem::replace(&mut escaped, false);
            match (was_escaped, key) {
                (true, b'x') => return Ok("ended from the keyboard".into()),
                (false, ESCAPE) => escaped = true,
                _ => {
                    machine.type_in(&[key]);
                }
            }
        }
        let limit = machine.moment().time.saturating_add(TURN_NS);
        let event = machine
            .run_until(limit)
            .map_err(|error| harness::conductor::chain(&error))?;
        let console = machine.console();
        // An error means that the terminal is closed, so that it cannot be reported there either.
        let _ = std::io::stdout()
            .write_all(&console.text_since(shown))
            .and_then(|()| std::io::stdout().flush());
        shown = console.total();
        match event {
            None => {}
            // The agent has reported and waits for a request; an empty reply asks nothing of it.
            Some(Event::Message(_)) => machine.reply(&[]).map_err(|error| error.to_string())?,
            Some(event) if event.is_final() => return Ok(event.to_string()),
            Some(_) => {}
        }
    }
}

/// Bytes from standard input, read by a thread that ends with the input.
fn keyboard() -> Receiver<u8> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for byte in std::io::stdin().lock().bytes().map_while(Result::ok) {
            if sender.send(byte).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Keeps the terminal in raw mode; dropping it restores the former settings.
struct RawTerminal(Termios);

impl RawTerminal {
    /// `None` if standard input is not a terminal or its settings cannot be changed.
    fn enter() -> Option<Self> {
        let input = std::io::stdin();
        if !input.is_terminal() {
            return None;
        }
        let before = tcgetattr(&input).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&input, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Restoring fails only if the terminal is closed; there is then nothing to restore.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
