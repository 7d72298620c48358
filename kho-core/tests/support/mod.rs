//! Captured handovers, cut down to the pages that the reader touches.
//!
//! A fixture is zstd over: [`MAGIC`]; the FDT's and the scratch array's {address, size}; the number of RAM ranges and
//! {start, size} of each; the number of pages and {address, 4,096 bytes} of each. Numbers are `u64`, little-endian.

#![allow(dead_code)] // Each test program uses what it needs of this.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kho_core::abi::PAGE_SIZE;
use kho_core::{Handover, KhoData, MemoryError, PhysicalMemory, Region, SparseMemory};

/// First bytes of a fixture.
pub const MAGIC: &[u8; 8] = b"KHOPAGES";

/// Kernel versions with a captured handover. That of 7.2.12 is from a run of baton and has one session more; the
/// others were captured under an independent emulator.
pub const VERSIONS: [&str; 4] = ["6.17.8", "6.19.11", "7.2.12", "7.3.4"];

/// A captured handover.
pub struct Capture {
    /// The pages.
    pub memory: SparseMemory,
    /// Where the handover begins.
    pub entry: KhoData,
}

impl Capture {
    /// Loads the fixture of a kernel version.
    pub fn load(version: &str) -> Self {
        let path = directory("fixtures").join(format!("{version}.pages.zst"));
        let packed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let bytes = zstd::decode_all(&packed[..]).expect("a zstd file");
        let mut rest = bytes.strip_prefix(MAGIC).expect("a fixture");
        let mut region = || Region::new(take(&mut rest), take(&mut rest));
        let entry = KhoData {
            fdt: region(),
            scratch: region(),
        };
        let ranges = (0..take(&mut rest))
            .map(|_| Region::new(take(&mut rest), take(&mut rest)))
            .collect();
        let mut memory = SparseMemory::new(ranges);
        for _ in 0..take(&mut rest) {
            let address = take(&mut rest);
            let (page, after) = rest.split_first_chunk::<PAGE_SIZE>().expect("a page");
            memory.insert(address, *page);
            rest = after;
        }
        assert!(rest.is_empty());
        Self { memory, entry }
    }

    /// Reads the handover in it.
    pub fn read(&self) -> Handover {
        Handover::read(&self.memory, self.entry.fdt, self.entry.scratch).expect("a readable handover")
    }
}

fn take(bytes: &mut &[u8]) -> u64 {
    let (number, rest) = bytes.split_first_chunk().expect("a number");
    *bytes = rest;
    u64::from_le_bytes(*number)
}

/// A folder of this crate's tests.
pub fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// Memory that notes which pages are read.
pub struct Recorder<M> {
    inner: M,
    pages: RefCell<BTreeSet<u64>>,
}

impl<M: PhysicalMemory> Recorder<M> {
    /// Notes the reads of `inner`.
    pub fn new(inner: M) -> Self {
        Self {
            inner,
            pages: RefCell::default(),
        }
    }

    /// The memory itself.
    pub fn inner(&self) -> &M {
        &self.inner
    }

    /// The pages read so far, as a fixture.
    pub fn fixture(&self, entry: KhoData) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let mut put = |number: u64| bytes.extend(number.to_le_bytes());
        [entry.fdt, entry.scratch]
            .iter()
            .for_each(|region| [region.start, region.size].map(&mut put).into_iter().collect());
        let ranges = self.inner.ranges();
        put(ranges.len() as u64);
        ranges
            .iter()
            .for_each(|range| [range.start, range.size].map(&mut put).into_iter().collect());
        let pages = self.pages.borrow();
        put(pages.len() as u64);
        for page in pages.iter() {
            let mut contents = [0; PAGE_SIZE];
            self.inner
                .read(*page, &mut contents)
                .expect("a page that was read before");
            bytes.extend(page.to_le_bytes());
            bytes.extend(contents);
        }
        zstd::encode_all(&bytes[..], 19).expect("memory to compress into")
    }
}

impl<M: PhysicalMemory> PhysicalMemory for Recorder<M> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let first = address / PAGE_SIZE as u64;
        let last = (address + (buf.len() as u64).max(1) - 1) / PAGE_SIZE as u64;
        self.pages
            .borrow_mut()
            .extend((first..=last).map(|frame| frame * PAGE_SIZE as u64));
        self.inner.read(address, buf)
    }

    fn ranges(&self) -> Vec<Region> {
        self.inner.ranges()
    }
}
