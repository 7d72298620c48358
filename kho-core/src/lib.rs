//! Handover formats of Linux live update: read, verify, build, compare.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used
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
pub use read::{KhoData, ReadError};
pub use verify::{Verdict, verify};
