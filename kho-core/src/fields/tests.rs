use super::*;
use crate::build::tests::{build_and_read, plans};
use crate::memory::{PhysicalMemoryMut, SparseMemory};
use crate::{Abi, Block, Blueprint, KhoData, Region};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

/// Address of the `setup_data` node of the tests.
const NODE: u64 = 0x1000;

fn with_node(plan: &Blueprint, abi: Abi) -> (Handover, SparseMemory) {
    let (handover, mut memory) = build_and_read(plan, abi);
    let data = KhoData {
        fdt: handover.fdt,
        scratch: handover.scratch_array,
    };
    memory.write(NODE, &data.to_node(0)).unwrap();
    (handover, memory)
}

fn list(handover: &Handover, memory: &SparseMemory, limit: usize) -> Vec<Field> {
    source(handover, memory).list(limit)
}

fn source<'a>(handover: &'a Handover, memory: &'a SparseMemory) -> Source<'a> {
    Source {
        handover,
        memory,
        setup_data: Some(NODE),
    }
}

/// The bits of RAM in which a field lies: the first, and the number.
fn bits(field: &Field) -> (u64, u64) {
    match field.place {
        Place::Bytes { at, shift, bits, .. } if field.kind.is_number() => {
            (at * 8 + u64::from(shift), bits.into())
        }
        Place::Bytes { at, width, .. } => (at * 8, width as u64 * 8),
        Place::Block { .. } => (0, 0),
    }
}

fn overlap(one: &Field, other: &Field) -> bool {
    let ((a, n), (b, m)) = (bits(one), bits(other));
    a < b + m && b < a + n
}

/// Another value for a field.
fn other_value(field: &Field) -> Value {
    match &field.value {
        Value::Number(number) => Value::Number(number ^ 1),
        Value::Bytes(bytes) => {
            let mut bytes = bytes.clone();
            bytes[0] ^= 1;
            Value::Bytes(bytes)
        }
    }
}

fn apply(memory: &mut SparseMemory, writes: &[Write]) {
    for write in writes {
        memory.write(write.at, &write.bytes).unwrap();
    }
}

/// Whether no other field of a listing depends on this one.
fn stands_alone(field: &Field) -> bool {
    let data = matches!(field.kind, Kind::Flags | Kind::Number | Kind::Size | Kind::Offset);
    let structure = field.path.contains(':') || field.path.starts_with("setup_data");
    let decides = ["version", "blob-size", "flags"]
        .iter()
        .any(|name| field.path.ends_with(name))
        && !field.path.contains("folio[");
    data && !structure && !decides
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn setting_a_field_changes_that_field_alone((plan, abi) in plans()) {
        let (handover, mut memory) = with_node(&plan, abi);
        let fields = list(&handover, &memory, 3);
        let paths: BTreeSet<_> = fields.iter().map(|field| &field.path).collect();
        prop_assert_eq!(paths.len(), fields.len(), "each path is there once");
        for field in &fields {
            let value = other_value(field);
            let writes = match field.set(&value, &handover, &memory) {
                Ok(writes) => writes,
                Err(FieldError::NoBitmap { .. }) => continue,
                Err(error) => panic!("{}: {error}", field.path),
            };
            let old: Vec<Write> = writes.iter().map(|write| {
                let bytes = place::read(&memory, write.at, write.bytes.len()).unwrap();
                Write { at: write.at, bytes }
            }).collect();
            apply(&mut memory, &writes);
            if let Some(now) = field.read(&memory) {
                prop_assert_eq!(&now, &value, "{}", field.path);
            }
            if !matches!(field.place, Place::Block { .. }) {
                for other in fields.iter().filter(|other| !overlap(field, other)) {
                    if let Some(now) = other.read(&memory) {
                        prop_assert_eq!(&now, &other.value, "{} after {} was set", other.path, field.path);
                    }
                }
            }
            if stands_alone(field) {
                let again = Handover::read(&memory, handover.fdt, handover.scratch_array).unwrap();
                let after = list(&again, &memory, 3);
                prop_assert_eq!(after.len(), fields.len());
                for (before, after) in fields.iter().zip(&after) {
                    let expected = if before.path == field.path { &value } else { &before.value };
                    prop_assert_eq!(&after.value, expected, "{} after {} was set", before.path, field.path);
                }
            }
            apply(&mut memory, &old);
        }
        prop_assert_eq!(list(&handover, &memory, 3), fields, "all is as before");
    }
}

/// A handover with a block, a scratch area and, where there is LUO, a memfd in a session.
fn small(abi: Abi) -> (Handover, SparseMemory) {
    use crate::blueprint::{FileContentPlan, FilePlan, FolioPlan, LuoPlan, MemfdPlan, SessionPlan};
    let folio = |index: u64| FolioPlan {
        block: Block::new(0x2000_0000 + index * 4096, 0),
        index,
        flags: 3,
    };
    let memfd = MemfdPlan {
        size: 3 * 4096,
        folios: (0..3).map(folio).collect(),
        ..MemfdPlan::default()
    };
    let file = FilePlan {
        token: 0x42,
        content: FileContentPlan::Memfd(memfd),
    };
    let session = SessionPlan {
        name: "vm".into(),
        files: vec![file],
    };
    let luo = LuoPlan {
        liveupdate_number: 1,
        sessions: vec![session],
        flbs: vec![],
    };
    let plan = Blueprint {
        scratch: vec![Region::new(128 << 20, 32 << 20)],
        blocks: vec![Block::new(0x1000_0000, 0), Block::new(0x1100_0000, 1)],
        luo: abi.luo().map(|_| luo),
        ..Blueprint::default()
    };
    with_node(&plan, abi)
}

fn number(handover: &Handover, memory: &SparseMemory, path: &str) -> u64 {
    source(handover, memory).find(path).unwrap().number().unwrap()
}

#[test]
fn fields_are_found_by_their_paths() {
    let (handover, memory) = small(Abi::KhoV4);
    let number = |path| number(&handover, &memory, path);
    assert_eq!(number("setup_data/type"), 10);
    assert_eq!(number("setup_data/fdt_addr"), handover.fdt.start);
    assert_eq!(number("scratch[0]/size"), 32 << 20);
    assert_eq!(number("fdt:magic"), 0xd00d_feed);
    assert_eq!(number("fdt/preserved-memory-map"), handover.map.root());
    assert_eq!(number("fdt/LUO/preserved-data:length"), 8);
    assert_eq!(number("luo/session[vm]/file[0]/token"), 0x42);
    assert_eq!(number("luo/session[0]/file[0]/token"), 0x42);
    assert_eq!(number("luo/session_block[0]/count"), 1);
    assert_eq!(number("memfd[0]/folio[2]/pfn"), 0x2_0002);
    assert_eq!(number("memfd[0]/folio[2]/flags"), 3);
    let text = source(&handover, &memory).find("luo/compatible").unwrap();
    assert_eq!(text.value, Value::Bytes(b"luo-v5\0\0".to_vec()));
    let unknown = source(&handover, &memory)
        .find("luo/session[no]/count")
        .unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "the handover has no field \"luo/session[no]/count\""
    );
}

#[test]
fn every_abi_has_its_own_fields() {
    let paths = |abi| {
        let (handover, memory) = small(abi);
        let fields = list(&handover, &memory, 8);
        fields
            .into_iter()
            .map(|field| field.path)
            .collect::<BTreeSet<_>>()
    };
    for (abi, some) in [
        (Abi::KhoV1Bitmaps512, vec!["map/chunk[0]/element[0]/bitmap"]),
        (
            Abi::KhoV1,
            vec![
                "map/chunk[0]/num_elms",
                "luo/luo-session/luo-session-header",
                "luo/sessions/count",
            ],
        ),
        (
            Abi::KhoV2,
            vec![
                "map/table[0]/entry[0]",
                "memfd[0]/nr_folios",
                "fdt/LUO/preserved-data",
            ],
        ),
        (
            Abi::KhoV3,
            vec!["memfd[0]/seals", "fdt/LUO/blob-size", "luo/liveupdate-number"],
        ),
        (
            Abi::KhoV4,
            vec![
                "luo/session[vm]/file_block[0]/next",
                "memfd[0]/folios/chunk[0]/phys[0]",
            ],
        ),
    ] {
        let all = paths(abi);
        for path in some {
            assert!(all.contains(path), "{abi}: {path} in {all:#?}");
        }
    }
}

#[test]
fn a_block_moves_to_another_address_and_another_order() {
    let (handover, mut memory) = small(Abi::KhoV4);
    let source = source(&handover, &memory);
    let blocks: Vec<_> = handover.map.blocks_by_address().collect();
    let index = blocks
        .iter()
        .position(|block| block.address == 0x1000_0000)
        .unwrap();
    let field = source.find(&format!("map/block[{index}]/address")).unwrap();
    assert_eq!(field.number(), Some(0x1000_0000));
    let writes = field
        .set(&Value::Number(0x1000_3000), &handover, &memory)
        .unwrap();
    let order = source.find(&format!("map/block[{index}]/order")).unwrap();
    let far = field.set(&Value::Number(1 << 45), &handover, &memory);
    assert!(matches!(far, Err(FieldError::NoBitmap { .. })), "{far:?}");
    let odd = field.set(&Value::Number(0x1000_0008), &handover, &memory);
    assert!(matches!(odd, Err(FieldError::NoBitmap { .. })), "{odd:?}");
    apply(&mut memory, &writes);
    let again = Handover::read(&memory, handover.fdt, handover.scratch_array).unwrap();
    assert!(again.map.is_preserved(0x1000_3000) && !again.map.is_preserved(0x1000_0000));
    assert_eq!(again.map.count(), handover.map.count());

    let (handover, mut memory) = small(Abi::KhoV4);
    let writes = order.set(&Value::Number(1), &handover, &memory).unwrap();
    apply(&mut memory, &writes);
    let again = Handover::read(&memory, handover.fdt, handover.scratch_array).unwrap();
    assert!(again.map.is_preserved(0x1000_1000));
}

#[test]
fn values_that_do_not_fit_are_refused() {
    let (handover, memory) = small(Abi::KhoV4);
    let set = |path: &str, value| {
        let field = source(&handover, &memory).find(path).unwrap();
        field.set(&value, &handover, &memory)
    };
    let wide = set("memfd[0]/folio[0]/pfn", Value::Number(1 << 52)).unwrap_err();
    assert_eq!(
        wide.to_string(),
        "\"memfd[0]/folio[0]/pfn\" has 52 bits, the value has more"
    );
    let long = set("luo/compatible", Value::Bytes(vec![b'x'; 9])).unwrap_err();
    assert_eq!(
        long.to_string(),
        "\"luo/compatible\" has 8 bytes, the value has more"
    );
    let other = set("luo/compatible", Value::Number(1)).unwrap_err();
    assert_eq!(other.to_string(), "\"luo/compatible\" is text, the value is not");
    assert!(matches!(
        set("luo/sessions_pa", Value::Bytes(vec![1])),
        Err(FieldError::OtherKind { .. })
    ));
}

#[test]
fn bits_of_a_number_are_flipped() {
    let (handover, memory) = small(Abi::KhoV4);
    let field = source(&handover, &memory)
        .find("memfd[0]/folio[1]/flags")
        .unwrap();
    let writes = field.flip(0x801, &handover, &memory).unwrap();
    let expected = (0x802_u64 << 52 | 0x2_0001).to_le_bytes().to_vec();
    assert_eq!(
        writes.iter().map(|write| &write.bytes).collect::<Vec<_>>(),
        [&expected]
    );
}
