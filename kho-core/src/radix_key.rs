//! The keys of the radix map.
//!
//! A key is the block's number among the blocks of its order, with one bit set above the bits that such a number can
//! have. The higher the order, the further right that bit and the number are, so keys of all orders begin with zeroes
//! and share the upper tables of the tree.

use crate::abi::PAGE_SHIFT;
use crate::abi::kexec_handover::RADIX_ORDER_BIT;
use crate::map::Block;

/// The key of a block; `None` if the block cannot have one.
pub fn encode_key(block: Block) -> Option<u64> {
    let shift = PAGE_SHIFT.saturating_add(u32::from(block.order));
    let order_bit = 1_u64.checked_shl(64_u32.checked_sub(shift)?)?;
    Some(order_bit | block.address.checked_shr(shift).unwrap_or(0))
}

/// The block of a key; `None` if the key has no valid order bit.
pub fn decode_key(key: u64) -> Option<Block> {
    let order_bit = key.checked_ilog2()?;
    let order = RADIX_ORDER_BIT.checked_sub(order_bit)?;
    let shift = PAGE_SHIFT.saturating_add(order);
    // The shift drops the order bit at the top; a key of the last order consists of nothing else.
    Some(Block::new(
        key.checked_shl(shift).unwrap_or(0),
        u8::try_from(order).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_kernel_documentation() {
        assert_eq!(encode_key(Block::new(0, 0)), Some(1 << 52));
        assert_eq!(encode_key(Block::new(0x1000, 0)), Some((1 << 52) | 1));
        assert_eq!(encode_key(Block::new(0x2000, 1)), Some((1 << 51) | 1));
        assert_eq!(encode_key(Block::new(0x20_0000, 9)), Some((1 << 43) | 1));
        assert_eq!(decode_key(0), None);
        assert_eq!(decode_key(1 << 53), None);
        assert_eq!(decode_key(1), Some(Block::new(0, 52)));
        assert_eq!(encode_key(Block::new(0, 52)), Some(1));
        assert_eq!(encode_key(Block::new(0, 53)), None);
    }

    proptest::proptest! {
        #[test]
        fn a_key_gives_back_its_block(order in 0_u8..=40, frame in 0_u64..1 << 40) {
            let address = (frame << 12) >> (12 + u32::from(order)) << (12 + u32::from(order));
            let block = Block::new(address, order);
            proptest::prop_assert_eq!(encode_key(block).and_then(decode_key), Some(block));
        }

        #[test]
        fn any_key_decodes_without_a_panic(key in proptest::num::u64::ANY) {
            if let Some(block) = decode_key(key) {
                proptest::prop_assert_eq!(encode_key(block), Some(key));
            }
        }
    }
}
