//! The DMA engine of a plan: its rate and seed, and where its ring and its buffers are.

use super::ObjectPlan;
use crate::evidence::{DmaSetup, MemfdEnd, ObjectKind, PAGE};
use crate::scenario::{Buffers, Dma, Scenario, WhenFull};
use crate::seed::seed_for;
use guest_agent::device::dma::DESCRIPTOR_BYTES;
use guest_agent::protocol::{DmaRing, Place};
use vmm::devices::dma::DmaConfig;

/// Identity of the anonymous buffer; memfds are counted from 1.
const ANONYMOUS_OBJECT: u32 = 1000;
/// Identity of the DMA engine's own memory.
const DEVICE_OBJECT: u32 = 4000;

/// Bytes at the start of the ring's memfd that a ring of `entries` descriptors takes: a page for the list of its pages,
/// the descriptors on whole pages, a page for the completion count. If the buffers are in the memfd too, they follow.
pub fn bytes_before_buffers(entries: u32) -> u64 {
    let descriptors = (u64::from(entries) * DESCRIPTOR_BYTES).next_multiple_of(PAGE);
    2 * PAGE + descriptors
}

/// The engine of the scenario. Memory that it needs beside the scenario's memfds is added to `objects`.
pub(super) fn dma_plan(scenario: &Scenario, seed: u64, objects: &mut Vec<ObjectPlan>) -> Option<DmaSetup> {
    let dma = scenario.dma.as_ref()?.get_ref();
    if scenario.payload.is_some() {
        let buffers = u64::from(*dma.ring.get_ref()) * dma.buffer.get_ref().0;
        objects.push(ObjectPlan {
            id: DEVICE_OBJECT,
            name: "device".into(),
            kind: ObjectKind::Device,
            end: MemfdEnd::Left,
            bytes: (bytes_before_buffers(*dma.ring.get_ref()) + buffers).next_multiple_of(PAGE),
            seed: seed_for(seed, "device"),
            blank: false,
            hops: *scenario.kexecs.get_ref(),
        });
        return dma_setup(dma, seed, DEVICE_OBJECT, DEVICE_OBJECT);
    }
    let memfd = crate::scenario::dma_memfd(scenario, dma)?;
    let ring_object = objects
        .iter()
        .find(|object| object.name == *memfd.name.get_ref())?
        .id;
    let buffer_object = match dma.buffers {
        Buffers::Memfd => ring_object,
        Buffers::Unpreserved => {
            objects.push(ObjectPlan {
                id: ANONYMOUS_OBJECT,
                name: "buffers".into(),
                kind: ObjectKind::Anonymous,
                end: MemfdEnd::Retrieved,
                bytes: (u64::from(*dma.ring.get_ref()) * dma.buffer.get_ref().0).next_multiple_of(PAGE),
                seed: seed_for(seed, "buffers"),
                hops: 0,
                blank: false,
            });
            ANONYMOUS_OBJECT
        }
    };
    dma_setup(dma, seed, ring_object, buffer_object)
}

/// The engine with its ring and its buffers in these objects.
fn dma_setup(dma: &Dma, seed: u64, ring_object: u32, buffer_object: u32) -> Option<DmaSetup> {
    let (entries, buffer) = (*dma.ring.get_ref(), dma.buffer.get_ref().0);
    let before_buffers = bytes_before_buffers(entries);
    let in_ring_object = |offset| Place {
        object: ring_object,
        offset,
    };
    let buffers = Place {
        object: buffer_object,
        offset: if buffer_object == ring_object {
            before_buffers
        } else {
            0
        },
    };
    Some(DmaSetup {
        engine: DmaConfig {
            rate: dma.rate.get_ref().0,
            seed: seed_for(seed, "dma"),
            bus_master: dma.bus_master,
            address_bits: *dma.address_bits.get_ref(),
        },
        ring: DmaRing {
            list: in_ring_object(0),
            descriptors: in_ring_object(PAGE),
            entries,
            completion: in_ring_object(before_buffers - PAGE),
            buffers,
            buffer_bytes: u32::try_from(buffer).ok()?,
            free_run: dma.when_full == WhenFull::Overwrite,
            wild_addresses: dma.wild_addresses.clone(),
        },
    })
}
