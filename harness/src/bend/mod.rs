//! Bending a handover: its fields, the wrong values for them, and the bytes to write.

mod literal;
mod values;

use kho_core::fields::{ByteOrder, Field, FieldError, Kind, Place, Source, Value, Write};
use kho_core::owners::Record;
use kho_core::{Handover, Owner, Owners, PhysicalMemory, Region};

use vmm::boot::layout::offset::SETUP_DATA;

use crate::evidence::PAGE;

pub use literal::{literal, written};
pub use values::{Around, NAMES, Named, value, values};

/// Path of the field that points to the first `setup_data` node.
pub const FIRST_NODE: &str = "boot_params/setup_data";

/// A handover whose fields can be bent, and where it was read from.
#[derive(Clone, Copy)]
pub struct Bendable<'a> {
    /// The handover.
    pub handover: &'a Handover,
    /// The memory that it was read from.
    pub memory: &'a dyn PhysicalMemory,
    /// Address of the `setup_data` node that points to it; its fields are left out if unknown.
    pub setup_data: Option<u64>,
    /// Address of the boot parameters that lead to that node, if known.
    pub boot_params: Option<u64>,
}

impl Bendable<'_> {
    /// The fields, at most `limit` of each list; first the pointer in the boot parameters.
    pub fn fields(&self, limit: usize) -> Vec<Field> {
        let listed = self.source().list(limit);
        self.first_node().into_iter().chain(listed).collect()
    }

    /// The field of this path.
    pub fn find(&self, path: &str) -> Result<Field, FieldError> {
        match self.first_node().filter(|_| path == FIRST_NODE) {
            Some(field) => Ok(field),
            None => self.source().find(path),
        }
    }

    /// The writes that give a field a value.
    pub fn writes(&self, field: &Field, value: &Value) -> Result<Vec<Write>, FieldError> {
        field.set(value, self.handover, self.memory)
    }

    /// The wrong values for a field.
    pub fn values(&self, field: &Field) -> Vec<Named> {
        let at = field.bytes_in(self.handover).map(|(at, _)| at);
        values(field, &self.around(), at)
    }

    /// The wrong value of this name for a field.
    pub fn value(&self, field: &Field, name: &str) -> Option<Value> {
        let at = field.bytes_in(self.handover).map(|(at, _)| at);
        value(field, &self.around(), at, name)
    }

    /// Places that pointers can be bent to.
    pub fn around(&self) -> Around {
        let owners = Owners::of(self.handover);
        let data = |record: &&Record| matches!(record.owner, Owner::FileData { .. } | Owner::ReserveMem(_));
        let mut objects = owners.iter().filter(data).map(|record| record.region.start);
        let scratch = self.handover.scratch.first();
        Around {
            ram_end: self.memory.ranges().iter().map(Region::end).max().unwrap_or(0),
            scratch: scratch.map(|area| area.region.start + 16 * PAGE),
            objects: [objects.next(), objects.next()],
            fdt: self.handover.fdt.start,
            map: self.handover.map.root(),
        }
    }

    fn source(&self) -> Source<'_> {
        Source {
            handover: self.handover,
            memory: self.memory,
            setup_data: self.setup_data,
        }
    }

    fn first_node(&self) -> Option<Field> {
        let place = Place::Bytes {
            at: self.boot_params?.checked_add(SETUP_DATA as u64)?,
            width: 8,
            order: ByteOrder::Little,
            shift: 0,
            bits: 64,
        };
        let field = Field {
            path: FIRST_NODE.into(),
            kind: Kind::Address,
            place,
            value: Value::Number(0),
        };
        let value = field.read(self.memory)?;
        Some(Field { value, ..field })
    }
}
