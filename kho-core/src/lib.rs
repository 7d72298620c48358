//! The handover of a Linux live update: read it, verify it, build it, compare it.
//!
//! In a live update one kernel starts the next with kexec and hands over memory that must survive. Records in that
//! memory describe what is handed over. This crate reads every format of these records that a released kernel has
//! written, and some that were only proposed. It does no I/O. Memory comes in through [`PhysicalMemory`] and is not
//! trusted: whatever it holds, reading terminates, does not panic, and allocates at most a small multiple of the
//! bytes read.
//!
//! # The handover, from the top
//!
//! ```text
//! setup_data, type 10          struct kho_data {fdt, fdt size, scratch, scratch size}          KhoData
//!  ├─ scratch array            {address, size} of memory the new kernel may use at once        Handover::scratch
//!  └─ KHO FDT                  one page, compatible = "kho-v1" .. "kho-v4"                     Handover
//!      ├─ preserved-memory-map address of the map of all that must survive                     PreservedMap
//!      └─ a node per subsystem address (and from kho-v3 on the size) of its sub-blob           model::SubBlob
//!          ├─ "LUO"            sessions, their files, FLBs                                     model::Luo
//!          │   └─ a memfd      record, list of folios in vmalloc'ed pages, the folios          model::Memfd
//!          ├─ "memblock"       FDT of the reserve_mem= regions                                 model::Memblock
//!          └─ "kexec-metadata" release of the old kernel, number of kexecs                     model::KexecMetadata
//! ```
//!
//! The **FDT** is a container only: numbers in properties are native, not cells. Each subsystem's blob has a format
//! of its own. Before kho-v3 no record states the size of a blob, so it must be an FDT, whose header does.
//!
//! **Scratch** is memory that the old kernel kept free of anything that could be preserved. The new kernel allocates
//! from scratch alone until it has read the map. The new kernel's image and the scratch array itself are loaded
//! there.
//!
//! The **map** names naturally aligned blocks of `2^order` pages. It does not list its own pages: the new kernel
//! reads them before it allocates outside scratch, and then frees them. It lists the pages of all other records. Its
//! format changed twice, once without a new version string:
//!
//! * kho-v1 (6.17 to 6.19): a list of one-page *chunks*, each of one order: {next, order, count}, then {first
//!   address, bitmap address}. Bitmaps have 512 bytes in 6.17 and 4,096 bytes from 6.18 on, and no field says which.
//!   The reader infers the size from the bitmaps' addresses, and reports a finding if they allow both
//!   ([`Rule::BitmapSizeCertain`]).
//! * from kho-v2 on (7.1, 7.2, 7.3): a *radix tree* of six levels, one page per node, the leaves bitmaps. A key holds
//!   address and order in one number ([`radix_key`]), so all orders share the upper tables.
//!
//! **LUO**, the Live Update Orchestrator, keeps *sessions* for user space. A session has *files*, each under a *token*;
//! the file's *handler* leaves a handle. luo-v1 (6.19, 7.1) is an FDT that points to arrays; luo-v5 (7.2, 7.3) a struct and
//! linked one-page blocks. An *FLB* is state that several files share.
//!
//! A **memfd**'s record has its size, its position, its seals (since memfd-v2), and the descriptor of a vmalloc'ed
//! area. The descriptor leads to a chain of chunks, the chunks list the area's pages, and the pages hold {frame,
//! flags, index in the file} of each folio. Only the map tells how large a folio is.
//!
//! # Where to find it
//!
//! | to | use |
//! | --- | --- |
//! | read a handover | [`Handover::read`], [`find::find`] if its address is unknown |
//! | know what survives | [`PreservedMap`]: blocks, extents, lookup; [`PageSet`] and [`FreeLists`] for large maps |
//! | know who owns a page | [`Owners`] |
//! | judge it | [`verify()`], rules in [`Rule`] |
//! | show it | [`tree::tree`] |
//! | make one | [`Blueprint`], [`build()`], [`build::recursive`] |
//! | compare two | [`diff()`] |
//! | know every field by name, and set one | [`fields`] |
//! | measure the next ABI | [`schemes`] |
//! | look a number up | [`abi`], each constant with the kernel header that it is from |
//!
//! # Example
//!
//! ```
//! use kho_core::{Abi, Block, Blueprint, FreeRegions, Handover, Region, SliceMemory, build, verify};
//!
//! // 16 MiB of RAM with a handover in it that preserves one page.
//! let mut ram = SliceMemory::new(0, vec![0; 16 << 20]);
//! let plan = Blueprint { blocks: vec![Block::new(0x80_0000, 0)], ..Blueprint::default() };
//! let mut free = FreeRegions::new(vec![Region::new(0x10_0000, 0x10_0000)]);
//! let entry = build(&plan, Abi::KhoV4, &mut ram, &mut free)?;
//!
//! let handover = Handover::read(&ram, entry.fdt, entry.scratch)?;
//! assert!(handover.map.is_preserved(0x80_0000));
//! assert!(verify(&handover, &ram).is_sound());
//! println!("{}", kho_core::tree::tree(&handover, 16));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Limits
//!
//! x86-64 with pages of 4 KiB. Files of handlers other than memfd are listed, but their records are not decoded.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod abi;
pub mod blueprint;
pub mod build;
mod bytes;
pub mod diff;
pub mod fdt;
pub mod fields;
pub mod find;
pub mod finding;
pub mod free_lists;
pub mod map;
pub mod memory;
pub mod model;
pub mod owners;
pub mod page_set;
pub mod radix_key;
pub mod read;
pub mod recursive;
pub mod schemes;
mod setup_data;
pub mod tree;
pub mod verify;

pub use blueprint::Blueprint;
pub use build::{Abi, BuildError, FreeRegions, PageAllocator, build};
pub use diff::{Diff, diff};
pub use finding::{Finding, Findings, Rule, Severity};
pub use free_lists::FreeLists;
pub use map::{Block, PreservedMap};
pub use memory::{MemoryError, PhysicalMemory, PhysicalMemoryMut, Region, SliceMemory, SparseMemory};
pub use model::Handover;
pub use owners::{Owner, Owners};
pub use page_set::PageSet;
pub use read::ReadError;
pub use setup_data::KhoData;
pub use verify::{Verdict, verify};
