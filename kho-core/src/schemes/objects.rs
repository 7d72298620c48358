//! State of objects other than memory: file descriptors, devices, metadata of page tables.
//!
//! Three encodings of equal objects: an FDT per object and a top level that collects addresses; one big FDT into
//! which a single pass copies all objects; a sequence of records described by a table of fields, as in KSTATE.
//!
//! Functions take slices of objects, so the first and the third encoding can run on any number of threads. The second
//! cannot: there is one FDT, and its size is fixed before the first node is written.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use vm_fdt::FdtWriter;

use crate::abi::PAGE_SIZE;
use crate::build::BuildError;
use crate::build::recursive::{Contents, serialise};
use crate::bytes::{Fields, Text};
use crate::fdt::{Fdt, FdtError, Node};
use crate::memory::len64;
use crate::recursive::ByteOrder;

/// The object to encode, with about the fields of a VFIO device or a memfd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Name, of at most 31 bytes.
    pub name: String,
    /// Eight numbers.
    pub fields: [u64; 8],
}

impl Object {
    /// Some object; different for each number.
    pub fn sample(number: u64) -> Self {
        let field = |index: u64| {
            number
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(u32::from(index.to_le_bytes()[0]))
        };
        let name = alloc::format!("object{number}");
        Self {
            name,
            fields: [0, 1, 2, 3, 4, 5, 6, 7].map(field),
        }
    }
}

/// Names of the properties that hold the fields.
const PROPERTIES: [&str; 8] = [
    "state", "flags", "start", "size", "owner", "token", "parent", "cookie",
];

/// Serialises each object as an FDT of its own. Threads may each take a part of the objects.
pub fn recursive(objects: &[Object]) -> Result<Vec<Vec<u8>>, BuildError> {
    let one = |object: &Object| {
        let properties = PROPERTIES.iter().zip(object.fields);
        let properties = properties
            .map(|(name, value)| ((*name).into(), value.to_le_bytes().to_vec()))
            .collect();
        serialise(
            &Contents {
                properties,
                ..Contents::default()
            },
            ByteOrder::Native,
        )
    };
    objects.iter().map(one).collect()
}

/// The top level: a node per object with the addresses of its pages, which are taken as consecutive.
pub fn recursive_top(objects: &[Object], children: &[Vec<u8>]) -> Result<Vec<u8>, BuildError> {
    let mut top = Contents::default();
    let mut page = 0x10_0000_u64;
    for (object, child) in objects.iter().zip(children) {
        let count = len64(child.len().div_ceil(PAGE_SIZE));
        let pages = (0..count)
            .map(|index| page.saturating_add(index.saturating_mul(len64(PAGE_SIZE))))
            .collect();
        page = page.saturating_add(count.saturating_mul(len64(PAGE_SIZE)));
        top.linked.push((object.name.clone(), pages));
    }
    serialise(&top, ByteOrder::Native)
}

/// Reads objects back from their FDTs and the top level.
pub fn read_recursive(top: &[u8], children: &[Vec<u8>]) -> Result<Vec<Object>, FdtError> {
    let top = Fdt::parse(top)?;
    let mut objects = Vec::new();
    for (node, child) in top.root().children().zip(children) {
        objects.push(object(node.name(), &Fdt::parse(child)?.root()));
    }
    Ok(objects)
}

/// Copies all objects into one FDT of a size fixed beforehand; fails if they do not fit.
pub fn big_fdt(objects: &[Object], size: usize) -> Result<Vec<u8>, BuildError> {
    let mut writer = FdtWriter::new()?;
    let root = writer.begin_node("")?;
    for object in objects {
        let node = writer.begin_node(&object.name)?;
        for (name, value) in PROPERTIES.iter().zip(object.fields) {
            writer.property(name, &value.to_le_bytes())?;
        }
        writer.end_node(node)?;
    }
    writer.end_node(root)?;
    let mut bytes = writer.finish()?;
    if bytes.len() > size {
        let (found, limit) = (len64(bytes.len()), len64(size));
        return Err(BuildError::TooMany {
            what: "bytes of objects",
            found,
            limit,
        });
    }
    bytes.resize(size, 0);
    Ok(bytes)
}

/// Reads objects back from one FDT.
pub fn read_big_fdt(bytes: &[u8]) -> Result<Vec<Object>, FdtError> {
    let fdt = Fdt::parse(bytes)?;
    Ok(fdt
        .root()
        .children()
        .map(|node| object(node.name(), &node))
        .collect())
}

fn object(name: &str, node: &Node<'_, '_>) -> Object {
    let field = |name: &str| {
        node.property(name)
            .and_then(crate::fdt::Property::as_u64)
            .unwrap_or(0)
    };
    Object {
        name: name.to_string(),
        fields: PROPERTIES.map(field),
    }
}

/// A field of a described struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// A string in so many bytes, terminated.
    Text(usize),
    /// A number of eight bytes.
    Number,
}

/// Description of a struct in the manner of KSTATE: an id, a version, and its fields in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// Identifies the struct.
    pub id: u32,
    /// Version of its fields.
    pub version: u32,
    /// The fields.
    pub fields: &'static [Field],
}

/// The description of [`Object`].
pub const OBJECT: Description = Description {
    id: 1,
    version: 1,
    fields: &[
        Field::Text(32),
        Field::Number,
        Field::Number,
        Field::Number,
        Field::Number,
        Field::Number,
        Field::Number,
        Field::Number,
        Field::Number,
    ],
};

impl Description {
    /// Size of the fields, in bytes.
    pub fn size(&self) -> usize {
        let size = |field: &Field| match field {
            Field::Text(size) => *size,
            Field::Number => 8,
        };
        self.fields.iter().map(size).fold(0, usize::saturating_add)
    }
}

/// Appends a record for each object: {`u32` id, `u32` version, `u64` size}, then the fields as described. The records
/// of several threads are joined by concatenation.
pub fn records(objects: &[Object], description: &Description) -> Vec<u8> {
    let size = description.size();
    let mut bytes = Vec::with_capacity(objects.len().saturating_mul(size.saturating_add(16)));
    for object in objects {
        bytes.extend(description.id.to_le_bytes());
        bytes.extend(description.version.to_le_bytes());
        bytes.extend(len64(size).to_le_bytes());
        let mut numbers = object.fields.iter();
        for field in description.fields {
            match field {
                Field::Text(size) => {
                    let end = bytes.len().saturating_add(*size);
                    bytes.extend(object.name.bytes().take(size.saturating_sub(1)));
                    bytes.resize(end, 0);
                }
                Field::Number => bytes.extend(numbers.next().copied().unwrap_or(0).to_le_bytes()),
            }
        }
    }
    bytes
}

/// Reads objects back from records. Skips records of another id or version, whose size it knows from their header.
pub fn read_records(bytes: &[u8], description: &Description) -> Vec<Object> {
    let mut rest = bytes;
    let mut objects = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(16) {
        let mut fields = Fields::new(header);
        let (id, version, size) = (fields.u32(), fields.u32(), fields.u64());
        let Some((record, after)) = after.split_at_checked(crate::memory::clamp(size)) else {
            break;
        };
        rest = after;
        if (id, version) == (description.id, description.version) {
            objects.push(read_record(record, description));
        }
    }
    objects
}

fn read_record(mut record: &[u8], description: &Description) -> Object {
    let mut object = Object {
        name: String::new(),
        fields: [0; 8],
    };
    let mut numbers = object.fields.iter_mut();
    for field in description.fields {
        let size = if let Field::Text(size) = field { *size } else { 8 };
        let Some((value, after)) = record.split_at_checked(size) else {
            break;
        };
        record = after;
        match field {
            Field::Text(_) => object.name = Text::from_field(value).value,
            Field::Number => {
                if let Some(number) = numbers.next() {
                    *number = Fields::new(value).u64();
                }
            }
        }
    }
    object
}
