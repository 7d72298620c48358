use super::*;
use alloc::vec;
use proptest::prelude::*;

/// An FDT with the given structure and strings blocks.
fn fdt(structure: &[u8], strings: &[u8]) -> Vec<u8> {
    let structure_at = HEADER_SIZE + 16;
    let strings_at = structure_at + structure.len();
    let total = strings_at + strings.len();
    let header = [
        MAGIC as usize,
        total,
        structure_at,
        strings_at,
        HEADER_SIZE,
        17,
        16,
        0,
        strings.len(),
        structure.len(),
    ];
    let mut bytes: Vec<u8> = header
        .iter()
        .flat_map(|&word| u32::try_from(word).unwrap().to_be_bytes())
        .collect();
    bytes.extend([0; 16]);
    bytes.extend(structure);
    bytes.extend(strings);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

const A: u32 = u32::from_be_bytes(*b"a\0\0\0");
const B: u32 = u32::from_be_bytes(*b"b\0\0\0");

#[test]
fn a_tree_is_walked_in_order() {
    let bytes = fdt(
        &words(&[
            1,
            0,
            3,
            3,
            0,
            u32::from_be_bytes(*b"v1\0\0"),
            1,
            A,
            1,
            B,
            2,
            2,
            4,
            1,
            B,
            3,
            0,
            11,
            2,
            2,
            9,
        ]),
        b"compatible\0x\0",
    );
    let fdt = Fdt::parse(&bytes).unwrap();
    assert_eq!(fdt.root().compatible(), Some("v1"));
    let names: Vec<_> = fdt.root().children().map(|node| node.name()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(fdt.root().child("a").unwrap().children().count(), 1);
    let b = fdt.root().child("b").unwrap();
    assert_eq!(b.property("x").unwrap().value, b"");
    assert_eq!(b.depth(), 1);
    assert_eq!(fdt.total_size(), bytes.len());
}

#[test]
fn broken_structures_are_told_apart() {
    let parse = |structure: &[u32]| {
        Fdt::parse(&fdt(&words(structure), b"x\0"))
            .map(|_| ())
            .unwrap_err()
    };
    assert!(matches!(parse(&[1, 0]), FdtError::Truncated { .. }));
    assert!(matches!(parse(&[9]), FdtError::Token { found: 9, .. }));
    assert!(matches!(parse(&[2, 9]), FdtError::Token { found: 2, .. }));
    assert!(matches!(parse(&[1, 0, 9]), FdtError::Token { found: 9, .. }));
    assert!(matches!(
        parse(&[1, 0, 2, 1, 0, 2, 9]),
        FdtError::Token { found: 1, .. }
    ));
    assert!(matches!(parse(&[1, 0, 7]), FdtError::Token { found: 7, .. }));
    assert!(matches!(parse(&[1, 0, 3, 4, 99, 0, 2, 9]), FdtError::Name { .. }));
    assert!(matches!(
        parse(&[1, 0, 3, u32::MAX, 0, 0, 2, 9]),
        FdtError::Truncated { .. }
    ));
    assert!(matches!(
        parse(&[1, 0, 1, A, 2, 3, 0, 0, 2, 9]),
        FdtError::Token { found: 3, .. }
    ));
    assert!(matches!(parse(&[1, u32::MAX, u32::MAX]), FdtError::Name { .. }));
    let deep: Vec<u32> = core::iter::repeat_n([1, 0], MAX_DEPTH + 1).flatten().collect();
    assert!(matches!(parse(&deep), FdtError::Depth { .. }));
}

#[test]
fn broken_headers_are_told_apart() {
    let good = fdt(&words(&[1, 0, 2, 9]), b"");
    let with = |at: usize, word: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
        Fdt::parse(&bytes).map(|_| ()).unwrap_err()
    };
    assert!(Fdt::parse(&good).is_ok());
    assert!(matches!(with(0, 1), FdtError::Magic { found: 1 }));
    assert!(matches!(with(4, 4096), FdtError::Short { expected: 4096, .. }));
    assert!(matches!(with(4, 3), FdtError::Short { .. }));
    assert!(matches!(
        with(8, 41),
        FdtError::Block {
            block: "structure",
            ..
        }
    ));
    assert!(matches!(
        with(12, u32::MAX),
        FdtError::Block { block: "strings", .. }
    ));
    assert!(matches!(
        with(16, 44),
        FdtError::Block {
            block: "memory reservation",
            ..
        }
    ));
    assert!(matches!(with(20, 16), FdtError::Version { version: 16, .. }));
    assert!(matches!(with(24, 18), FdtError::Version { compatible: 18, .. }));
    assert!(matches!(Fdt::parse(&good[..39]), Err(FdtError::Short { .. })));
}

#[test]
fn a_huge_name_shared_by_all_properties_costs_nothing() {
    let mut structure = vec![1, 0];
    structure.extend(core::iter::repeat_n([3, 0, 0], 100_000).flatten());
    structure.extend([2, 9]);
    let mut strings = vec![b'x'; 1 << 20];
    strings.push(0);
    assert!(matches!(
        Fdt::parse(&fdt(&words(&structure), &strings)),
        Err(FdtError::Name { .. })
    ));
}

proptest! {
    #[test]
    fn any_structure_parses_or_fails(tokens in prop::collection::vec(prop_oneof![0_u32..12, any::<u32>()], 0..64)) {
        let _ = Fdt::parse(&fdt(&words(&tokens), b"compatible\0"));
    }

    #[test]
    fn any_damage_parses_or_fails(at in 0_usize..100, byte in any::<u8>()) {
        let mut bytes = fdt(&words(&[1, 0, 3, 4, 0, 7, 1, A, 2, 2, 9]), b"compatible\0");
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        if let Ok(fdt) = Fdt::parse(&bytes) {
            fdt.root().children().for_each(|node| assert!(node.depth() == 1));
        }
    }
}
