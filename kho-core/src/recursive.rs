//! Recursive FDTs: the form of handover that the first discussions of KHO proposed.
//!
//! Each object writes a small FDT of its own, so that many objects can be serialised in parallel. Its node in the
//! parent lists the pages of that FDT, which need not be contiguous, in the property `kho,recursive-fdt`. Small
//! children are ordinary nodes of the parent. *Anchor pages* list the pages of a root FDT of more than one page: each
//! holds the address of the next anchor page and then, up to the first zero, addresses of FDT pages.
//!
//! The design was never merged in this form. Its examples write the addresses as cells, big-endian; the patches
//! wrote native numbers. The reader takes whichever names RAM.

use alloc::string::String;
use alloc::vec::Vec;

use crate::abi::{PAGE_BYTES, PAGE_SIZE};
use crate::bytes::word;
use crate::fdt::{self, Fdt, Node, Property};
use crate::finding::{Findings, Rule};
use crate::memory::{PhysicalMemory, Region, len64};
use crate::owners::Owner;
use crate::read::{Context, MAX_FDT_SIZE};

/// The property that names the pages of a child FDT.
pub const PROP_RECURSIVE_FDT: &str = "kho,recursive-fdt";
/// Maximum depth of nested FDTs; deeper ones are not followed.
pub const MAX_NESTING: usize = 16;

/// How to reach the root FDT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The page at this address holds all of it.
    Page(u64),
    /// The anchor page at this address lists its pages.
    Anchor(u64),
}

/// Order of the bytes of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// Native order, little-endian on x86-64, as the patches wrote it.
    Native,
    /// FDT cells; what the examples show.
    BigEndian,
}

/// A tree of FDTs, all decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecursiveFdt {
    /// Addresses of the anchor pages, when there are some.
    pub anchors: Vec<u64>,
    /// Addresses of the pages of the root FDT.
    pub pages: Vec<u64>,
    /// The root node.
    pub root: FdtNode,
    /// What the reader stumbled over.
    pub findings: Findings,
}

/// A node and all under it, in whichever FDT it lies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FdtNode {
    /// Its name.
    pub name: String,
    /// Physical address of its first token.
    pub at: u64,
    /// Its properties: those of the node in the parent, then those of the child FDT's root.
    pub properties: Vec<FdtProperty>,
    /// Address of the FDT that holds the node's contents; `None` if they are in the parent's FDT.
    pub child: Option<ChildFdt>,
    /// The nodes under it.
    pub children: Vec<FdtNode>,
}

/// A property by value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdtProperty {
    /// Its name.
    pub name: String,
    /// Physical address of its value.
    pub at: u64,
    /// Its value, raw.
    pub value: Vec<u8>,
}

/// The pages of a child FDT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildFdt {
    /// Addresses of its pages.
    pub pages: Vec<u64>,
    /// How the addresses were written.
    pub order: ByteOrder,
}

impl FdtNode {
    /// The value of the property of this name.
    pub fn property(&self, name: &str) -> Option<&[u8]> {
        self.properties
            .iter()
            .find(|property| property.name == name)
            .map(|property| property.value.as_slice())
    }

    /// The child of this name.
    pub fn node(&self, name: &str) -> Option<&FdtNode> {
        self.children.iter().find(|child| child.name == name)
    }
}

/// Reads a tree of FDTs. A branch that cannot be followed gives a finding and stays empty.
pub fn read(memory: &dyn PhysicalMemory, entry: Entry) -> RecursiveFdt {
    let mut context = Context::new(memory);
    let (anchors, pages) = match entry {
        Entry::Page(page) => (Vec::new(), alloc::vec![page]),
        Entry::Anchor(anchor) => anchored(&mut context, anchor),
    };
    let root = fdt(&mut context, &pages, 0).unwrap_or_default();
    RecursiveFdt {
        anchors,
        pages,
        root,
        findings: context.into_parts().0,
    }
}

/// Follows a chain of anchor pages to the pages of an FDT.
fn anchored(context: &mut Context<'_>, anchor: u64) -> (Vec<u64>, Vec<u64>) {
    let (mut anchors, mut pages) = (Vec::new(), Vec::new());
    let mut next = anchor;
    while next != 0 {
        let Some(page) = context.page(next, Owner::KhoFdt, "anchor page") else {
            break;
        };
        anchors.push(next);
        next = word(&page, 0);
        let words = page.chunks_exact(8).skip(1).map(|chunk| word(chunk, 0));
        pages.extend(words.take_while(|address| *address != 0));
    }
    (anchors, pages)
}

/// Reads the FDT in these pages, and the FDTs under it.
fn fdt(context: &mut Context<'_>, pages: &[u64], nesting: usize) -> Option<FdtNode> {
    let what = "recursive FDT";
    let first = pages.first().copied()?;
    if len64(pages.len()) > MAX_FDT_SIZE / PAGE_BYTES || nesting >= MAX_NESTING {
        context.finding(
            Rule::CountFits,
            first,
            what,
            "at most 4,096 pages, nested at most 16 times",
            pages.len(),
        );
        return None;
    }
    let mut bytes = Vec::new();
    for page in pages {
        bytes.extend(context.page(*page, Owner::KhoFdt, what)?);
    }
    let parsed = match Fdt::parse(&bytes) {
        Ok(parsed) => parsed,
        Err(error) => {
            context.finding(Rule::FdtStructure, first, what, "an FDT", error);
            return None;
        }
    };
    if parsed.total_size().div_ceil(PAGE_SIZE) != pages.len() {
        context.finding(
            Rule::CountAgrees,
            first,
            what,
            parsed.total_size().div_ceil(PAGE_SIZE),
            pages.len(),
        );
    }
    Some(node(context, &parsed.root(), pages, nesting))
}

fn node(context: &mut Context<'_>, source: &Node<'_, '_>, pages: &[u64], nesting: usize) -> FdtNode {
    let place = |offset: usize| {
        let page = pages.get(offset / PAGE_SIZE).copied().unwrap_or(0);
        page.saturating_add(len64(offset % PAGE_SIZE))
    };
    let own = |property: &Property<'_>| FdtProperty {
        name: property.name.into(),
        at: place(property.offset),
        value: property.value.into(),
    };
    let in_place = source
        .properties()
        .iter()
        .filter(|property| property.name != PROP_RECURSIVE_FDT);
    let mut decoded = FdtNode {
        name: source.name().into(),
        at: place(source.offset()),
        properties: in_place.map(own).collect(),
        child: None,
        children: source
            .children()
            .map(|child| node(context, &child, pages, nesting))
            .collect(),
    };
    if let Some(link) = source.property(PROP_RECURSIVE_FDT) {
        follow(context, link, place(link.offset), nesting, &mut decoded);
    }
    decoded
}

/// Reads a child FDT and moves the contents of its root into the parent's node.
fn follow(context: &mut Context<'_>, link: &Property<'_>, at: u64, nesting: usize, node: &mut FdtNode) {
    let Some(child) = addresses(context, link.value) else {
        let expected = "page addresses of 8 bytes each, in RAM";
        context.finding(
            Rule::RecordReadable,
            at,
            PROP_RECURSIVE_FDT,
            expected,
            fdt::preview(link.value),
        );
        return;
    };
    if let Some(root) = fdt(context, &child.pages, nesting.saturating_add(1)) {
        node.properties.extend(root.properties);
        node.children.extend(root.children);
    }
    node.child = Some(child);
}

fn addresses(context: &Context<'_>, value: &[u8]) -> Option<ChildFdt> {
    let (words, []) = value.as_chunks::<8>() else {
        return None;
    };
    let is_page = |address: &u64| {
        address.is_multiple_of(PAGE_BYTES) && context.is_ram(&Region::new(*address, PAGE_BYTES))
    };
    let orders = [
        (ByteOrder::Native, u64::from_le_bytes as fn([u8; 8]) -> u64),
        (ByteOrder::BigEndian, u64::from_be_bytes),
    ];
    orders.into_iter().find_map(|(order, decode)| {
        let pages: Vec<u64> = words.iter().map(|word| decode(*word)).collect();
        (!pages.is_empty() && pages.iter().all(is_page)).then_some(ChildFdt { pages, order })
    })
}
