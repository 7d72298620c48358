//! The bytes that give a field another value.

use alloc::vec;
use alloc::vec::Vec;

use super::{ByteOrder, Field, FieldError, Kind, Place, Value, Write, decode, encode, ones};
use crate::map::Block;
use crate::memory::{PhysicalMemory, clamp, len64};
use crate::model::Handover;

pub(super) fn set(
    field: &Field,
    value: &Value,
    handover: &Handover,
    memory: &dyn PhysicalMemory,
) -> Result<Vec<Write>, FieldError> {
    match (field.place, value) {
        (
            Place::Bytes {
                at,
                width,
                order,
                shift,
                bits,
            },
            Value::Number(number),
        ) if field.kind.is_number() => {
            if *number > ones(bits) {
                return Err(too_wide(field, bits, "bits"));
            }
            let mut bytes = vec![0; width];
            memory.read(at, &mut bytes)?;
            let mask = ones(bits).checked_shl(shift).unwrap_or(0);
            let others = decode(&bytes, order) & !mask;
            let number = others | (number.checked_shl(shift).unwrap_or(0) & mask);
            let bytes = encode(number, width, order);
            Ok(vec![Write { at, bytes }])
        }
        (Place::Bytes { at, width, .. }, Value::Bytes(bytes)) if !field.kind.is_number() => {
            if bytes.len() > width {
                let room = u32::try_from(width).unwrap_or(u32::MAX);
                return Err(too_wide(field, room, "bytes"));
            }
            let mut bytes = bytes.clone();
            bytes.resize(width, 0);
            Ok(vec![Write { at, bytes }])
        }
        (Place::Block { block }, Value::Number(number)) => {
            let moved = match field.kind {
                Kind::Order => Block {
                    order: u8::try_from(*number).map_err(|_| too_wide(field, 8, "bits"))?,
                    ..block
                },
                _ => Block {
                    address: *number,
                    ..block
                },
            };
            move_block(block, moved, handover, memory)
        }
        _ => Err(field.other_kind()),
    }
}

fn too_wide(field: &Field, room: u32, unit: &'static str) -> FieldError {
    FieldError::TooWide {
        path: field.path.clone(),
        room,
        unit,
    }
}

/// A bit of a bitmap in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bit {
    /// Address of its byte.
    pub(super) at: u64,
    /// Its place in the byte.
    pub(super) shift: u32,
}

/// The bit of a block, if a bitmap of the map has one for it, set or not.
pub(super) fn bit_of(handover: &Handover, block: Block) -> Option<Bit> {
    let bitmaps = handover.map.bitmaps().iter();
    let mut of_order = bitmaps.filter(|bitmap| bitmap.order == block.order);
    let bitmap = of_order.find(|bitmap| bitmap.window().contains(block.address))?;
    let offset = block.address.checked_sub(bitmap.start)?;
    let index = offset.checked_div(block.size())?;
    if offset.checked_rem(block.size())? != 0 {
        return None;
    }
    Some(Bit {
        at: bitmap.at.saturating_add(index >> 3),
        shift: u32::try_from(index & 7).unwrap_or(0),
    })
}

/// Clears the bit of one block and sets that of another.
fn move_block(
    from: Block,
    to: Block,
    handover: &Handover,
    memory: &dyn PhysicalMemory,
) -> Result<Vec<Write>, FieldError> {
    let find = |block| bit_of(handover, block).ok_or(FieldError::NoBitmap { block });
    let (old, new) = (find(from)?, find(to)?);
    let byte = |bit: Bit| -> Result<u8, FieldError> {
        let mut bytes = [0];
        memory.read(bit.at, &mut bytes)?;
        let [byte] = bytes;
        Ok(byte)
    };
    let cleared = byte(old)? & !mask(old);
    if old.at == new.at {
        return Ok(vec![one(old.at, cleared | mask(new))]);
    }
    Ok(vec![one(old.at, cleared), one(new.at, byte(new)? | mask(new))])
}

fn mask(bit: Bit) -> u8 {
    1_u8.checked_shl(bit.shift).unwrap_or(0)
}

fn one(at: u64, byte: u8) -> Write {
    Write {
        at,
        bytes: vec![byte],
    }
}

/// Reads the bytes of a field; `None` if they are not there.
pub(super) fn read(memory: &dyn PhysicalMemory, at: u64, width: usize) -> Option<Vec<u8>> {
    let end = at.checked_add(len64(width))?;
    let mut bytes = vec![0; clamp(end.saturating_sub(at))];
    memory.read(at, &mut bytes).ok()?;
    Some(bytes)
}

/// The value that bytes hold: a number in some of their bits, or all of them.
pub(super) fn value(kind: Kind, bytes: &[u8], order: ByteOrder, (shift, bits): (u32, u32)) -> Option<Value> {
    if !kind.is_number() {
        return Some(Value::Bytes(bytes.to_vec()));
    }
    let number = decode(bytes, order).checked_shr(shift)?;
    Some(Value::Number(number & ones(bits)))
}
