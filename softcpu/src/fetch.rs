//! How the loop gets to code: pages of code are found, decoded, translated, and dropped when they are written.

use crate::access::{Place, page_rest};
use crate::code::{self, CrossingCode};
use crate::core::{CODE_TLB, Ctx, Faulted};
use crate::cpu::{Cpu, Exit, Obstacle, UnknownInstruction};
use crate::decode;
use crate::exec::{self, Leave};
use crate::hooks::granules;
use crate::memory::{PAGE_BYTES, PAGE_SIZE, Ram};
use crate::mmu::{Tag, slot};
use crate::share::{CodeChange, note};
use crate::translate::{self, Translator};

impl Cpu {
    /// Makes the code at RIP reachable by the loop, or stops there, or executes one instruction of a watched page.
    pub(crate) fn reach_code(&mut self, cx: &mut Ctx<'_>) -> Result<(), Obstacle> {
        let rip = self.core.rip;
        let page = self.locate_code(cx, rip)?;
        let slot = slot::<CODE_TLB>(rip >> 12);
        let hooks = &mut self.core.hooks;
        let watched = hooks.watches_execution(page);
        let supervisor = self.core.mode_tag == 0;
        let low =
            hooks.low_supervisor_fetch && supervisor && rip >> 47 == 0 && !self.core.code_tlb[slot].passed;
        let (awaited, here) = if supervisor {
            hooks.awaits(rip)
        } else {
            (false, false)
        };
        if watched || low || here {
            if hooks.pass.take() != Some(rip) {
                hooks.pass = Some(rip);
                return Err(Obstacle::Exit(if watched {
                    Exit::WatchExecute {
                        rip,
                        gpa: cx.ram.address_of(page) + rip % PAGE_SIZE,
                    }
                } else if low {
                    Exit::LowSupervisorFetch { rip }
                } else {
                    Exit::WatchAddress { rip }
                }));
            }
            self.core.code_tlb[slot].passed |= low;
        }
        if watched || awaited {
            return self.step_watched(cx);
        }
        self.attach(cx.ram, rip, page);
        self.core.code_tlb[slot].tag = self.core.code_tlb[slot].tag.offered(slot);
        Ok(())
    }

    /// Notes the number of the decoded code for the translation of `va`, which leads to `page`.
    fn attach(&mut self, ram: &Ram, va: u64, page: u64) {
        let tag = Tag::of(va, self.core.mode_tag);
        self.relocate_code(ram, page, tag);
        self.compare_code(ram, page);
        let slot = slot::<CODE_TLB>(va >> 12);
        let entry = &mut self.core.code_tlb[slot];
        entry.page = self.cache.page(page);
        self.cache.enter(entry.page, tag);
        entry.entries = self.cache.pages[entry.page as usize]
            .code
            .entries(entry.tag.offered(slot));
    }

    /// Uses the code that was decoded from another page of RAM, if nothing is known of this one, which is entered by
    /// the same virtual page as that one was, and if both hold the same instructions.
    fn relocate_code(&mut self, ram: &Ram, page: u64, tag: Tag) {
        let Some(before) = self.cache.predecessor(page, tag) else {
            return;
        };
        self.compare_code(ram, before);
        let granules = self.core.hooks.code_map(before);
        let Some(number) = self.cache.number_at(before).filter(|_| granules != 0) else {
            return;
        };
        let [old, new] = [before, page].map(|page| {
            let mut bytes = [0; PAGE_BYTES];
            ram.load_bytes(page, &mut bytes);
            bytes
        });
        if !code::agree(granules, &old, &new) {
            return;
        }
        self.change_code(CodeChange::Detached { number });
        self.change_code(CodeChange::Cleared { page: before });
        self.cache.relocate(before, page);
        self.change_code(CodeChange::Marked { page, granules });
    }

    /// Drops code that another processor has decoded, if this one's RAM does not hold the same.
    fn compare_code(&mut self, ram: &Ram, page: u64) {
        let number = self.cache.page(page);
        let Some(proof) = self.cache.pages[number as usize].proof.take() else {
            return;
        };
        let mut bytes = [0; PAGE_BYTES];
        ram.load_bytes(page, &mut bytes);
        if proof.holds(&bytes) {
            self.change_code(CodeChange::Marked {
                page,
                granules: proof.granules,
            });
        } else {
            self.forget(page);
        }
    }

    /// Translates the block at RIP, whose code is decoded.
    pub(crate) fn translate_code(&mut self) {
        let rip = self.core.rip;
        let slot = slot::<CODE_TLB>(rip >> 12);
        let (number, tag) = (self.core.code_tlb[slot].page, self.core.code_tlb[slot].tag);
        if self.translator.is_none() {
            self.translator = Translator::new(&mut self.core, self.translation).ok();
        }
        let (Some(translator), Some(page)) =
            (&mut self.translator, self.cache.pages.get_mut(number as usize))
        else {
            // A host that allows no executable memory.
            self.core.translate_after = 0;
            return;
        };
        let user = self.core.mode_tag != 0;
        // Other processors find a new table when they next enter the page.
        match translator.translate(page, number, rip, tag, user) {
            translate::Outcome::Done => {}
            translate::Outcome::FirstTable => {
                note(&mut self.changes, CodeChange::Detached { number });
                self.core.code_tlb[slot].entries = page.code.entries(tag);
            }
            translate::Outcome::OtherTable => {
                note(&mut self.changes, CodeChange::Detached { number });
                for (slot, entry) in self.core.code_tlb.iter_mut().enumerate() {
                    if entry.page == number {
                        entry.entries = page.code.entries(entry.tag.offered(slot));
                    }
                }
            }
            translate::Outcome::Full => {
                note(&mut self.changes, CodeChange::AllDetached);
                translator.clear();
                for page in &mut self.cache.pages {
                    page.code.clear();
                }
                for entry in &mut self.core.code_tlb {
                    entry.entries = translate::no_entries();
                }
            }
        }
    }

    /// Executes one instruction of a watched page, whose translation is known, and ends this run of the loop:
    /// [`Cpu::run`] has to look at everything again before the next one.
    fn step_watched(&mut self, cx: &mut Ctx<'_>) -> Result<(), Obstacle> {
        self.core.until -= self.core.budget - 1;
        self.core.budget = 1;
        let rip = self.core.rip;
        let slot = slot::<CODE_TLB>(rip >> 12);
        let result = loop {
            self.drop_stale_code();
            let page = self.core.code_tlb[slot].offset;
            self.attach(cx.ram, rip, page);
            self.core.code_tlb[slot].tag = self.core.code_tlb[slot].tag.offered(slot);
            let prepared = match exec::run(&mut self.core, &self.cache, cx) {
                Leave::Fault => break Err(Obstacle::Fault),
                _ if self.core.budget == 0 => break Ok(()),
                Leave::Decode => self.decode(cx.ram),
                Leave::Crossing => self.decode_crossing(cx),
                Leave::Hot => {
                    self.translate_code();
                    Ok(())
                }
                // Decoding dropped what was decoded, this page included.
                Leave::Page | Leave::Budget => Ok(()),
            };
            if prepared.is_err() {
                break prepared;
            }
        };
        self.core.code_tlb[slot].tag = self.core.code_tlb[slot].tag.withheld(slot);
        result
    }

    /// RAM offset of the page that holds the instruction at `va`.
    fn locate_code(&mut self, cx: &mut Ctx<'_>, va: u64) -> Result<u64, Obstacle> {
        match self.core.locate_code(cx, va) {
            Ok(Place::Ram(offset)) => Ok(offset),
            Ok(Place::Outside(gpa)) => Err(Obstacle::Exit(Exit::Unknown(UnknownInstruction {
                rip: va,
                bytes: Vec::new(),
                what: format!("instruction fetch from guest physical address {gpa:#x}, which is not RAM"),
            }))),
            Err(Faulted) => {
                // A fault takes a tick: instructions that fault have taken theirs in the loop, this one has not begun.
                self.core.budget -= 1;
                Err(Obstacle::Fault)
            }
        }
    }

    /// Decodes the stretch at RIP, whose page is in the code TLB.
    pub(crate) fn decode(&mut self, ram: &Ram) -> Result<(), Obstacle> {
        let rip = self.core.rip;
        let slot = slot::<CODE_TLB>(rip >> 12);
        let entry = &mut self.core.code_tlb[slot];
        let number = entry.page;
        let Some(page) = self.cache.offset_of(number) else {
            entry.tag = entry.tag.withheld(slot);
            return Ok(());
        };
        if self.cache.pages[number as usize].is_full() {
            self.forget(page);
            return Ok(());
        }
        let mut bytes = [0; decode::STRETCH_BYTES];
        let bytes = &mut bytes[..page_rest(rip).min(decode::STRETCH_BYTES)];
        ram.load_bytes(page + rip % PAGE_SIZE, bytes);
        self.scratch.clear();
        let code = &mut self.cache.pages[number as usize];
        decode::stretch(
            bytes,
            rip % PAGE_SIZE,
            |at| code.find(at).is_some(),
            &mut self.scratch,
        );
        code.add(&self.scratch);
        let end = self
            .scratch
            .last()
            .map_or(1, |op| u64::from(op.off) + u64::from(op.len));
        self.change_code(CodeChange::Marked {
            page,
            granules: granules(rip % PAGE_SIZE, (end - rip % PAGE_SIZE).max(1)),
        });
        if self.cache.grow(self.scratch.len()) {
            self.forget_everything();
        }
        Ok(())
    }

    /// Decodes the instruction at RIP, which runs on into the next page.
    pub(crate) fn decode_crossing(&mut self, cx: &mut Ctx<'_>) -> Result<(), Obstacle> {
        let rip = self.core.rip;
        let next_va = (rip & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE);
        let next_page = self.locate_code(cx, next_va)?;
        self.attach(cx.ram, next_va, next_page);
        let next = self.core.code_tlb[slot::<CODE_TLB>(next_va >> 12)].page;
        let here = self.core.code_tlb[slot::<CODE_TLB>(rip >> 12)].page;
        let Some(page) = self.cache.offset_of(here) else {
            return Ok(());
        };
        let mut bytes = [0; 30];
        let first = page_rest(rip).min(15);
        cx.ram.load_bytes(page + rip % PAGE_SIZE, &mut bytes[..first]);
        cx.ram.load_bytes(next_page, &mut bytes[first..first + 15]);
        self.scratch.clear();
        decode::crossing(&bytes[..first + 15], rip % PAGE_SIZE, &mut self.scratch);
        self.change_code(CodeChange::Marked {
            page,
            granules: granules(rip % PAGE_SIZE, first as u64),
        });
        let start = u16::try_from(rip % PAGE_SIZE).unwrap_or(0);
        self.change_code(CodeChange::Marked {
            page: next_page,
            granules: granules(0, 15),
        });
        self.cache.pages[here as usize].crossing = Some(CrossingCode {
            start,
            next,
            ops: self.scratch.clone(),
        });
        Ok(())
    }

    /// Drops decoded code that has been written to since the last time.
    pub(crate) fn drop_stale_code(&mut self) {
        for page in std::mem::take(&mut self.core.stale_code) {
            self.forget(page);
        }
    }

    pub(crate) fn forget(&mut self, page: u64) {
        self.change_code(CodeChange::Cleared { page });
        if let Some(number) = self.cache.forget(page) {
            self.change_code(CodeChange::Detached { number });
        }
    }

    pub(crate) fn forget_everything(&mut self) {
        self.cache.clear();
        self.change_code(CodeChange::AllCleared);
        // Pages are numbered anew from here.
        if let Some(translator) = &mut self.translator {
            translator.clear();
        }
    }

    /// Tells the processor that something else wrote guest RAM, so that it drops code decoded from there.
    pub fn memory_written(&mut self, ram: &Ram, gpa: u64, len: u64) {
        let mut at = gpa;
        let end = gpa.saturating_add(len);
        while at < end {
            let part = (PAGE_SIZE - at % PAGE_SIZE).min(end - at);
            if let Some(page) = ram.page_offset(at)
                && self.core.hooks.code_overlaps(page + at % PAGE_SIZE, part)
            {
                self.forget(page);
            }
            at += part;
        }
    }
}
