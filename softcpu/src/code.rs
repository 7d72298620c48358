//! Decoded code, kept by physical page.
//!
//! A page of code is a list of operations and an index from page offset to operation. Straight-line stretches are decoded when
//! control first reaches them. When decoded bytes are written to, the page is dropped as a whole; its number is never used
//! again (until everything is dropped), so whoever remembers it finds nothing rather than something else.

use std::collections::HashMap;

use crate::op::{Op, OpCode};
use crate::translate::PageCode;

/// Offsets in a page.
const OFFSETS: usize = 4096;
/// Operations kept at most (24 bytes each); beyond it everything is dropped and decoded anew.
const MAX_OPS: usize = 2 << 20;
/// Pages kept at most, dropped ones included.
const MAX_PAGES: usize = 6 << 10;

/// The instruction that runs on into the next page.
#[derive(Debug, Clone)]
pub(crate) struct CrossingCode {
    /// Page offset at which it begins: overlapping code may have several that cross.
    pub start: u16,
    /// Code page (by number) that held the rest of it.
    pub next: u32,
    pub ops: Vec<Op>,
}

/// The bytes that a page of code was decoded from.
#[derive(Debug)]
pub(crate) struct Proof {
    /// Which 64-byte granules of the page hold decoded instructions.
    pub granules: u64,
    pub bytes: Box<[u8; OFFSETS]>,
}

impl Proof {
    /// Whether a page with these bytes holds the same instructions.
    pub fn holds(&self, bytes: &[u8; OFFSETS]) -> bool {
        let mut parts = self.bytes.chunks(64).zip(bytes.chunks(64)).enumerate();
        parts.all(|(granule, (ours, theirs))| self.granules >> granule & 1 == 0 || ours == theirs)
    }
}

/// Decoded code of one physical page.
#[derive(Debug)]
pub(crate) struct CodePage {
    /// For each offset, one more than the index of the operation that begins there; 0 where nothing is decoded.
    pub index: Box<[u16; OFFSETS]>,
    pub ops: Vec<Op>,
    pub crossing: Option<CrossingCode>,
    /// What is known of its translations.
    pub code: PageCode,
    /// What the code was decoded from, if another processor did it and this one has not compared yet.
    pub proof: Option<Proof>,
    /// RAM offset of the page; `None` once dropped.
    offset: Option<u64>,
}

impl CodePage {
    fn new(offset: u64) -> Self {
        Self {
            index: Box::new([0; OFFSETS]),
            ops: Vec::new(),
            crossing: None,
            code: PageCode::default(),
            proof: None,
            offset: Some(offset),
        }
    }

    /// The operation that begins at page offset `offset`, if decoded.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // masked to a page offset
    pub fn find(&self, offset: u64) -> Option<usize> {
        let index = self.index[offset as usize & (OFFSETS - 1)];
        usize::from(index).checked_sub(1)
    }

    /// Adds a straight-line stretch; each operation that begins an instruction becomes reachable by its offset.
    pub fn add(&mut self, stretch: &[Op]) {
        for op in stretch {
            self.ops.push(*op);
            if matches!(op.code, OpCode::LinkNear | OpCode::LinkFar) {
                continue;
            }
            let place = &mut self.index[usize::from(op.off) & (OFFSETS - 1)];
            if *place == 0 {
                *place = u16::try_from(self.ops.len()).unwrap_or(0);
            }
        }
    }

    /// Whether more operations would outgrow the index.
    pub fn is_full(&self) -> bool {
        self.ops.len() > usize::from(u16::MAX) - 2 * OFFSETS
    }
}

/// All decoded code.
#[derive(Debug, Default)]
pub(crate) struct CodeCache {
    pub pages: Vec<CodePage>,
    /// Page number by RAM offset of the physical page.
    numbers: HashMap<u64, u32>,
    ops: usize,
}

impl CodeCache {
    /// RAM offset of a code page; `None` when it was dropped.
    pub fn offset_of(&self, number: u32) -> Option<u64> {
        self.pages.get(number as usize)?.offset
    }

    /// The number of the code page at RAM offset `page`.
    pub fn page(&mut self, page: u64) -> u32 {
        if let Some(number) = self.numbers.get(&page) {
            return *number;
        }
        let number = u32::try_from(self.pages.len()).unwrap_or(u32::MAX);
        self.pages.push(CodePage::new(page));
        self.numbers.insert(page, number);
        number
    }

    /// RAM offsets of the pages, in no particular order.
    pub fn offsets(&self) -> impl Iterator<Item = u64> + '_ {
        self.numbers.keys().copied()
    }

    /// Notes what each page was decoded from, unless that is known from before.
    pub fn prove(&mut self, mut proof: impl FnMut(u64) -> Proof) {
        for page in &mut self.pages {
            if let (Some(offset), None) = (page.offset, &page.proof) {
                page.proof = Some(proof(offset));
            }
        }
    }

    /// Counts decoded operations; true when it is time to drop everything.
    pub fn grow(&mut self, ops: usize) -> bool {
        self.ops += ops;
        self.ops > MAX_OPS || self.pages.len() > MAX_PAGES
    }

    /// Forgets the code at RAM offset `page`; gives its number.
    pub fn forget(&mut self, page: u64) -> Option<u32> {
        let number = self.numbers.remove(&page)?;
        if let Some(code) = self.pages.get_mut(number as usize) {
            self.ops = self.ops.saturating_sub(code.ops.len());
            code.ops = Vec::new();
            code.crossing = None;
            code.code.clear();
            code.proof = None;
            code.index.fill(0);
            code.offset = None;
        }
        Some(number)
    }

    /// Forgets everything; gives the RAM offsets of the pages that had code.
    pub fn clear(&mut self) -> Vec<u64> {
        self.pages.clear();
        self.ops = 0;
        let mut pages: Vec<u64> = std::mem::take(&mut self.numbers).into_keys().collect();
        pages.sort_unstable();
        pages
    }
}
