//! The handover of a Linux live update: read it, verify it, build it, compare it.
//!
//! In a live update one kernel starts the next with kexec and hands memory over that must survive. What is handed over
//! is described in that memory itself. This crate knows the description in every form that a released kernel has
//! written, and the forms that were only discussed. It does no I/O and trusts nothing: memory comes in through
//! [`PhysicalMemory`], and whatever is in it, reading ends, without a panic and with no more memory than a small multiple
//! of what was read.
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
//! The **FDT** is a container only: numbers in properties are native, not cells. Each subsystem's blob is in its own
//! format; before kho-v3 nothing states its size, so that it has to be an FDT, which knows its own.
//!
//! **Scratch** is memory that the old kernel kept free of anything that could be preserved. The new kernel boots in it,
//! until it has read the map and knows what else it may touch. The new kernel's image and the scratch array itself
//! are loaded there.
//!
//! The **map** names naturally aligned blocks of `2^order` pages. It does not preserve itself: its pages are read early,
//! from scratch, and then let go. All other records are in it. Its format changed twice while the name of the version
//! did not always:
//!
//! * kho-v1 (6.17 to 6.19): a list of one-page *chunks*, each of one order: {next, order, count}, then {first address,
//!   bitmap address}. Bitmaps have 512 bytes in 6.17 and 4,096 from 6.18 on, and nothing says which; the reader tells
//!   them apart by where they lie, and says so when it cannot ([`Rule::BitmapSizeCertain`]).
//! * from kho-v2 on (7.1, 7.2, 7.3): a *radix tree* of six levels, one page per node, the leaves bitmaps. The key holds
//!   address and order in one number ([`radix_key`]), so that the upper tables serve all orders.
//!
//! **LUO**, the Live Update Orchestrator, keeps *sessions* for user space. A session has *files*, each under a *token*;
//! the file's *handler* leaves a handle. luo-v1 (6.19, 7.1) is an FDT that points to arrays; luo-v5 (7.2, 7.3) a struct and
//! linked one-page blocks. An *FLB* is state that several files share.
//!
//! A **memfd**'s record has size, position, since memfd-v2 seals, and the descriptor of an area of vmalloc'ed pages: a
//! chain of chunks that list the pages, which hold {frame, flags, index in the file} of each folio. How large a folio is
//! stands nowhere but in the map.
//!
//! # What there is
//!
//! | to | use |
//! | --- | --- |
//! | read a handover | [`Handover::read`], [`find::find`] when nobody tells where it is |
//! | know what survives | [`PreservedMap`]: blocks, extents, lookup; [`PageSet`] and [`FreeLists`] when it must be fast |
//! | know whose a page is | [`Owners`] |
//! | judge it | [`verify()`], rules in [`Rule`] |
//! | show it | [`tree::tree`] |
//! | make one | [`Blueprint`], [`build()`], [`build::recursive`] |
//! | compare two | [`diff()`] |
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
//! x86-64 with pages of 4 KiB. Handlers other than memfd are listed and their records left alone.
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
