//! What an injection into a handover writes.

use kho_core::fields::Value;
use kho_core::find::find;
use kho_core::{Handover, KhoData, PhysicalMemory};
use vmm::boot::BootParams;
use vmm::boot::layout::offset::SETUP_DATA;
use vmm::injection::Poke;
use vmm::phase::Phase;

use super::Known;
use crate::bend::{Bendable, literal};
use crate::conductor::{GuestMemory, chain};
use crate::evidence::PAGE;
use crate::plan::{BlobAsk, FieldChange};
use crate::scenario::inject::NodeFault;

/// Most nodes that are followed; kernels link far fewer.
const MAX_NODES: usize = 64;

/// The writes, or why there are none.
pub(super) fn pokes(ask: &BlobAsk, known: &Known<'_>) -> Result<Vec<Poke>, String> {
    match ask {
        BlobAsk::Field { path, change } => field(path, change, known),
        BlobAsk::Node(fault) => node(*fault, known),
    }
}

fn field(path: &str, change: &FieldChange, known: &Known<'_>) -> Result<Vec<Poke>, String> {
    let memory = GuestMemory::new(known.machine.ram());
    let found = handed(known)?;
    let handover = Bendable {
        handover: &found.handover,
        memory: &memory,
        setup_data: found.setup_data,
        boot_params: found.boot_params,
    };
    let field = handover.find(path).map_err(|error| chain(&error))?;
    let value = match change {
        FieldChange::Set(text) => literal(text).or_else(|| handover.value(&field, text)),
        FieldChange::Flip(bit) => flipped(&field.value, *bit),
    };
    let value = value.ok_or_else(|| match change {
        FieldChange::Set(text) => format!("{path} ({}) has no other value {text}", field.kind),
        FieldChange::Flip(bit) => format!("{path} has no bit {bit}"),
    })?;
    let writes = handover.writes(&field, &value).map_err(|error| chain(&error))?;
    let poke = |write: kho_core::fields::Write| Poke {
        address: write.at,
        bytes: write.bytes,
    };
    Ok(writes.into_iter().map(poke).collect())
}

/// The value with one bit flipped, counted from bit 0 of its first byte if it is no number.
fn flipped(value: &Value, bit: u32) -> Option<Value> {
    match value {
        Value::Number(number) => Some(Value::Number(number ^ 1_u64.checked_shl(bit)?)),
        Value::Bytes(bytes) => {
            let mut bytes = bytes.clone();
            *bytes.get_mut(bit as usize / 8)? ^= 1 << (bit % 8);
            Some(Value::Bytes(bytes))
        }
    }
}

/// A handover in guest memory.
struct InMemory {
    handover: Handover,
    setup_data: Option<u64>,
    boot_params: Option<u64>,
}

/// The handover that the next kernel will have, or has: at its entry the one that its boot parameters lead to, at other
/// times one that is found by a search. Those that former kernels got are not meant.
fn handed(known: &Known<'_>) -> Result<InMemory, String> {
    let memory = GuestMemory::new(known.machine.ram());
    if let Some(boot_params) = known.entered_with() {
        let params = boot_params_at(known, boot_params)?;
        let kho = params.kho_data(known.machine.ram());
        let kho = kho
            .map_err(|error| chain(&error))?
            .ok_or("the new kernel is handed nothing")?;
        return Ok(InMemory {
            handover: Handover::read(&memory, kho.fdt, kho.scratch).map_err(|error| chain(&error))?,
            setup_data: params.kho_node(known.machine.ram()).ok().flatten(),
            boot_params: Some(boot_params),
        });
    }
    let generation: u32 = known.machine.moment().stamp.generation.into();
    let former = |fdt: u64| {
        let mut blobs = known.evidence.blobs.iter();
        blobs
            .any(|blob| blob.generation + 1 == generation && blob.kho.is_some_and(|kho| kho.fdt.start == fdt))
    };
    let is_meant = |fdt: u64| !before_the_entry(known) || !former(fdt);
    let mut found = find(&memory).found.into_iter();
    let found = found.find(|found| is_meant(found.entry.fdt.start));
    let found = found.ok_or("no handover was found in memory")?;
    Ok(InMemory {
        handover: found.handover,
        setup_data: found.setup_data,
        boot_params: None,
    })
}

/// Whether the handover that counts is still to be handed over.
fn before_the_entry(known: &Known<'_>) -> bool {
    !matches!(
        known.machine.moment().stamp.phase,
        Phase::BootNew | Phase::Restore | Phase::Done
    )
}

fn boot_params_at(known: &Known<'_>, address: u64) -> Result<BootParams, String> {
    BootParams::read(known.machine.ram(), address).map_err(|error| chain(&error))
}

fn node(fault: NodeFault, known: &Known<'_>) -> Result<Vec<Poke>, String> {
    let ram = known.machine.ram();
    let boot_params = known
        .entered_with()
        .ok_or("the machine does not stand at a kernel's entry")?;
    let params = boot_params_at(known, boot_params)?;
    let node = params.kho_node(ram).map_err(|error| chain(&error))?;
    let node = node.ok_or("the new kernel is handed nothing")?;
    let memory = GuestMemory::new(ram);
    let next = word(&memory, node)?;
    let pointer = |address: u64, to: u64| Poke {
        address,
        bytes: to.to_le_bytes().to_vec(),
    };
    match fault {
        NodeFault::Missing => {
            let mut link = boot_params.saturating_add(SETUP_DATA as u64);
            for _ in 0..MAX_NODES {
                match word(&memory, link)? {
                    to if to == node => return Ok(vec![pointer(link, next)]),
                    to => link = to,
                }
            }
            Err("no pointer leads to the node".into())
        }
        NodeFault::Twice => {
            let copy = room(&memory, node).ok_or("there is no room behind the node for a copy of it")?;
            let mut bytes = vec![0; KhoData::NODE_SIZE];
            memory.read(node, &mut bytes).map_err(|error| chain(&error))?;
            let copied = Poke { address: copy, bytes };
            Ok(vec![copied, pointer(node, copy)])
        }
    }
}

/// Zeroes behind the node in its page, as many as a node has bytes. The old kernel fills the last page of the boot
/// parameters with them.
fn room(memory: &dyn PhysicalMemory, node: u64) -> Option<u64> {
    let size = KhoData::NODE_SIZE as u64;
    let end = (node / PAGE + 1).checked_mul(PAGE)?;
    let mut at = node.checked_add(size)?.next_multiple_of(8);
    while at.checked_add(size)? <= end {
        let mut bytes = [0; KhoData::NODE_SIZE];
        memory.read(at, &mut bytes).ok()?;
        if bytes == [0; KhoData::NODE_SIZE] {
            return Some(at);
        }
        at += 8;
    }
    None
}

fn word(memory: &dyn PhysicalMemory, at: u64) -> Result<u64, String> {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes).map_err(|error| chain(&error))?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kho_core::{Region, SparseMemory};

    #[test]
    fn a_bit_of_a_number_or_of_text_is_flipped() {
        assert_eq!(flipped(&Value::Number(4), 0), Some(Value::Number(5)));
        assert_eq!(flipped(&Value::Number(4), 63), Some(Value::Number(4 | 1 << 63)));
        assert_eq!(flipped(&Value::Number(4), 64), None);
        let text = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        assert_eq!(flipped(&text(b"ab"), 8), Some(text(b"ac")));
        assert_eq!(flipped(&text(b"ab"), 16), None);
    }

    #[test]
    fn a_copy_goes_where_nothing_is() {
        let size = KhoData::NODE_SIZE as u64;
        let mut page = [0; kho_core::abi::PAGE_SIZE];
        page[60] = 1;
        let mut memory = SparseMemory::new(vec![Region::new(0, 2 * PAGE)]);
        memory.insert(0, page);
        assert_eq!(room(&memory, 0), Some(64));
        assert_eq!(room(&memory, 64), Some(64 + size));
        assert_eq!(room(&memory, PAGE - 2 * size), Some(PAGE - size));
        assert_eq!(room(&memory, PAGE - 2 * size + 8), None);
    }
}
