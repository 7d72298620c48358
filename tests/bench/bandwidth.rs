//! The rate at which a device can write guest memory, in real time on one thread, with and without the ledger,
//! compared with memcpy.
//!
//! | what | does |
//! | --- | --- |
//! | `memcpy` | copies a block to ordinary memory |
//! | `memory` | writes it to guest RAM: checks bounds, copies with vm-memory, marks the page |
//! | `ledger` | the same through the DMA view, with checksum and ledger entry |
//! | `stream` | the same with generated content for each block, as in the DMA engine |
//!
//! The ledger cannot be switched off; `memory` shows the rate without it.

use crate::samples::Spread;
use serde::Serialize;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use vmm::content::block_content;
use vmm::dma_view::DmaView;
use vmm::ledger::{DEFAULT_CAPACITY, Kind, Ledger};
use vmm::memory::GuestRam;

/// Block sizes, in bytes: those that scenarios use, and larger ones.
pub const BLOCKS: [usize; 3] = [4096, 16 << 10, 64 << 10];
/// Bytes that are written round and round.
const WINDOW: usize = 32 << 20;
/// Where they begin in guest RAM.
const START: u64 = 16 << 20;
/// Bytes of one measurement.
const TOTAL: usize = 256 << 20;

/// Bandwidths with one block size, in bytes per second.
#[derive(Debug, Serialize)]
pub struct Bandwidth {
    /// Size of a block.
    pub block_bytes: usize,
    /// To ordinary memory.
    pub memcpy: Option<Spread>,
    /// To guest RAM.
    pub memory: Option<Spread>,
    /// To guest RAM and into the ledger.
    pub ledger: Option<Spread>,
    /// With content made.
    pub stream: Option<Spread>,
    /// The last three as shares of memcpy. Each share is of runs in the same turn, so that other load on the host
    /// affects both.
    pub shares: [Option<Spread>; 3],
}

/// Measures each `runs` times, in turns.
pub fn measure(block_bytes: usize, runs: u32) -> Result<Bandwidth, String> {
    let ram = GuestRam::new(64 << 20).map_err(|error| error.to_string())?;
    let mut plain = vec![1_u8; WINDOW];
    let mut block = vec![0; block_bytes];
    block_content(1, 0, &mut block);
    let mut rates: [Vec<f64>; 4] = Default::default();
    // The first run of each touches the memory.
    for run in 0..=runs {
        let mut view = DmaView::new(Arc::clone(&ram), Ledger::new(DEFAULT_CAPACITY));
        let memcpy = timed(block_bytes, |_, at| {
            plain[at..at + block_bytes].copy_from_slice(black_box(&block));
            black_box(&mut plain);
            Ok(())
        })?;
        let memory = timed(block_bytes, |_, at| {
            ram.write(START + at as u64, black_box(&block))
                .map_err(|error| error.to_string())
        })?;
        let ledger = timed(block_bytes, |sequence, at| {
            record(&mut view, sequence, at, black_box(&block))
        })?;
        let mut made = block.clone();
        let stream = timed(block_bytes, |sequence, at| {
            block_content(1, sequence, &mut made);
            record(&mut view, sequence, at, &made)
        })?;
        if run > 0 {
            for (rates, rate) in rates.iter_mut().zip([memcpy, memory, ledger, stream]) {
                rates.push(rate);
            }
        }
    }
    let [memcpy, others @ ..] = &rates;
    let share = |rates: &Vec<f64>| Spread::of(rates.iter().zip(memcpy).map(|(rate, memcpy)| rate / memcpy));
    let shares = others.each_ref().map(share);
    let [memcpy, memory, ledger, stream] = rates.map(Spread::of);
    Ok(Bandwidth {
        block_bytes,
        memcpy,
        memory,
        ledger,
        stream,
        shares,
    })
}

fn record(view: &mut DmaView, sequence: u64, at: usize, block: &[u8]) -> Result<(), String> {
    let kind = Kind::Block {
        sequence,
        descriptor: 0,
    };
    view.write(sequence, kind, START + at as u64, block)
        .map_err(|error| error.to_string())?;
    // The processor is told of every write.
    view.take_written().for_each(drop);
    Ok(())
}

/// Bytes per second of `write`, which gets the block's number and its offset in the window.
#[allow(clippy::cast_precision_loss)] // a rate
fn timed(block_bytes: usize, mut write: impl FnMut(u64, usize) -> Result<(), String>) -> Result<f64, String> {
    let begin = Instant::now();
    for (sequence, offset) in (0..).zip((0..TOTAL).step_by(block_bytes)) {
        write(sequence, offset % WINDOW)?;
    }
    Ok(TOTAL as f64 / begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_what_is_written() {
        let ram = GuestRam::new(64 << 20).unwrap();
        let mut view = DmaView::new(Arc::clone(&ram), Ledger::new(4));
        record(&mut view, 3, 8192, &[7; 4096]).unwrap();
        let mut byte = [0];
        ram.read(START + 8192 + 4095, &mut byte).unwrap();
        assert_eq!((byte, view.ledger.made()), ([7], 1));
    }

    #[test]
    fn blocks_stay_in_the_window() {
        for block in BLOCKS {
            let mut end = 0;
            timed(block, |_, at| {
                end = end.max(at + block);
                Ok(())
            })
            .unwrap();
            assert_eq!(end, WINDOW);
        }
    }
}
