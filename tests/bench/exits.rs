//! Exits: a guest of a few instructions writes a port in a loop, and each write is an exit.
//!
//! The same loop with a no-op in place of the port write measures the loop itself, which matters if KVM emulates
//! guest kernels.

use crate::samples::Spread;
use ::tests::image::bzimage;
use serde::Serialize;
use std::time::Instant;
use vmm::devices::dma::DmaConfig;
use vmm::devices::power::SLEEP_CONTROL;
use vmm::machine::{Event, Machine, MachineConfig};
use vmm::processors::Backend;

/// `out 0x80, al`: the delay port, which ignores writes.
const PORT_WRITE: [u8; 2] = [0xe6, 0x80];
/// `xchg ax, ax`, as long as the port write.
const NO_OP: [u8; 2] = [0x66, 0x90];
/// Value of the sleep control register for power off.
const S5: u8 = 0x34;
/// Limit of guest time for a loop, in nanoseconds; far more than needed.
const PATIENCE: u64 = 3_600_000_000_000;

/// Port writes on one backend.
#[derive(Debug, Serialize)]
pub struct Exits {
    /// Name of the backend.
    pub backend: &'static str,
    /// Port writes in one run.
    pub count: u32,
    /// Port writes per second of wall time, including the loop.
    pub per_second: Option<Spread>,
    /// Nanoseconds per port write, without the loop.
    pub ns_each: Option<Spread>,
}

/// Runs the loop of `count` port writes `runs` times, alternating with the loop of no-ops.
pub fn measure(backend: &dyn Backend, count: u32, runs: u32) -> Result<Exits, String> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // The first run of each warms up.
    for run in 0..=runs {
        let seconds = [PORT_WRITE, NO_OP].map(|body| seconds(backend, &guest(body, count)));
        let [Ok(write), Ok(plain)] = seconds else {
            return Err(seconds.into_iter().filter_map(Result::err).collect());
        };
        if run > 0 {
            with.push(write);
            without.push(plain);
        }
    }
    let count_f = f64::from(count);
    let net = with
        .iter()
        .zip(&without)
        .map(|(with, without)| (with - without) / count_f * 1e9);
    Ok(Exits {
        backend: backend.name(),
        count,
        per_second: Spread::of(with.iter().map(|seconds| count_f / seconds)),
        ns_each: Spread::of(net),
    })
}

/// `mov ecx, count`; the body, `dec ecx`, `jnz` back to it; power off; halt.
fn guest(body: [u8; 2], count: u32) -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend(count.to_le_bytes());
    code.extend(body);
    code.extend([0xff, 0xc9, 0x75, 0xfa]);
    code.extend(power_off());
    bzimage(&code)
}

/// `mov edx, SLEEP_CONTROL; mov al, S5; out dx, al; hlt`.
pub fn power_off() -> Vec<u8> {
    let mut code = vec![0xba];
    code.extend(u32::from(SLEEP_CONTROL).to_le_bytes());
    code.extend([0xb0, S5, 0xee, 0xf4]);
    code
}

/// A machine that is about to boot this kernel.
pub fn machine(backend: &dyn Backend, kernel: &[u8]) -> Result<Machine, String> {
    let config = MachineConfig {
        ram_bytes: 32 << 20,
        kernel: kernel.to_vec(),
        initramfs: Vec::new(),
        command_line: String::new(),
        seed: 1,
        dma: DmaConfig::default(),
        progress_limit_ns: PATIENCE,
        vcpus: 1,
        ledger_entries: 1,
        injections: Vec::new(),
        handover: None,
        device_memory: None,
    };
    Machine::new(&config, backend).map_err(|error| error.to_string())
}

/// Runs the guest until it powers the machine off.
pub fn run_to_power_off(machine: &mut Machine) -> Result<(), String> {
    match machine.run().map_err(|error| error.to_string())? {
        Event::PowerOff { .. } => Ok(()),
        other => Err(format!("the guest ended with \"{other}\", expected power off")),
    }
}

fn seconds(backend: &dyn Backend, kernel: &[u8]) -> Result<f64, String> {
    let mut machine = machine(backend, kernel)?;
    let begin = Instant::now();
    run_to_power_off(&mut machine).map_err(|error| format!("{}: {error}", backend.name()))?;
    Ok(begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::soft::Soft;

    #[test]
    fn the_loop_ends_and_is_measured() {
        let exits = measure(&Soft::default(), 1000, 1).unwrap();
        assert_eq!((exits.backend, exits.count), ("soft", 1000));
        assert!(exits.per_second.is_some_and(|spread| spread.least > 0.0));
    }

    #[test]
    fn a_guest_that_does_anything_else_is_no_measurement() {
        let error = seconds(&Soft::default(), &bzimage(::tests::image::TRIPLE_FAULT)).unwrap_err();
        assert!(error.contains("expected power off"), "{error}");
    }
}
