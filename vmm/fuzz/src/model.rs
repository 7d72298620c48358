//! What guest memory must hold: what the processors wrote, and what the ledger says that devices wrote.

use std::collections::BTreeMap;

use vmm::content::block_content;
use vmm::interrupt::is_message_address;
use vmm::ledger::{Kind, Ledger};
use vmm::memory::{GuestRam, PAGE_BYTES, PAGE_SIZE};

/// The content of guest memory, all zero at first.
pub struct Model {
    seed: u64,
    pages: BTreeMap<u64, Vec<u8>>,
    /// Entries of the ledger that have been followed.
    pub followed: usize,
}

impl Model {
    /// Memory to which a DMA engine with this seed writes.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            pages: BTreeMap::new(),
            followed: 0,
        }
    }

    /// Somebody writes these bytes, all of them in RAM.
    pub fn write(&mut self, mut address: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let at = (address % PAGE_SIZE) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE_BYTES - at));
            let page = self.pages.entry(address / PAGE_SIZE);
            let page = page.or_insert_with(|| vec![0; PAGE_BYTES]);
            page[at..at + now.len()].copy_from_slice(now);
            address += now.len() as u64;
            bytes = rest;
        }
    }

    /// Makes the writes of the ledger's new entries. Fails if one cannot be a write of this machine's devices.
    pub fn follow(&mut self, ledger: &Ledger, ram: &GuestRam) -> Result<(), String> {
        for entry in ledger.entries().get(self.followed..).unwrap_or_default() {
            let in_ram = ram.contains(entry.address, entry.length.into());
            let bytes = match entry.kind {
                Kind::Block { sequence, .. } => {
                    let mut block = vec![0; entry.length as usize];
                    block_content(self.seed, sequence, &mut block);
                    block
                }
                Kind::Completion { count } => count.to_le_bytes().to_vec(),
                Kind::Msi { data } => data.to_le_bytes().to_vec(),
                Kind::Injected { .. } => return Err(format!("nothing is injected: {entry:?}")),
            };
            let is_message = matches!(entry.kind, Kind::Msi { .. });
            if bytes.len() as u64 != u64::from(entry.length) || !in_ram && !is_message {
                return Err(format!("this is no write to RAM: {entry:?}"));
            }
            if in_ram && !(is_message && is_message_address(entry.address)) {
                self.write(entry.address, &bytes);
            }
            self.followed += 1;
        }
        Ok(())
    }

    /// Fails with the first byte of RAM that is not as it must be.
    pub fn check(&self, ram: &GuestRam) -> Result<(), String> {
        let zero = vec![0; PAGE_BYTES];
        let mut page = vec![0; PAGE_BYTES];
        for pfn in ram
            .regions()
            .iter()
            .flat_map(|range| range.start / PAGE_SIZE..range.end / PAGE_SIZE)
        {
            ram.read(pfn * PAGE_SIZE, &mut page)
                .map_err(|error| error.to_string())?;
            let expected = self.pages.get(&pfn).unwrap_or(&zero);
            if page == *expected {
                continue;
            }
            if let Some(at) = page
                .iter()
                .zip(expected)
                .position(|(found, expected)| found != expected)
            {
                return Err(format!(
                    "RAM at {:#x}: {:#x}, and by processors and ledger it is {:#x}",
                    pfn * PAGE_SIZE + at as u64,
                    page[at],
                    expected[at]
                ));
            }
        }
        Ok(())
    }
}
