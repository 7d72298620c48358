//! The translator: blocks of decoded operations as host code.
//!
//! The interpreter is what the processor means; translated code does the same, faster, or nothing. It executes what it
//! has a translation for as long as everything goes the usual way: memory is reached through TLB entries that are
//! there, branches lead to code that is translated, and the budget lasts for a whole block. Whenever anything else is
//! to be done it leaves, with the processor's state as before the instruction that needs it, and the interpreter
//! executes that instruction. So translated code never faults, never fills a TLB, never calls anything, never touches
//! a device or a page that somebody watches, and never writes to code.
//!
//! ```text
//!  plan        which operations are a block, and which flags are looked at
//!   `- kind       what an operation is to the translator
//!  links       which branches lead to which blocks
//!  writer      one block: registers, flags, ways out
//!   |- layout     where things lie meanwhile
//!   |- addresses  how it reaches memory and other code
//!   |- operations the translation of each kind
//!   |- bits, stack, strings    of shifts and bit tests, of PUSH and POP, of REP MOVS and REP STOS
//!   |- flags      flags between blocks
//!   `- emit       host instructions as bytes
//!  memory      where the code lies: writable at one address, executable at another
//!  entry       the call
//! ```
//!
//! A block is translated once control has come to its first instruction often enough ([`Translation`]). It belongs to
//! a code page and to the virtual address and mode that the page was entered by. When bytes of the page are written,
//! the page is dropped with all that was made of it (see [`crate::code`]). A branch to another page compares the number
//! of the code page there with the one that it was linked to; numbers are never used twice.
//!
//! Whether a block is translated depends on counts alone, and results do not depend on whether it is.

mod addresses;
mod bits;
mod emit;
mod entry;
mod flags;
mod kind;
mod layout;
mod links;
mod memory;
mod operations;
mod plan;
mod stack;
mod strings;
mod writer;

use std::cell::Cell;
use std::mem::offset_of;

use crate::code::CodePage;
use crate::core::{CodeEntry, Core, Ctx};
use crate::memory::PAGE_BYTES;
use crate::mmu::Tag;
use links::{Links, Place};
use memory::CodeMemory;
use plan::Plan;
use writer::{Link, Writer};

/// Bytes of code that are kept at most; beyond it everything is dropped and translated anew.
const CODE_BYTES: usize = 32 << 20;
/// Pages with translated code at most, each of which has a table of 16 KiB.
const MAX_PAGES: usize = 2 << 10;
/// In place of a count: the block is translated.
const TRANSLATED: u8 = 254;
/// In place of a count: the block is the interpreter's.
const DECLINED: u8 = 255;
/// So often entered at another virtual address, a page is translated for that one.
const MOVED: u16 = 256;

/// Which code is translated. What a guest does, and when, does not depend on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Translation {
    /// None: everything is interpreted.
    Off,
    /// Blocks that control has come to a number of times.
    #[default]
    Hot,
    /// Blocks that control comes to, at once. For tests: it takes longer than it gains.
    Eager,
    /// The same, with one instruction in each block.
    Single,
}

impl Translation {
    /// Whether this host allows it.
    ///
    /// # Errors
    /// When there can be no executable memory.
    pub fn possible() -> std::io::Result<()> {
        CodeMemory::new(PAGE_BYTES).map(drop)
    }

    /// How often control comes to a block before it is translated; 0 if never.
    pub(crate) const fn after(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Hot => 32,
            Self::Eager | Self::Single => 1,
        }
    }

    /// Instructions in a block: at least, if the interpreter goes on after it (to enter translated code and to leave it
    /// takes about as long as to interpret as many), and at most.
    const fn lengths(self) -> (u32, u32) {
        match self {
            Self::Off | Self::Hot => (4, 64),
            Self::Eager => (1, 64),
            Self::Single => (1, 1),
        }
    }
}

/// A number that no code page has.
const UNLINKED: u32 = 0x7fff_fffe;

const CODE_ENTRY_PAGE: usize = offset_of!(CodeEntry, page);
const CODE_ENTRY_ENTRIES: usize = offset_of!(CodeEntry, entries);

/// For each offset in a page, where its translated code lies; 0 where there is none.
type Entries = [u32; PAGE_BYTES];

static NO_ENTRIES: Entries = [0; PAGE_BYTES];

/// Address of the table of a page without translated code.
pub(crate) fn no_entries() -> u64 {
    NO_ENTRIES.as_ptr().expose_provenance() as u64
}

/// What translated code keeps in the Core.
#[derive(Debug, Default)]
pub(crate) struct Native {
    /// The arithmetic flags, see [`flags`].
    flags: u64,
    /// Where an indirect call leads while the return address is pushed, and where a copy goes while its source is
    /// looked up.
    target: u64,
    /// Where the code memory is executed; 0 where there is none.
    base: u64,
    /// The RAM that host addresses in the TLB are for.
    pub ram: [u64; 4],
    /// Instructions that translated code has executed.
    pub executed: u64,
}

impl Native {
    /// Forgets the code memory.
    pub fn reset(&mut self) {
        (self.base, self.executed) = (0, 0);
    }
}

/// What is known of translations of a page's code.
#[derive(Debug, Default)]
pub(crate) struct PageCode {
    /// For each offset, how often control has come there, or [`TRANSLATED`] or [`DECLINED`].
    heat: Box<Heat>,
    /// Virtual page and mode that the translations are for, and the table.
    native: Option<(Tag, Box<Entries>)>,
    /// How often the page was entered by another virtual address since.
    elsewhere: Cell<u16>,
}

#[derive(Debug)]
struct Heat([Cell<u8>; PAGE_BYTES]);

impl Default for Heat {
    fn default() -> Self {
        Self([const { Cell::new(0) }; PAGE_BYTES])
    }
}

/// What to do where control has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Here {
    Interpret,
    /// Translate the block, see [`Translator::translate`].
    Hot,
    /// Execute the translated code at this offset of the code memory.
    Run(u32),
}

#[allow(clippy::cast_possible_truncation)] // a page offset
fn index(offset: u64) -> usize {
    offset as usize & (PAGE_BYTES - 1)
}

impl PageCode {
    /// Whether control that comes to page offset `offset` by a branch within the page should look for translated code.
    #[inline(always)]
    pub fn arrives(&self, offset: u64, after: u8) -> bool {
        let cell = &self.heat.0[index(offset)];
        let heat = cell.get();
        if heat < after {
            cell.set(heat + 1);
            heat + 1 == after
        } else {
            heat < DECLINED
        }
    }

    /// What to do at page offset `offset`, entered by the virtual page of `tag`.
    #[inline(always)]
    pub fn here(&self, offset: u64, tag: Tag, after: u8) -> Here {
        let cell = &self.heat.0[index(offset)];
        match cell.get() {
            TRANSLATED => match &self.native {
                Some((page, entries)) if *page == tag => match entries[index(offset)] {
                    0 => Here::Interpret,
                    code => Here::Run(code),
                },
                _ => {
                    self.elsewhere.set(self.elsewhere.get().saturating_add(1));
                    if self.elsewhere.get() < MOVED {
                        Here::Interpret
                    } else {
                        Here::Hot
                    }
                }
            },
            DECLINED => Here::Interpret,
            heat if heat + 1 < after => {
                cell.set(heat + 1);
                Here::Interpret
            }
            _ => Here::Hot,
        }
    }

    /// Address of the table of translated code for the virtual page of `tag`.
    pub fn entries(&self, tag: Tag) -> u64 {
        match &self.native {
            Some((page, entries)) if *page == tag => entries.as_ptr().expose_provenance() as u64,
            _ => no_entries(),
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Translated code of a processor.
#[derive(Debug)]
pub(crate) struct Translator {
    memory: CodeMemory,
    /// Where the next block goes.
    next: usize,
    /// Where [`entry`] has the end.
    leave: usize,
    links: Links,
    pages: usize,
    which: Translation,
    /// What the last block was made with.
    plan: Plan,
    writer: Writer,
}

/// What became of a request to translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Translated, or left to the interpreter.
    Done,
    /// The same, and the page has a table of translated code for the first time.
    FirstTable,
    /// The same, and the page has another table than before.
    OtherTable,
    /// There is no room: everything has to be dropped first.
    Full,
}

impl Translator {
    /// Maps memory for code.
    pub fn new(core: &mut Core, which: Translation) -> std::io::Result<Self> {
        let memory = CodeMemory::new(CODE_BYTES)?;
        let mut translator = Self {
            memory,
            next: 0,
            leave: 0,
            links: Links::default(),
            pages: 0,
            which,
            plan: Plan::default(),
            writer: Writer::default(),
        };
        translator.clear();
        translator.attach(core);
        Ok(translator)
    }

    /// Makes the code the one that `core` executes.
    pub fn attach(&self, core: &mut Core) {
        core.native.base = self.memory.base();
    }

    /// Forgets all code. Whoever calls this drops all pages' tables.
    pub fn clear(&mut self) {
        let (code, leave) = entry::write();
        if self.memory.write(0, &code) {
            self.next = code.len();
        }
        self.leave = leave;
        self.links.clear();
        self.pages = 0;
    }

    /// Instructions in the block that begins at this page offset; 1 if there is none.
    pub fn length(&mut self, page: &CodePage, offset: u64, user: bool) -> u64 {
        match plan::plan(&mut self.plan, page, offset, user, self.which.lengths()) {
            Some(()) => self.plan.length.into(),
            None => 1,
        }
    }

    /// Translates the block at virtual address `rip`, in the code page with this number, or notes that it is the
    /// interpreter's.
    pub fn translate(&mut self, page: &mut CodePage, number: u32, rip: u64, tag: Tag, user: bool) -> Outcome {
        let offset = rip % PAGE_BYTES as u64;
        let mut done = Outcome::Done;
        if page.code.native.as_ref().is_none_or(|(known, _)| *known != tag) {
            // Blocks for another virtual address stay where they are; branches that lead there are right to.
            done = if page.code.native.is_some() {
                page.code.clear();
                Outcome::OtherTable
            } else {
                Outcome::FirstTable
            };
            if self.pages == MAX_PAGES {
                return Outcome::Full;
            }
            self.pages += 1;
            page.code.native = Some((tag, Box::new([0; PAGE_BYTES])));
        }
        if plan::plan(&mut self.plan, page, offset, user, self.which.lengths()).is_none() {
            page.code.heat.0[index(offset)].set(DECLINED);
            return done;
        }
        self.writer
            .write(&self.plan, offset, rip - offset, user, self.next, self.leave);
        let (code, links) = (&self.writer.code.bytes, &self.writer.links);
        if !self.links.has_room(links.len()) || !self.memory.write(self.next, code) {
            return Outcome::Full;
        }
        let at = self.next;
        self.next += code.len().next_multiple_of(16);
        page.code.heat.0[index(offset)].set(TRANSLATED);
        if let Some((_, entries)) = &mut page.code.native {
            entries[index(offset)] = u32::try_from(at).unwrap_or(0);
        }
        for link in links {
            if let Some((to, at)) = self.links.add(Place::new(link.target, user), number, *link) {
                join(&mut self.memory, number, *link, to, at);
            }
        }
        for (from, link) in self.links.arrive(Place::new(rip, user), number, at) {
            join(&mut self.memory, from, link, number, at);
        }
        done
    }
}

/// Makes a branch in code page `from` lead to the block at `at`, which is of code page `to`.
fn join(memory: &mut CodeMemory, from: u32, link: Link, to: u32, at: usize) {
    // The block of a page that is no more: within the page there is none to go to, from another page the comparison
    // says so.
    if link.page_at.is_none() && from != to {
        return;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // both lie in the code memory
    let distance = (at as i64 - (link.at as i64 + 4)) as i32;
    let mut written = memory.write(link.at, &distance.to_le_bytes());
    if let Some(page_at) = link.page_at {
        written &= memory.write(page_at, &to.to_le_bytes());
    }
    debug_assert!(written, "a link lies in the code memory");
}

/// Executes translated code at `at`, an offset that [`PageCode::here`] gave, until it leaves: [`Core::rip`] is where
/// the interpreter goes on.
pub(crate) fn run(core: &mut Core, cx: &mut Ctx<'_>, at: u32) {
    let before = core.budget;
    core.native.flags = flags::pack(core.lazy);
    entry::call(core, cx, at);
    core.native.executed += before - core.budget;
    core.lazy = flags::unpack(core.native.flags);
}
