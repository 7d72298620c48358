//! The fields of memfds, and of the memory that lists their folios.

use alloc::format;
use core::ops::ControlFlow;

use super::Kind;
use super::walk::{Part, Walk};
use crate::abi::memfd::FOLIO_FRAME_BITS;
use crate::abi::vmalloc::CHUNK_ADDRESSES;
use crate::memory::len64;
use crate::model::{Memfd, MemfdVersion, Vmalloc};

impl Walk<'_, '_> {
    pub(super) fn memfds(&mut self) -> ControlFlow<()> {
        let sessions = self.handover.sessions();
        let files = sessions.iter().flat_map(|session| &session.files);
        let memfds = files.filter_map(|file| file.memfd());
        for (index, memfd) in memfds.enumerate().take(self.limit) {
            self.memfd(&format!("memfd[{index}]"), memfd)?;
        }
        ControlFlow::Continue(())
    }

    fn memfd(&mut self, prefix: &str, memfd: &Memfd) -> ControlFlow<()> {
        let parts = match memfd.version {
            MemfdVersion::V1 => MEMFD_V1,
            MemfdVersion::V2 => MEMFD_V2,
        };
        self.record(prefix, memfd.at, parts)?;
        self.vmalloc(&format!("{prefix}/folios"), &memfd.list)?;
        for index in 0..memfd.folios.len().min(self.limit) {
            let Some(at) = memfd.record_of(index) else { break };
            let folio = format!("{prefix}/folio[{index}]");
            let flag_bits = 64_u32.saturating_sub(FOLIO_FRAME_BITS);
            self.part_of(
                format!("{folio}/pfn"),
                Kind::Frame,
                (at, 8),
                (0, FOLIO_FRAME_BITS),
            )?;
            let flags = (FOLIO_FRAME_BITS, flag_bits);
            self.part_of(format!("{folio}/flags"), Kind::Flags, (at, 8), flags)?;
            let index_at = at.saturating_add(8);
            self.bytes(format!("{folio}/index"), Kind::Offset, index_at, 8)?;
        }
        ControlFlow::Continue(())
    }

    /// Visits a descriptor and the chunks behind it.
    pub(super) fn vmalloc(&mut self, prefix: &str, area: &Vmalloc) -> ControlFlow<()> {
        self.record(prefix, area.at, DESCRIPTOR)?;
        for (index, chunk) in area.chunks.iter().enumerate().take(self.limit) {
            let prefix = format!("{prefix}/chunk[{index}]");
            self.bytes(format!("{prefix}/next"), Kind::Address, *chunk, 8)?;
            for place in 0..CHUNK_ADDRESSES.min(self.limit) {
                let at = chunk.saturating_add(len64(place).saturating_add(1).saturating_mul(8));
                if self.number_at(at).is_none_or(|run| run == 0) {
                    break;
                }
                self.bytes(format!("{prefix}/phys[{place}]"), Kind::Address, at, 8)?;
            }
        }
        ControlFlow::Continue(())
    }
}

/// `struct memfd_luo_ser` of memfd-v1, without its vmalloc descriptor (include/linux/kho/abi/memfd.h).
const MEMFD_V1: &[Part] = &[
    ("pos", Kind::Offset, 8),
    ("size", Kind::Size, 8),
    ("nr_folios", Kind::Count, 8),
];
/// The same of memfd-v2.
const MEMFD_V2: &[Part] = &[
    ("pos", Kind::Offset, 8),
    ("size", Kind::Size, 8),
    ("seals", Kind::Flags, 4),
    ("flags", Kind::Flags, 4),
    ("nr_folios", Kind::Count, 8),
];
/// `struct kho_vmalloc`.
const DESCRIPTOR: &[Part] = &[
    ("first", Kind::Address, 8),
    ("total_pages", Kind::Count, 4),
    ("flags", Kind::Flags, 2),
    ("order", Kind::Order, 2),
];
