//! Decoded and translated code outlives its processor: a run that branches off another one need not make it again.
//!
//! What is kept says from which bytes of RAM it was made. Whoever gets it compares them with its own RAM when it first
//! executes a page, and drops the page if they differ, so that it is never more than a cache.

use std::fmt;

use crate::code::{CodeCache, Proof};
use crate::cpu::Cpu;
use crate::memory::Ram;
use crate::translate::{Translation, Translator};

/// The code of a processor that is no more, see [`Cpu::take_code`].
pub struct WarmCode {
    cache: CodeCache,
    translator: Option<Translator>,
    translation: Translation,
}

impl fmt::Debug for WarmCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WarmCode")
            .field("pages", &self.cache.pages.len())
            .finish_non_exhaustive()
    }
}

impl Cpu {
    /// Takes the decoded and translated code, of which the processor has none afterwards.
    pub fn take_code(&mut self, ram: &Ram) -> WarmCode {
        let hooks = &self.core.hooks;
        self.cache.prove(|page| {
            let mut proof = Proof {
                granules: hooks.code_map(page),
                bytes: Box::new([0; crate::memory::PAGE_BYTES]),
            };
            ram.load_bytes(page, &mut proof.bytes[..]);
            proof
        });
        let cache = std::mem::take(&mut self.cache);
        let translator = self.translator.take();
        let translation = self.translation;
        self.translate(translation);
        WarmCode {
            cache,
            translator,
            translation,
        }
    }

    /// Uses code that another processor has decoded and translated, wherever this one's RAM holds the same bytes. What
    /// it had itself is dropped.
    pub fn give_code(&mut self, code: WarmCode) {
        let WarmCode {
            cache,
            translator,
            translation,
        } = code;
        self.translate(translation);
        self.cache = cache;
        if let Some(translator) = &translator {
            translator.attach(&mut self.core);
        }
        self.translator = translator;
    }
}
