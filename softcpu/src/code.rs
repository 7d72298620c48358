//! Decoded code, kept by physical page.
//!
//! A page of code is a list of operations and an index from page offset to operation. Straight-line stretches are
//! decoded when control first reaches them. When decoded bytes are written to, the page is dropped as a whole; its
//! number is never used again (until everything is dropped), so whoever remembers it finds nothing rather than
//! something else.

use rustc_hash::FxHashMap;

use crate::mmu::Tag;
use crate::op::{Op, OpCode};
use crate::translate::PageCode;

/// Offsets in a page.
const OFFSETS: usize = 4096;
/// Operations kept at most (24 bytes each); beyond it everything is dropped and decoded anew.
const MAX_OPS: usize = 2 << 20;
/// Pages kept at most, dropped ones included.
const MAX_PAGES: usize = 6 << 10;

/// How often a page is relocated at most: a guest that goes to and fro between two pages with the same code has to have
/// both decoded.
const MAX_MOVES: u8 = 32;

/// Operations that room is made for at once: half of all pages have more.
const USUAL_OPS: usize = 128;

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
        agree(self.granules, &self.bytes, bytes)
    }
}

/// Whether two pages are equal in these of their 64-byte granules.
pub(crate) fn agree(granules: u64, one: &[u8; OFFSETS], other: &[u8; OFFSETS]) -> bool {
    let mut parts = one.chunks(64).zip(other.chunks(64)).enumerate();
    parts.all(|(granule, (one, other))| granules >> granule & 1 == 0 || one == other)
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
    /// By which virtual page and in which mode it was entered last.
    entered: Option<Tag>,
    /// How often it was relocated.
    moves: u8,
}

impl CodePage {
    fn new(offset: u64) -> Self {
        Self {
            index: Box::new([0; OFFSETS]),
            ops: Vec::with_capacity(USUAL_OPS),
            crossing: None,
            code: PageCode::default(),
            proof: None,
            offset: Some(offset),
            entered: None,
            moves: 0,
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
    numbers: FxHashMap<u64, u32>,
    /// The page that was last entered by a virtual page in a mode.
    entered: FxHashMap<Tag, u32>,
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

    /// Notes that the page is entered by a virtual page in a mode.
    pub fn enter(&mut self, number: u32, tag: Tag) {
        if let Some(page) = self.pages.get_mut(number as usize)
            && page.entered != Some(tag)
        {
            let before = page.entered.replace(tag);
            self.leave(number, before);
            self.entered.insert(tag, number);
        }
    }

    fn leave(&mut self, number: u32, tag: Option<Tag>) {
        if let Some(tag) = tag
            && self.entered.get(&tag) == Some(&number)
        {
            self.entered.remove(&tag);
        }
    }

    /// If nothing is known of the code at RAM offset `page`, which is entered by a virtual page in a mode: the RAM
    /// offset of the page that was last entered so. A kernel that is started again has the same code at the same
    /// addresses, in other pages of RAM.
    pub fn predecessor(&self, page: u64, tag: Tag) -> Option<u64> {
        if self.numbers.contains_key(&page) {
            return None;
        }
        let before = self.pages.get(*self.entered.get(&tag)? as usize)?;
        before.offset.filter(|_| before.moves < MAX_MOVES)
    }

    /// The number of the code page at RAM offset `page`, if there is one.
    pub fn number_at(&self, page: u64) -> Option<u32> {
        self.numbers.get(&page).copied()
    }

    /// Makes the code at RAM offset `from` that at `to`, of which nothing is known.
    pub fn relocate(&mut self, from: u64, to: u64) {
        if let Some(number) = self.numbers.remove(&from) {
            self.numbers.insert(to, number);
            let page = &mut self.pages[number as usize];
            page.offset = Some(to);
            page.moves += 1;
        }
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
            let tag = code.entered.take();
            self.leave(number, tag);
        }
        Some(number)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.entered.clear();
        self.numbers.clear();
        self.ops = 0;
    }
}
