//! A reader of untrusted flattened device trees.
//!
//! The format is that of the Devicetree Specification 0.4, chapter 5, in big-endian words. [`Fdt::parse`] checks
//! everything once; walking its result cannot fail. Property values stay raw bytes: KHO and LUO write native-endian
//! numbers into them, not cells.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use crate::memory::{clamp, len64};

/// First word of every FDT.
pub const MAGIC: u32 = 0xd00d_feed;
/// Size of the header, in bytes.
pub const HEADER_SIZE: usize = 40;
/// Maximum depth of nested nodes. KHO uses three levels.
pub const MAX_DEPTH: usize = 32;
/// Maximum length of a node's or property's name, in bytes. The specification allows 31.
pub const MAX_NAME: usize = 255;
/// Maximum number of nodes. A decoded node takes more memory than its twelve or more bytes in the FDT, so this bounds
/// memory. KHO uses dozens.
pub const MAX_NODES: usize = 1 << 17;
/// Maximum number of properties, for the same reason.
pub const MAX_PROPERTIES: usize = 1 << 18;
/// The version of the format that this reader expects and every kernel with KHO writes.
pub const VERSION: u32 = 17;

const TOKEN_BEGIN_NODE: u32 = 1;
const TOKEN_END_NODE: u32 = 2;
const TOKEN_PROP: u32 = 3;
const TOKEN_NOP: u32 = 4;
const TOKEN_END: u32 = 9;

/// Why some bytes are not an FDT. Offsets are in bytes from its start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FdtError {
    /// There are fewer bytes than a header has, or than the header states.
    #[error("expected an FDT of {expected} bytes, found only {found}")]
    Short {
        /// Bytes that the header, or the format, asks for.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The first word is not [`MAGIC`].
    #[error("expected FDT magic 0xd00dfeed, found {found:#010x}")]
    Magic {
        /// The word found.
        found: u32,
    },
    /// Neither version 17 of the format nor a later version compatible with it.
    #[error(
        "expected FDT version 17, or a later one compatible with it; found {version}, compatible with {compatible}"
    )]
    Version {
        /// `version` of the header.
        version: u32,
        /// `last_comp_version` of the header.
        compatible: u32,
    },
    /// A block of the FDT lies outside it or is not aligned.
    #[error(
        "the FDT's {block} block at offset {offset:#x}, {size:#x} bytes, is misaligned or outside its {total:#x} bytes"
    )]
    Block {
        /// Which block.
        block: &'static str,
        /// Where the header says it is.
        offset: u64,
        /// How long it is.
        size: u64,
        /// `totalsize` of the header.
        total: u64,
    },
    /// The structure block has the wrong token at this offset.
    #[error("expected {expected} at FDT offset {offset:#x}, found token {found:#x}")]
    Token {
        /// Where.
        offset: usize,
        /// The expected token, in words.
        expected: &'static str,
        /// The token found.
        found: u32,
    },
    /// The structure block ends inside a node or property.
    #[error("the FDT's structure block ends at offset {offset:#x} inside {inside}")]
    Truncated {
        /// Where the thing begins.
        offset: usize,
        /// What it is.
        inside: &'static str,
    },
    /// A name has no terminator, is not UTF-8 or is not in the strings block.
    #[error(
        "the name at FDT offset {offset:#x} is unterminated, longer than {MAX_NAME} bytes, not UTF-8 or out of place"
    )]
    Name {
        /// Where the name is, or should be.
        offset: usize,
    },
    /// More than [`MAX_NODES`] nodes or [`MAX_PROPERTIES`] properties.
    #[error("the FDT has more than {limit} {what}, of which the next is at offset {offset:#x}")]
    TooMany {
        /// Where the first one too many begins.
        offset: usize,
        /// `nodes` or `properties`.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// More levels than [`MAX_DEPTH`].
    #[error("the FDT's nodes nest deeper than {MAX_DEPTH} at offset {offset:#x}")]
    Depth {
        /// Where the node too deep begins.
        offset: usize,
    },
}

/// A property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Property<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value, raw.
    pub value: &'a [u8],
    /// Offset of the value from the start of the FDT, in bytes.
    pub offset: usize,
}

impl Property<'_> {
    /// The value as a native (little-endian) 64-bit number; `None` if it has another length.
    pub fn as_u64(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_le_bytes)
    }

    /// The value as a native (little-endian) 32-bit number; `None` if it has another length.
    pub fn as_u32(&self) -> Option<u32> {
        self.value.try_into().ok().map(u32::from_le_bytes)
    }

    /// The value as one terminated string.
    pub fn as_str(&self) -> Option<&str> {
        let (last, text) = self.value.split_last()?;
        (*last == 0 && !text.contains(&0))
            .then(|| core::str::from_utf8(text).ok())
            .flatten()
    }
}

#[derive(Debug, Clone)]
struct NodeEntry<'a> {
    name: &'a str,
    offset: usize,
    depth: usize,
    properties: Range<usize>,
    /// Index of the first node that is not inside this one.
    after: usize,
}

/// A checked FDT.
#[derive(Debug, Clone)]
pub struct Fdt<'a> {
    total_size: usize,
    nodes: Vec<NodeEntry<'a>>,
    properties: Vec<Property<'a>>,
}

/// A node of a checked FDT.
#[derive(Debug, Clone, Copy)]
pub struct Node<'f, 'a> {
    fdt: &'f Fdt<'a>,
    index: usize,
}

/// Returns `totalsize` of the FDT that begins with these bytes, if its header has the right magic.
pub fn total_size(header: &[u8]) -> Result<u32, FdtError> {
    let short = FdtError::Short {
        expected: len64(HEADER_SIZE),
        found: len64(header.len()),
    };
    let magic = be32(header, 0).ok_or(short.clone())?;
    if magic != MAGIC {
        return Err(FdtError::Magic { found: magic });
    }
    if header.len() < HEADER_SIZE {
        return Err(short);
    }
    be32(header, 4).ok_or(short)
}

impl<'a> Fdt<'a> {
    /// Checks the FDT at the start of `bytes`; bytes after it are ignored.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FdtError> {
        let total = u64::from(total_size(bytes)?);
        let short = FdtError::Short {
            expected: total.max(len64(HEADER_SIZE)),
            found: len64(bytes.len()),
        };
        let bytes = bytes
            .get(..clamp(total))
            .filter(|bytes| bytes.len() >= HEADER_SIZE)
            .ok_or(short)?;
        let word = |index: usize| be32(bytes, index.saturating_mul(4)).unwrap_or(0);
        let (version, compatible) = (word(5), word(6));
        if version < VERSION || compatible > VERSION {
            return Err(FdtError::Version { version, compatible });
        }
        let structure = block(bytes, "structure", word(2), word(9), 4)?;
        let strings = block(bytes, "strings", word(3), word(8), 1)?;
        block(bytes, "memory reservation", word(4), 16, 8)?;
        let mut parser = Parser {
            bytes: bytes.get(..structure.end).unwrap_or_default(),
            strings: bytes.get(strings.clone()).unwrap_or_default(),
            strings_offset: strings.start,
            at: structure.start,
            fdt: Fdt {
                total_size: bytes.len(),
                nodes: Vec::new(),
                properties: Vec::new(),
            },
        };
        parser.run()?;
        Ok(parser.fdt)
    }

    /// Size of the whole FDT in bytes.
    pub fn total_size(&self) -> usize {
        self.total_size
    }

    /// The root node.
    pub fn root(&self) -> Node<'_, 'a> {
        Node { fdt: self, index: 0 }
    }
}

impl<'f, 'a> Node<'f, 'a> {
    fn entry(&self) -> Option<&'f NodeEntry<'a>> {
        self.fdt.nodes.get(self.index)
    }

    /// Name of the node; empty for the root.
    pub fn name(&self) -> &'a str {
        self.entry().map_or("", |entry| entry.name)
    }

    /// Offset of the node's first token from the start of the FDT, in bytes.
    pub fn offset(&self) -> usize {
        self.entry().map_or(0, |entry| entry.offset)
    }

    /// The node's own properties.
    pub fn properties(&self) -> &'f [Property<'a>] {
        self.entry()
            .and_then(|entry| self.fdt.properties.get(entry.properties.clone()))
            .unwrap_or_default()
    }

    /// The property of this name.
    pub fn property(&self, name: &str) -> Option<&'f Property<'a>> {
        self.properties().iter().find(|property| property.name == name)
    }

    /// The first string of `compatible`.
    pub fn compatible(&self) -> Option<&'a str> {
        let value = self.property("compatible")?.value;
        let first = value
            .split(|&byte| byte == 0)
            .next()
            .filter(|first| first.len() < value.len())?;
        core::str::from_utf8(first).ok()
    }

    /// The node's children, in order.
    pub fn children(&self) -> Children<'f, 'a> {
        let after = self.entry().map_or(0, |entry| entry.after);
        Children {
            fdt: self.fdt,
            next: self.index.saturating_add(1),
            after,
        }
    }

    /// The child of this name.
    pub fn child(&self, name: &str) -> Option<Node<'f, 'a>> {
        self.children().find(|child| child.name() == name)
    }

    /// Number of nodes above this one.
    pub fn depth(&self) -> usize {
        self.entry().map_or(0, |entry| entry.depth)
    }
}

/// Iterator over the children of a node.
#[derive(Debug, Clone)]
pub struct Children<'f, 'a> {
    fdt: &'f Fdt<'a>,
    next: usize,
    after: usize,
}

impl<'f, 'a> Iterator for Children<'f, 'a> {
    type Item = Node<'f, 'a>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.after {
            return None;
        }
        let node = Node {
            fdt: self.fdt,
            index: self.next,
        };
        self.next = node.entry()?.after;
        Some(node)
    }
}

struct Parser<'a> {
    /// The FDT up to the end of its structure block.
    bytes: &'a [u8],
    strings: &'a [u8],
    strings_offset: usize,
    at: usize,
    fdt: Fdt<'a>,
}

impl<'a> Parser<'a> {
    fn run(&mut self) -> Result<(), FdtError> {
        let mut open: Vec<usize> = Vec::new();
        loop {
            let offset = self.at;
            let token = self.word("the list of tokens")?;
            let unexpected = |expected| {
                Err(FdtError::Token {
                    offset,
                    expected,
                    found: token,
                })
            };
            match token {
                TOKEN_NOP => {}
                TOKEN_BEGIN_NODE => {
                    if open.is_empty() && !self.fdt.nodes.is_empty() {
                        return unexpected("the end of the tree");
                    }
                    if open.len() >= MAX_DEPTH {
                        return Err(FdtError::Depth { offset });
                    }
                    self.begin_node(offset, open.len())?;
                    open.push(self.fdt.nodes.len().saturating_sub(1));
                }
                TOKEN_END_NODE => {
                    let Some(index) = open.pop() else {
                        return unexpected("the root node or the end of the tree");
                    };
                    let after = self.fdt.nodes.len();
                    if let Some(node) = self.fdt.nodes.get_mut(index) {
                        node.after = after;
                    }
                }
                TOKEN_PROP => {
                    // Properties come before child nodes, so the node is the last one that began.
                    let last = self.fdt.nodes.len().checked_sub(1);
                    if last.is_none() || open.last().copied() != last {
                        return unexpected("a node, or the end of one");
                    }
                    self.property()?;
                }
                TOKEN_END if open.is_empty() && !self.fdt.nodes.is_empty() => return Ok(()),
                TOKEN_END => return unexpected("the end of a node"),
                _ => return unexpected("a token"),
            }
        }
    }

    fn word(&mut self, inside: &'static str) -> Result<u32, FdtError> {
        let word = be32(self.bytes, self.at).ok_or(FdtError::Truncated {
            offset: self.at,
            inside,
        })?;
        self.at = self.at.saturating_add(4);
        Ok(word)
    }

    fn begin_node(&mut self, offset: usize, depth: usize) -> Result<(), FdtError> {
        if self.fdt.nodes.len() == MAX_NODES {
            return Err(FdtError::TooMany {
                offset,
                what: "nodes",
                limit: MAX_NODES,
            });
        }
        let name = terminated(self.bytes, self.at).ok_or(FdtError::Name { offset: self.at })?;
        self.at = align4(self.at.saturating_add(name.len()).saturating_add(1));
        let properties = self.fdt.properties.len()..self.fdt.properties.len();
        self.fdt.nodes.push(NodeEntry {
            name,
            offset,
            depth,
            properties,
            after: 0,
        });
        Ok(())
    }

    fn property(&mut self) -> Result<(), FdtError> {
        let begin = self.at.saturating_sub(4);
        if self.fdt.properties.len() == MAX_PROPERTIES {
            return Err(FdtError::TooMany {
                offset: begin,
                what: "properties",
                limit: MAX_PROPERTIES,
            });
        }
        let inside = "a property";
        let length = self.word(inside)?;
        let name_offset = self.word(inside)?;
        let offset = self.at;
        let end = offset.saturating_add(clamp(u64::from(length)));
        let value = self.bytes.get(offset..end).ok_or(FdtError::Truncated {
            offset: begin,
            inside,
        })?;
        let name_offset = clamp(u64::from(name_offset));
        let name = terminated(self.strings, name_offset).ok_or(FdtError::Name {
            offset: self.strings_offset.saturating_add(name_offset),
        })?;
        self.at = align4(end);
        self.fdt.properties.push(Property { name, value, offset });
        if let Some(node) = self.fdt.nodes.last_mut() {
            node.properties.end = self.fdt.properties.len();
        }
        Ok(())
    }
}

fn block(
    bytes: &[u8],
    name: &'static str,
    offset: u32,
    size: u32,
    alignment: usize,
) -> Result<Range<usize>, FdtError> {
    let (start, length) = (clamp(u64::from(offset)), clamp(u64::from(size)));
    let end = start.saturating_add(length);
    if end > bytes.len() || start < HEADER_SIZE || !start.is_multiple_of(alignment) {
        return Err(FdtError::Block {
            block: name,
            offset: u64::from(offset),
            size: u64::from(size),
            total: len64(bytes.len()),
        });
    }
    Ok(start..end)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk::<4>()
        .map(|word| u32::from_be_bytes(*word))
}

/// The string at an offset. The search for its terminator is bounded. Otherwise a small FDT whose properties all
/// share one huge name would take quadratic time.
fn terminated(bytes: &[u8], at: usize) -> Option<&str> {
    let bytes = bytes.get(at..at.saturating_add(MAX_NAME).saturating_add(1).min(bytes.len()))?;
    let length = bytes.iter().position(|&byte| byte == 0)?;
    core::str::from_utf8(bytes.get(..length)?).ok()
}

fn align4(offset: usize) -> usize {
    offset.saturating_add(3) & !3
}

/// The first bytes of a value in hexadecimal, for messages.
pub(crate) fn preview(value: &[u8]) -> String {
    let mut shown = String::new();
    for byte in value.iter().take(32) {
        shown.push_str(&format!("{byte:02x}"));
    }
    if value.len() > 32 {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests;
