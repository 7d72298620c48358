//! The machine that guests run in: memory, boot, processor backends, devices, and what the host records about them.
//!
//! ```text
//!  machine      the run loop, phases, kexec detection, state hash        Machine, Event
//!   |- boot     bzImage -> RAM; boot parameters back at the next kernel's entry
//!   |- acpi     the tables that a vanilla kernel wants
//!   |- processors  what the machine needs of all processors together: traits Processors, Backend
//!   |   |- soft       processors (softcpu) and devices in turn, on one thread
//!   |   `- kvm        processors and devices on threads of their own, in real time
//!   `- platform    all but the processors
//!       `- devices     state machines over a clock, and the bus that routes to them
//!           |- dma     the stream engine -> dma_view -> ledger
//!           `- injector  deeds of injections at their moments
//!  memory       guest RAM; knows the pages that anybody wrote
//!  confine      what this process may open while a guest runs
//!  translate    guest memory by virtual addresses
//!  trace        what passed between the processors and everything else, for comparing runs
//!  provenance   first write of the processor to each page in each phase
//! ```
//!
//! Every byte of guest RAM has one of four authors. The loader writes through [`memory::GuestRam`] before the machine
//! runs; a device writes through [`dma_view::DmaView`], which keeps the [`ledger`]; so does an [`injection`], a fault on
//! purpose; everything else is the processor.

#![deny(unsafe_code)]

pub mod acpi;
pub mod boot;
pub mod confine;
pub mod console;
pub mod content;
pub mod devices;
pub mod dma_view;
pub mod injection;
pub mod interrupt;
pub mod kvm;
pub mod ledger;
pub mod machine;
pub mod memory;
pub mod phase;
pub mod platform;
pub mod processors;
pub mod provenance;
pub mod soft;
pub mod trace;
pub mod translate;
pub mod vcpu;
