use super::*;
use proptest::prelude::*;
use std::sync::Arc;
use vmm::memory::MIN_RAM;

const PARAMS: u64 = 0x10_0000;
const KERNEL: u64 = 0x100_0000;
const INITRD: u64 = 0x50_0000;

fn words(ram: &GuestRam, address: u64, words: &[u64]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    ram.write(address, &bytes).unwrap();
}

/// RAM with an image of boot parameters, a kernel of three pages and an initrd of two, whose pages lie in disorder and
/// whose list has two parts.
fn ram() -> Arc<GuestRam> {
    let ram = GuestRam::new(MIN_RAM).unwrap();
    words(
        &ram,
        0x20_0000,
        &[
            PARAMS | DESTINATION,
            0x30_0000 | SOURCE,
            KERNEL | DESTINATION,
            0x30_2000 | SOURCE,
            0x30_1000 | SOURCE,
            0x21_0000 | INDIRECTION,
        ],
    );
    words(
        &ram,
        0x21_0000,
        &[
            0x30_4000 | SOURCE,
            INITRD | DESTINATION,
            (INITRD + 0x1000) | SOURCE,
            0x30_5000 | SOURCE,
            DONE,
        ],
    );
    let field = |offset: u64, bytes: &[u8]| ram.write(0x30_0000 + offset, bytes).unwrap();
    field(0x1fe, &[0x55, 0xaa]);
    field(0x202, b"HdrS");
    field(0x218, &u32::try_from(INITRD).unwrap().to_le_bytes());
    field(0x21c, &0x1001u32.to_le_bytes());
    field(0x260, &0x2fffu32.to_le_bytes());
    ram
}

#[test]
fn kernel_and_initrd_are_found_where_their_pages_lie_before_the_jump() {
    let ram = ram();
    let memory = Placed::by_list(&ram, 0x20_0000 | INDIRECTION).unwrap();
    assert_eq!(memory.segments.len(), 3);
    assert!(memory.all().contains(&(KERNEL / PAGE)) && memory.all().contains(&0x301));
    // One setup sector and the boot sector, then a page and a byte.
    let mut file = vec![0; 1024 + 4097];
    file[SETUP_SECTS] = 1;
    let next = Next::waiting(memory, &file).unwrap();
    assert_eq!(next.kernel, [0x302, 0x301], "only what the file has");
    assert_eq!(next.initrd, [INITRD / PAGE + 1, 0x305]);
    assert_eq!(next.kho, None);
}

#[test]
fn lists_that_do_not_make_sense_are_refused() {
    let ram = ram();
    let error = |head| Placed::by_list(&ram, head).err().unwrap();
    assert!(error(0x30_0000 | SOURCE).contains("before a destination"));
    assert!(error(0x20_0003).contains("the word 0x200003"));
    assert!(error((MIN_RAM + 0x1000) | INDIRECTION).contains("no RAM"));
    words(&ram, 0x22_0000, &[0x22_0000 | INDIRECTION]);
    assert!(error(0x22_0000 | INDIRECTION).contains("does not end"));
    let empty = Placed::by_list(&ram, DONE).unwrap();
    let refused = Next::waiting(empty, &[]).err().unwrap();
    assert!(refused.contains("boot parameters"), "{refused}");
}

proptest! {
    #[test]
    fn any_list_is_followed_or_refused(head: u64, list in proptest::collection::vec(any::<u64>(), 0..64)) {
        let ram = ram();
        let inside: Vec<u64> = list.iter().map(|word| word & 0x3f_f00f).collect();
        words(&ram, 0x20_0000, &inside);
        for head in [head, 0x20_0000 | INDIRECTION] {
            if let Ok(memory) = Placed::by_list(&ram, head) {
                let _ = Next::waiting(memory, &[0; 1024]);
            }
        }
    }
}
