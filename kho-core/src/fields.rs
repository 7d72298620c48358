//! Every field of a handover: its name, its place in memory, and the bytes that give it another value.
//!
//! A path names a field: `luo/session[vm]/file[1]/token`, `map/block[3]/order`, `scratch[0]/size`,
//! `memfd[1]/folio[7]/pfn`. Names are those of the kernel's structures and FDT properties. Indices count from 0, in the
//! order of the decoded [`Handover`]. What is part of an FDT's own structure follows a colon: `fdt:totalsize`,
//! `fdt/LUO:name`, `fdt/LUO/preserved-data:length`.
//!
//! | path | what |
//! | --- | --- |
//! | `setup_data/...` | the node that tells the new kernel; only if its address is given |
//! | `scratch[i]/...` | the scratch areas |
//! | `fdt...` | the KHO FDT |
//! | `map/table[i]/entry[j]`, `map/chunk[i]/...` | tables of the radix map that are not zero; chunks of kho-v1 |
//! | `map/bitmap[i]/word[j]` | 64 bits of a bitmap, unless they are zero |
//! | `map/block[i]/preserved`, `/address`, `/order` | a preserved block: its bit, and where that bit is |
//! | `luo...` | sessions by name (by index if the name is not plain or not unique), their files, FLBs |
//! | `memfd[i]/...` | memfds, counted over all sessions |
//! | `memblock...`, `kexec-metadata/...`, `kho_test...` | the other sub-blobs, by their names |
//!
//! An address and an order of a block are no bytes of their own: to set them moves the block's bit to another place.
//!
//! Memory is not trusted: a listing visits each record once and ends.

mod fdt;
mod luo;
mod memfd;
mod place;
#[cfg(test)]
mod tests;
mod walk;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::ControlFlow;

use crate::memory::{MemoryError, PhysicalMemory, len64};
use crate::model::Handover;

/// Default limit of folios, words, blocks and the like that a listing has of one list.
pub const LIST_LIMIT: usize = 64;

/// What a field means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
pub enum Kind {
    /// A physical address.
    Address,
    /// A page frame number.
    Frame,
    /// A size in bytes.
    Size,
    /// A number of records, pages or elements.
    Count,
    /// An offset in bytes, or in pages of a file.
    Offset,
    /// log2 of a number of pages.
    Order,
    /// Bits, each with a meaning of its own.
    Flags,
    /// Any other number.
    Number,
    /// 64 bits of a bitmap, or one.
    Bits,
    /// A string with a terminator.
    Text,
    /// Bytes of unknown meaning.
    Bytes,
}

impl Kind {
    /// Name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Frame => "frame",
            Self::Size => "size",
            Self::Count => "count",
            Self::Offset => "offset",
            Self::Order => "order",
            Self::Flags => "flags",
            Self::Number => "number",
            Self::Bits => "bits",
            Self::Text => "text",
            Self::Bytes => "bytes",
        }
    }

    /// Whether the value is a number.
    pub const fn is_number(self) -> bool {
        !matches!(self, Self::Text | Self::Bytes)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Byte order of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum ByteOrder {
    /// As the kernel's structures and the values of KHO's properties.
    Little,
    /// As the structure of an FDT.
    Big,
}

/// Where the value of a field is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum Place {
    /// In bytes, all of them or some of their bits.
    Bytes {
        /// Physical address of the first byte.
        at: u64,
        /// Number of bytes; at most 8 for a number.
        width: usize,
        /// Their order.
        order: ByteOrder,
        /// Lowest bit of the value in the number that the bytes are.
        shift: u32,
        /// Number of bits of the value.
        bits: u32,
    },
    /// In the place of a preserved block's bit. The value is the block's address, or its order.
    Block {
        /// The block.
        block: crate::Block,
    },
}

/// A field.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Field {
    /// Its name.
    pub path: String,
    /// What it means.
    pub kind: Kind,
    /// Where it is.
    pub place: Place,
    /// Its value.
    pub value: Value,
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum Value {
    /// Of a number.
    Number(u64),
    /// Of text and bytes: all bytes of the field, terminator and padding included.
    Bytes(Vec<u8>),
}

/// Bytes of text without its terminator and the padding behind it.
pub fn unpadded(bytes: &[u8]) -> &[u8] {
    let last = bytes.iter().rposition(|byte| *byte != 0);
    last.and_then(|last| bytes.get(..=last)).unwrap_or(&[])
}

/// Bytes to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Physical address of the first byte.
    pub at: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Why a field cannot be found or cannot have a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// No field has this path.
    #[error("the handover has no field \"{path}\"")]
    Unknown {
        /// The path.
        path: String,
    },
    /// The value has more bits or bytes than the field.
    #[error("\"{path}\" has {room} {unit}, the value has more")]
    TooWide {
        /// The field.
        path: String,
        /// What it has room for.
        room: u32,
        /// Unit of that.
        unit: &'static str,
    },
    /// A number for text, or bytes for a number.
    #[error("\"{path}\" is {kind}, the value is not")]
    OtherKind {
        /// The field.
        path: String,
        /// What it is.
        kind: Kind,
    },
    /// A block's bit would be in a bitmap that the map does not have.
    #[error("the map has no bitmap with a bit for the block {block}")]
    NoBitmap {
        /// The block.
        block: crate::Block,
    },
    /// Memory cannot be read.
    #[error("the bytes of the field cannot be read")]
    Memory(#[from] MemoryError),
}

impl Field {
    /// Physical address and number of the bytes that hold the value. For a block's address or order these are those of
    /// its bit.
    pub fn bytes_in(&self, handover: &Handover) -> Option<(u64, usize)> {
        match self.place {
            Place::Bytes { at, width, .. } => Some((at, width)),
            Place::Block { block } => place::bit_of(handover, block).map(|bit| (bit.at, 1)),
        }
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<u64> {
        match self.value {
            Value::Number(number) => Some(number),
            Value::Bytes(_) => None,
        }
    }

    /// The value that memory has now; `None` for a block's address or order, and if the bytes cannot be read.
    pub fn read(&self, memory: &dyn PhysicalMemory) -> Option<Value> {
        match self.place {
            Place::Bytes {
                at,
                width,
                order,
                shift,
                bits,
            } => place::value(self.kind, &place::read(memory, at, width)?, order, (shift, bits)),
            Place::Block { .. } => None,
        }
    }

    /// The largest number that fits.
    pub fn largest(&self) -> u64 {
        match self.place {
            Place::Bytes { bits, .. } => ones(bits),
            Place::Block { .. } => u64::MAX,
        }
    }

    /// The writes that give the field a value. `memory` is the memory that `handover` was read from.
    pub fn set(
        &self,
        value: &Value,
        handover: &Handover,
        memory: &dyn PhysicalMemory,
    ) -> Result<Vec<Write>, FieldError> {
        place::set(self, value, handover, memory)
    }

    /// The writes that flip bits of a number: those that are set in `mask`.
    pub fn flip(
        &self,
        mask: u64,
        handover: &Handover,
        memory: &dyn PhysicalMemory,
    ) -> Result<Vec<Write>, FieldError> {
        let number = self.number().ok_or_else(|| self.other_kind())?;
        self.set(&Value::Number(number ^ mask), handover, memory)
    }

    fn other_kind(&self) -> FieldError {
        FieldError::OtherKind {
            path: self.path.clone(),
            kind: self.kind,
        }
    }
}

/// A number of low bits, all set.
fn ones(bits: u32) -> u64 {
    u64::MAX.checked_shr(64_u32.saturating_sub(bits)).unwrap_or(0)
}

/// A handover, and where it was read from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The handover.
    pub handover: &'a Handover,
    /// The memory that it was read from.
    pub memory: &'a dyn PhysicalMemory,
    /// Address of the `setup_data` node that points to it; its fields are left out if unknown.
    pub setup_data: Option<u64>,
}

impl Source<'_> {
    /// Visits the fields, at most `limit` items of each list, until `visit` breaks.
    pub fn each(&self, limit: usize, visit: &mut dyn FnMut(Field) -> ControlFlow<()>) {
        // Breaking is the visitor's own doing.
        let _ = walk::Walk::new(self, limit, visit).all();
    }

    /// The fields, at most `limit` items of each list.
    pub fn list(&self, limit: usize) -> Vec<Field> {
        let mut fields = Vec::new();
        self.each(limit, &mut |field| {
            fields.push(field);
            ControlFlow::Continue(())
        });
        fields
    }

    /// The field of this path. A session may be named by its index, too.
    pub fn find(&self, path: &str) -> Result<Field, FieldError> {
        let path = luo::with_names(path, self.handover.sessions());
        let mut found = None;
        self.each(usize::MAX, &mut |field| {
            if field.path == path {
                found = Some(field);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found.ok_or(FieldError::Unknown { path })
    }
}

/// Value of a number out of its bytes.
fn decode(bytes: &[u8], order: ByteOrder) -> u64 {
    let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    match order {
        ByteOrder::Little => bytes.iter().rev().fold(0, fold),
        ByteOrder::Big => bytes.iter().fold(0, fold),
    }
}

/// Bytes of a number.
fn encode(number: u64, width: usize, order: ByteOrder) -> Vec<u8> {
    let mut bytes: Vec<u8> = number.to_le_bytes().into_iter().take(width).collect();
    if order == ByteOrder::Big {
        bytes.reverse();
    }
    bytes
}

/// Bits of some bytes; at most 64.
fn bits_of(width: usize) -> u32 {
    u32::try_from(len64(width).saturating_mul(8).min(64)).unwrap_or(64)
}
