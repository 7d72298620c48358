//! What all readers share: memory, the claims on it, and the findings.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::abi::{PAGE_BYTES, PAGE_SIZE};
use crate::bytes::Text;
use crate::finding::{Finding, Findings, Rule};
use crate::memory::{Page, PhysicalMemory, Region, clamp, len64};
use crate::owners::{Owner, Record};

/// State of one reading.
pub(crate) struct Context<'m> {
    memory: &'m dyn PhysicalMemory,
    ram: Vec<Region>,
    /// Claimed memory: first byte to record.
    claims: BTreeMap<u64, Record>,
    pub(crate) findings: Findings,
}

impl<'m> Context<'m> {
    pub(crate) fn new(memory: &'m dyn PhysicalMemory) -> Self {
        Self {
            memory,
            ram: memory.ranges(),
            claims: BTreeMap::new(),
            findings: Findings::default(),
        }
    }

    pub(crate) fn into_parts(self) -> (Findings, Vec<Record>) {
        (self.findings, self.claims.into_values().collect())
    }

    pub(crate) fn finding(
        &mut self,
        rule: Rule,
        at: u64,
        what: &str,
        expected: impl ToString,
        found: impl ToString,
    ) {
        self.findings.push_with(rule, || Finding {
            rule,
            at,
            what: what.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }

    /// Whether all of a region is RAM.
    pub(crate) fn is_ram(&self, region: &Region) -> bool {
        self.ram.iter().any(|ram| ram.covers(region))
    }

    /// Claims memory for a record. Returns false and adds a finding if it is not RAM or belongs to another record.
    pub(crate) fn claim(&mut self, region: Region, owner: Owner, what: &str) -> bool {
        if region.size == 0 || !self.is_ram(&region) {
            self.finding(Rule::RecordReadable, region.start, what, "memory in RAM", region);
            return false;
        }
        let before = self.claims.range(..region.end()).next_back();
        if let Some((_, other)) = before.filter(|(_, other)| other.region.overlaps(&region)) {
            let found = alloc::format!("{region} in use by {} at {}", other.owner, other.region);
            self.finding(Rule::RecordShared, region.start, what, "memory of its own", found);
            return false;
        }
        self.claims.insert(region.start, Record { region, owner });
        true
    }

    /// Claims whole pages for a record that must begin on a page boundary.
    pub(crate) fn claim_pages(&mut self, address: u64, size: u64, owner: Owner, what: &str) -> bool {
        if !address.is_multiple_of(PAGE_BYTES) {
            self.finding(
                Rule::RecordAligned,
                address,
                what,
                "an address on a page boundary",
                Hex(address),
            );
            return false;
        }
        let Some(size) = size.checked_next_multiple_of(PAGE_BYTES) else {
            self.finding(
                Rule::RecordReadable,
                address,
                what,
                "memory in RAM",
                Region::new(address, size),
            );
            return false;
        };
        self.claim(Region::new(address, size), owner, what)
    }

    /// Reads bytes. The caller must have claimed them, or know that they are few.
    pub(crate) fn bytes(&mut self, address: u64, size: usize, what: &str) -> Option<Vec<u8>> {
        if !self.is_ram(&Region::new(address, len64(size))) {
            self.finding(
                Rule::RecordReadable,
                address,
                what,
                "memory in RAM",
                Region::new(address, len64(size)),
            );
            return None;
        }
        match crate::memory::read_pieces(self.memory, address, size) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.finding(
                    Rule::RecordReadable,
                    address,
                    what,
                    "memory that can be read",
                    error,
                );
                None
            }
        }
    }

    /// Claims a page and reads it.
    pub(crate) fn page(&mut self, address: u64, owner: Owner, what: &str) -> Option<Vec<u8>> {
        if !self.claim_pages(address, PAGE_BYTES, owner, what) {
            return None;
        }
        self.bytes(address, PAGE_SIZE, what)
    }

    /// Claims a page and reads it into a buffer. Returns false and adds a finding if either fails.
    pub(crate) fn page_into(&mut self, page: &mut Page, address: u64, owner: Owner, what: &str) -> bool {
        if !self.claim_pages(address, PAGE_BYTES, owner, what) {
            return false;
        }
        let read = self.memory.read(address, page);
        if let Err(error) = read {
            self.finding(
                Rule::RecordReadable,
                address,
                what,
                "memory that can be read",
                error,
            );
        }
        read.is_ok()
    }

    /// Claims a struct in pages of its own and reads it.
    pub(crate) fn record(&mut self, address: u64, size: usize, owner: Owner, what: &str) -> Option<Vec<u8>> {
        if !self.claim_pages(address, len64(size), owner, what) {
            return None;
        }
        self.bytes(address, size, what)
    }

    /// Reads an FDT whose first byte is at an address, and claims it. Its header tells the size.
    pub(crate) fn fdt_bytes(&mut self, address: u64, owner: Owner, what: &str) -> Option<Vec<u8>> {
        let header = self.bytes(address, crate::fdt::HEADER_SIZE, what)?;
        let size = match crate::fdt::total_size(&header) {
            Ok(size) => u64::from(size),
            Err(error) => {
                self.finding(Rule::FdtStructure, address, what, "an FDT", error);
                return None;
            }
        };
        if size > super::MAX_FDT_SIZE {
            self.finding(
                Rule::CountFits,
                address,
                what,
                "an FDT of at most 16 MiB",
                Hex(size),
            );
            return None;
        }
        if !self.claim_pages(address, size, owner, what) {
            return None;
        }
        self.bytes(address, clamp(size), what)
    }

    /// The value of a fixed-size string. Adds a finding if it has no terminator.
    pub(crate) fn text(&mut self, text: Text, at: u64, what: &str) -> String {
        if !text.terminated {
            self.finding(
                Rule::StringTerminated,
                at,
                what,
                "a terminated string",
                &text.value,
            );
        }
        text.value
    }
}

/// A number shown in hexadecimal.
pub(crate) struct Hex(pub(crate) u64);

impl core::fmt::Display for Hex {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
