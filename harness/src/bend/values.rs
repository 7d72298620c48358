//! The wrong values for a field, by what the field means. docs/sweeps.md lists them.

use kho_core::fields::{Field, Kind, Value};

/// A page, and log2 of its size.
const PAGE: u64 = 4096;
const PAGE_SHIFT: u32 = 12;
/// The local APIC: an address that is no RAM and answers.
const MMIO: u64 = 0xfee0_0000;
/// A count that no table of one page holds.
const MANY: u64 = 0xffff;

/// What a value is for, in words that the table and the reproducing command use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its name: `zero`, `off-by-one`.
    pub name: &'static str,
    /// The value.
    pub value: Value,
}

/// Addresses that a pointer can be bent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Around {
    /// First address after RAM.
    pub ram_end: u64,
    /// A page in scratch.
    pub scratch: Option<u64>,
    /// Pages of objects, of which the first that is not the field's own value is taken.
    pub objects: [Option<u64>; 2],
    /// The KHO FDT.
    pub fdt: u64,
    /// The first page of the map.
    pub map: u64,
}

/// The value of a name for a field; `None` if the field has none of that name, or has that value already.
pub fn value(field: &Field, around: &Around, at: Option<u64>, name: &str) -> Option<Value> {
    let mut all = all(field, around, at).into_iter();
    let named = all.find(|named| named.name == name)?;
    (named.value != field.value).then_some(named.value)
}

fn all(field: &Field, around: &Around, at: Option<u64>) -> Vec<Named> {
    match &field.value {
        Value::Number(now) => numbers(field, *now, around, at),
        Value::Bytes(now) if field.kind == Kind::Text => texts(now),
        Value::Bytes(now) => bytes(now),
    }
}

/// The values for a field, each different from the present one and from the others. One that several names have has the
/// first of them.
pub fn values(field: &Field, around: &Around, at: Option<u64>) -> Vec<Named> {
    let mut all = all(field, around, at);
    let mut known = vec![field.value.clone()];
    all.retain(|named| {
        let fits = match named.value {
            Value::Number(number) => number <= field.largest(),
            Value::Bytes(_) => true,
        };
        let new = fits && !known.contains(&named.value);
        known.push(named.value.clone());
        new
    });
    all
}

fn numbers(field: &Field, now: u64, around: &Around, at: Option<u64>) -> Vec<Named> {
    let largest = field.largest();
    let sign = largest ^ (largest >> 1);
    let up = |by: u64| now.wrapping_add(by) & largest;
    let down = |by: u64| now.wrapping_sub(by) & largest;
    let mut list: Vec<(&'static str, Option<u64>)> =
        vec![("zero", Some(0)), ("one", Some(1)), ("ones", Some(largest))];
    match field.kind {
        Kind::Address => {
            list.extend([
                ("next-page", Some(up(PAGE))),
                ("previous-page", Some(down(PAGE))),
                ("unaligned", Some(up(8))),
                ("sign-bit", Some(now ^ sign)),
            ]);
            list.extend(places(now, around, at));
        }
        Kind::Frame => {
            list.extend([
                ("next-page", Some(up(1))),
                ("previous-page", Some(down(1))),
                ("sign-bit", Some(now ^ sign)),
            ]);
            let address = now.saturating_mul(PAGE);
            let frame = |(name, place): (_, Option<u64>)| (name, place.map(|place| place >> PAGE_SHIFT));
            list.extend(places(address, around, at).map(frame));
        }
        Kind::Flags => list.extend([
            ("low-bit", Some(now ^ 1)),
            ("second-bit", Some(now ^ 2)),
            ("sign-bit", Some(now ^ sign)),
        ]),
        Kind::Bits => list.extend([
            ("one-less", Some(now & now.wrapping_sub(1))),
            ("one-more", Some(now | now.wrapping_add(1) & largest)),
            ("sign-bit", Some(now ^ sign)),
        ]),
        Kind::Order => list.extend([
            ("one-more", Some(up(1))),
            ("one-less", Some(down(1))),
            ("huge", Some(10)),
            ("too-large", Some(52)),
        ]),
        _ => {
            list.extend([
                ("one-more", Some(up(1))),
                ("one-less", Some(down(1))),
                ("sign-bit", Some(now ^ sign)),
            ]);
            let size = matches!(field.kind, Kind::Size | Kind::Count | Kind::Offset);
            list.extend(size.then_some(("double", now.checked_mul(2))));
            list.extend((field.kind == Kind::Count).then_some(("many", Some(MANY))));
        }
    }
    let named = |(name, value): (&'static str, Option<u64>)| {
        let value = Value::Number(value?);
        Some(Named { name, value })
    };
    list.into_iter().filter_map(named).collect()
}

/// Where a pointer can be bent to.
fn places(now: u64, around: &Around, at: Option<u64>) -> impl Iterator<Item = (&'static str, Option<u64>)> {
    let other = around.objects.into_iter().flatten();
    let other = { other }.find(|object| object & !(PAGE - 1) != now & !(PAGE - 1));
    [
        ("outside-ram", Some(around.ram_end)),
        ("mmio", Some(MMIO)),
        ("scratch", around.scratch),
        ("other-object", other),
        ("kho-fdt", Some(around.fdt)),
        ("itself", at.map(|at| at & !(PAGE - 1))),
        ("loop", Some(around.map)),
    ]
    .into_iter()
}

fn texts(now: &[u8]) -> Vec<Named> {
    let length = now.iter().position(|byte| *byte == 0).unwrap_or(now.len());
    let changed = |at: Option<usize>, byte: &dyn Fn(u8) -> u8| {
        let mut bytes = now.to_vec();
        let place = bytes.get_mut(at?)?;
        *place = byte(*place);
        Some(Value::Bytes(bytes))
    };
    let list = [
        ("empty", Some(Value::Bytes(vec![0; now.len()]))),
        (
            "other-text",
            changed((length > 0).then_some(0), &|byte| byte ^ 0x20),
        ),
        (
            "next-version",
            changed(length.checked_sub(1), &|byte| byte.wrapping_add(1)),
        ),
        ("not-utf8", changed((length > 0).then_some(0), &|_| 0xff)),
        ("cut", changed(length.checked_sub(1), &|_| 0)),
        ("unterminated", Some(Value::Bytes(unterminated(now, length)))),
    ];
    let named = |(name, value): (_, Option<Value>)| Some(Named { name, value: value? });
    list.into_iter().filter_map(named).collect()
}

/// The text, and then letters instead of the terminator and of all that follows.
fn unterminated(now: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = now.to_vec();
    bytes.iter_mut().skip(length).for_each(|byte| *byte = b'A');
    bytes
}

fn bytes(now: &[u8]) -> Vec<Named> {
    let mut first = now.to_vec();
    first.iter_mut().take(1).for_each(|byte| *byte ^= 1);
    [
        ("zero", vec![0; now.len()]),
        ("ones", vec![0xff; now.len()]),
        ("low-bit", first),
    ]
    .map(|(name, bytes)| Named {
        name,
        value: Value::Bytes(bytes),
    })
    .into()
}

/// The names of all values, in the order of the documentation.
pub const NAMES: [&str; 31] = [
    "zero",
    "one",
    "ones",
    "one-more",
    "one-less",
    "double",
    "many",
    "sign-bit",
    "low-bit",
    "second-bit",
    "huge",
    "too-large",
    "next-page",
    "previous-page",
    "unaligned",
    "outside-ram",
    "mmio",
    "scratch",
    "other-object",
    "kho-fdt",
    "itself",
    "loop",
    "empty",
    "other-text",
    "next-version",
    "not-utf8",
    "cut",
    "unterminated",
    "missing",
    "twice",
    "given",
];

#[cfg(test)]
mod tests {
    use super::*;
    use kho_core::fields::{ByteOrder, Place};
    use proptest::prelude::*;

    const AROUND: Around = Around {
        ram_end: 0x800_0000,
        scratch: Some(0x600_0000),
        objects: [Some(0x123_4000), Some(0x223_5000)],
        fdt: 0x100_0000,
        map: 0x100_1000,
    };

    fn number(kind: Kind, width: usize, now: u64) -> Field {
        let bits = u32::try_from(width * 8).unwrap();
        Field {
            path: "x".into(),
            kind,
            place: Place::Bytes {
                at: 0x200_0010,
                width,
                order: ByteOrder::Little,
                shift: 0,
                bits,
            },
            value: Value::Number(now),
        }
    }

    fn named(field: &Field) -> Vec<(&'static str, Value)> {
        let all = values(field, &AROUND, Some(0x200_0010));
        all.into_iter().map(|named| (named.name, named.value)).collect()
    }

    #[test]
    fn pointers_are_bent_to_places_of_each_kind() {
        let all = named(&number(Kind::Address, 8, 0x123_4000));
        let has = |name, value| all.contains(&(name, Value::Number(value)));
        assert!(has("outside-ram", 0x800_0000) && has("scratch", 0x600_0000) && has("loop", 0x100_1000));
        assert!(
            has("other-object", 0x223_5000),
            "another object than its own: {all:x?}"
        );
        assert!(has("itself", 0x200_0000) && has("unaligned", 0x123_4008));
        let frames = named(&number(Kind::Frame, 8, 0x1234));
        assert!(
            frames.contains(&("scratch", Value::Number(0x6000))),
            "{frames:x?}"
        );
    }

    #[test]
    fn a_name_finds_its_value_though_another_has_it_too() {
        let field = number(Kind::Offset, 8, 0);
        let around = named(&field);
        assert!(!around.iter().any(|(name, _)| *name == "one-more"), "{around:?}");
        let of = |name| value(&field, &AROUND, None, name);
        assert_eq!(of("one-more"), Some(Value::Number(1)));
        assert_eq!(of("zero"), None, "it is zero");
        assert_eq!(of("unterminated"), None);
    }

    #[test]
    fn numbers_wrap_within_their_width() {
        let all = named(&number(Kind::Count, 4, 0));
        assert!(
            all.contains(&("one-less", Value::Number(0xffff_ffff)))
                || all.contains(&("ones", Value::Number(0xffff_ffff)))
        );
        assert!(all.contains(&("sign-bit", Value::Number(0x8000_0000))));
        assert!(all.contains(&("many", Value::Number(0xffff))));
    }

    #[test]
    fn texts_are_broken_in_each_way() {
        let field = Field {
            kind: Kind::Text,
            value: Value::Bytes(b"kho-v4\0\0".to_vec()),
            ..number(Kind::Text, 8, 0)
        };
        let all = named(&field);
        let text = |name: &str| match &all.iter().find(|one| one.0 == name).unwrap().1 {
            Value::Bytes(bytes) => bytes.clone(),
            Value::Number(_) => unreachable!("{name}"),
        };
        assert_eq!(text("next-version"), b"kho-v5\0\0");
        assert_eq!(text("unterminated"), b"kho-v4AA");
        assert_eq!(text("cut"), b"kho-v\0\0\0");
        assert_eq!(text("empty"), [0; 8]);
    }

    proptest! {
        #[test]
        fn each_value_is_new_fits_and_has_a_documented_name(
            kind in prop::sample::select(vec![
                Kind::Address, Kind::Frame, Kind::Size, Kind::Count, Kind::Offset, Kind::Order, Kind::Flags, Kind::Number,
                Kind::Bits,
            ]),
            width in prop::sample::select(vec![1_usize, 2, 4, 8]),
            now in any::<u64>(),
        ) {
            let mut field = number(kind, width, 0);
            let now = now & field.largest();
            field.value = Value::Number(now);
            let all = named(&field);
            let mut seen = vec![Value::Number(now)];
            for (name, value) in all {
                prop_assert!(NAMES.contains(&name), "{name}");
                prop_assert!(!seen.contains(&value));
                prop_assert!(matches!(value, Value::Number(number) if number <= field.largest()));
                seen.push(value);
            }
        }
    }
}
