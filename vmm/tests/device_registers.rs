//! The fuzz target `registers` of `fuzz/` on random inputs: a guest that accesses every register of every device with
//! any value does only what a device may do.
//!
//! By default the inputs are the same each time. `BATON_REGISTERS_SECONDS` runs new ones for so many seconds.

#[path = "../fuzz/src/input.rs"]
mod input;
#[path = "../fuzz/src/model.rs"]
mod model;
#[path = "../fuzz/src/registers.rs"]
mod registers;

use std::cell::Cell;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use registers::{Reached, run, run_with};
use vmm::devices::pci::WINDOW_START;
use vmm::platform::Platform;
use vmm::vcpu::Bus;

/// Inputs of a round.
const CASES: u32 = 500;

/// Runs a round of inputs, and shrinks the one that fails first.
fn round(mut runner: TestRunner) -> Reached {
    let reached = Cell::new(Reached::default());
    let inputs = prop::collection::vec(any::<u8>(), 0..3000);
    let result = runner.run(&inputs, |input| {
        let mut sum = reached.get();
        sum += run(&input).map_err(TestCaseError::fail)?;
        reached.set(sum);
        Ok(())
    });
    match result {
        Ok(()) => reached.get(),
        Err(TestError::Fail(why, input)) => panic!("{why}\ninput {input:?}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

#[test]
fn any_accesses_do_only_what_devices_may() {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let seconds = std::env::var("BATON_REGISTERS_SECONDS").ok();
    let reached = match seconds.map(|text| text.parse().expect("a number of seconds")) {
        None => {
            let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
            round(TestRunner::new_with_rng(config, rng))
        }
        Some(seconds) => {
            let end = Instant::now() + Duration::from_secs(seconds);
            let mut sum = Reached::default();
            while sum == Reached::default() || Instant::now() < end {
                sum += round(TestRunner::new(config.clone()));
            }
            sum
        }
    };
    println!("{reached:?}");
    for (what, count) in [
        ("accesses", reached.accesses),
        ("device writes", reached.writes),
        ("faults of the engine", reached.faults),
        ("messages", reached.messages),
        ("full ledgers", reached.full),
        ("restored devices", reached.restored),
    ] {
        assert!(count > 20, "{what}: {reached:?}");
    }
}

/// Steps that start the engine and let time pass, over and over.
fn busy() -> Vec<u8> {
    let number = |value: u8| [0, value];
    let mut steps = vec![0, 1];
    for round in 0..4 {
        steps.push(10);
        for value in [1, 2, 3, 1] {
            steps.extend(number(value + round));
        }
        for _ in 0..2 {
            steps.extend(number(9 + round));
            steps.extend(number(0));
            steps.extend([1, 1, 0]);
        }
        steps.extend([0, 0x0c, 0, 0x40]);
        steps.extend([12; 6]);
    }
    steps
}

#[test]
fn what_a_device_may_not_do_is_found() {
    assert!(run(&busy()).unwrap().writes > 20, "{:?}", run(&busy()));
    let fault = |saboteur: &mut dyn FnMut(&mut Platform)| run_with(&busy(), saboteur).unwrap_err();
    let silent = fault(&mut |platform| platform.ram.write(0x1_f000, &[1]).unwrap());
    assert!(silent.contains("RAM at 0x1f000"), "{silent}");
    let (mut calls, mut more) = (0, 0);
    let restless = fault(&mut |platform| {
        more += 1;
        platform
            .bus
            .mmio_write(more, u64::from(WINDOW_START) + 0x1000, 4, more);
    });
    assert!(restless.contains("another state"), "{restless}");
    let large = fault(&mut |platform| {
        calls += 1;
        platform.bus.uart.console.write(&[b'x'; 100_000]);
    });
    assert!(calls > 0 && large.contains("bytes"), "{large}");
}
