//! What is asked of the running kernel: its variables, page tables and text.

use super::Known;
use crate::evidence::PAGE;
use crate::kernel::{Fit, RunningKernel};
use vmm::phase::Phase;
use vmm::translate::AddressSpace;

/// Where a kernel's image is mapped (`__START_KERNEL_map`, arch/x86/include/asm/page_64_types.h), up to where modules
/// are: `KERNEL_IMAGE_SIZE` with KASLR. Without it modules begin earlier, and lie between.
const IMAGE: std::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;
/// End of the lower half of the address space, with four levels of page tables.
const LOWER_HALF: u64 = 1 << 47;

impl Known<'_> {
    fn spaces(&self) -> Vec<AddressSpace> {
        AddressSpace::all_of(&self.machine.registers())
    }

    /// The kernel's own address space. With page table isolation it comes after user space's; without it the last one
    /// may be no address space at all, and does not map the kernel's entry.
    fn kernel_space(&self) -> Option<AddressSpace> {
        let (ram, spaces) = (self.machine.ram(), self.spaces());
        let entries = self.machine.syscall_entries();
        let maps = |space: &&AddressSpace| {
            let mut set = entries.iter().filter(|entry| **entry != 0);
            set.any(|entry| space.translate(ram, *entry).is_some())
        };
        let found = spaces.iter().rev().find(maps).or(spaces.first());
        found.copied()
    }

    /// Reads memory at a kernel address. Returns whether it is mapped.
    fn read_kernel(&self, address: u64, buffer: &mut [u8]) -> bool {
        let ram = self.machine.ram();
        self.spaces().iter().any(|space| space.read(ram, address, buffer))
    }

    /// A word of the kernel's memory.
    pub(super) fn kernel_word(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.read_kernel(address, &mut word)
            .then(|| u64::from_le_bytes(word))
    }

    /// The address of a symbol in the running kernel. Before its agent has greeted, the kernel is compared with its
    /// symbol file now.
    pub(super) fn symbol(&self, name: &str) -> Result<u64, String> {
        let generation = u32::from(self.machine.moment().stamp.generation);
        let kernel = self.plan.kernel(generation);
        let mut fit = self.evidence.fit(generation);
        if fit == Fit::Unknown {
            fit = kernel.fit(&RunningKernel {
                syscall_entries: self.machine.syscall_entries(),
                read: &|address, buffer| self.read_kernel(address, buffer),
                build_id: "",
            });
        }
        let address = kernel.address_of(&fit, name);
        address.ok_or_else(|| format!("the address of {name} in the kernel is not known"))
    }

    /// The value of a variable of the running kernel, of 8 bytes.
    pub(super) fn variable(&self, name: &str) -> Result<u64, String> {
        let value = self.kernel_word(self.symbol(name)?);
        value.ok_or_else(|| format!("{name} is not mapped"))
    }

    /// Page frames of the page tables that the processor uses: for kernel addresses, or all if the kernel runs at low
    /// addresses, as it does at a jump and before it has tables of its own.
    pub(super) fn page_tables(&self) -> Result<Vec<u64>, String> {
        let registers = self.machine.registers();
        let low = registers.rip < LOWER_HALF && registers.privilege() == 0;
        let space = if low {
            self.spaces().first().copied()
        } else {
            self.kernel_space()
        };
        let tables = space.map_or(Vec::new(), |space| space.tables(self.machine.ram(), !low));
        let found = (!tables.is_empty()).then_some(tables);
        found.ok_or_else(|| format!("CR3 is {:#x}, where no page table is", registers.cr3))
    }

    /// Page frames of the kernel's text: what its page tables map as executable where its image is.
    pub(super) fn kernel_text(&self) -> Result<Vec<u64>, String> {
        if self.machine.moment().stamp.phase == Phase::Jump {
            return Err("at the jump the kernel's page tables are not used any more".into());
        }
        let (ram, space) = (self.machine.ram(), self.kernel_space());
        let mappings = space.map_or(Vec::new(), |space| space.mappings(ram, IMAGE));
        let text = mappings.iter().filter(|mapping| mapping.executable);
        let frames: Vec<u64> = text
            .flat_map(|mapping| mapping.physical / PAGE..(mapping.physical + mapping.length) / PAGE)
            .collect();
        let found = (!frames.is_empty()).then_some(frames);
        found.ok_or_else(|| "the kernel's image is not mapped yet".into())
    }
}
