//! Random scenarios that are sound: by `docs/scenarios.md` each must run to its end, with every rule judged and held.
//!
//! A scenario is made by constraints, in the order of the fields: each choice leaves room for those after it. What the
//! constraints stand for is said at each of them.

use std::fmt::Write as _;

use fastrand::Rng;
use vmm::machine::MAX_RATE;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const MS: u64 = 1_000_000;

/// Longest time that one block may take, so that there is one after each jump for the rules to look at: no kernel boots
/// in less.
const MAX_PERIOD_NS: u64 = 30 * MS;
/// The same with interrupts, so that there is one while they are armed: loading the next kernel takes longer.
const MAX_INTERRUPT_PERIOD_NS: u64 = 2 * MS;
/// The same for an engine that waits in the new kernel until blocks are released. Its stop is this far away even if the
/// wait is zero.
const MAX_WAITING_PERIOD_NS: u64 = MS / 10;
/// Shortest time that one block may take with interrupts.
const MIN_INTERRUPT_PERIOD_NS: u64 = 20_000;
/// Least guest RAM: with less, the command line would need `kho_scratch=`.
const MIN_RAM: u64 = 256 * MIB;
/// Most guest RAM.
const MAX_RAM: u64 = 3072 * MIB;
/// Most guest RAM with a workload of all memory, of which each page takes 3,000 instructions, three times per kexec.
const MAX_RAM_ALL: u64 = 320 * MIB;

/// A memfd of a scenario.
#[derive(Debug, Clone)]
pub struct Memfd {
    pub name: String,
    pub pages: u64,
    pub session: String,
    pub token: u64,
    pub hops: Option<u32>,
}

/// The device of a scenario.
#[derive(Debug, Clone)]
pub struct Dma {
    pub rate: u64,
    pub buffer: u64,
    pub ring: u64,
    pub memfd: String,
    pub wait: bool,
    pub interrupts: bool,
}

/// What later agents use memory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    None,
    /// A file of this many bytes.
    File(u64),
    All,
}

impl Dma {
    /// Entries of the ledger for one block: block, count and interrupt message.
    pub fn entries(interrupts: bool) -> u64 {
        if interrupts { 3 } else { 2 }
    }

    /// Bytes of the memfd that ring, count and buffers take.
    pub fn bytes(buffer: u64, ring: u64) -> u64 {
        2 * PAGE + (ring * 16).next_multiple_of(PAGE) + ring * buffer
    }
}

impl Workload {
    /// Bytes of the file.
    pub fn file(self) -> u64 {
        match self {
            Self::File(bytes) => bytes,
            Self::None | Self::All => 0,
        }
    }
}

/// A sound scenario.
#[derive(Debug, Clone)]
pub struct Sound {
    pub seed: u64,
    pub ram: u64,
    pub vcpus: u32,
    pub kexecs: u32,
    pub old_kernel: String,
    pub new_kernel: String,
    pub memfds: Vec<Memfd>,
    pub dma: Option<Dma>,
    pub armed: u64,
    pub restore: u64,
    pub workload: Workload,
    pub ledger: u64,
}

impl Sound {
    /// The scenario that belongs to `seed`, with some of `kernels`.
    pub fn new(seed: u64, kernels: &[String]) -> Self {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        let (old_kernel, new_kernel) = kernel_pair(rng, kernels);
        let all = rng.u8(..6) == 0;
        let most_ram = if all { MAX_RAM_ALL } else { MAX_RAM };
        let ram = log_uniform(rng, MIN_RAM, most_ram) / PAGE * PAGE;
        let (vcpus, kexecs) = (rng.u32(1..=8), [1, 1, 1, 2, 2, 3][rng.usize(..6)]);
        let room = room(ram, vcpus);
        let workload = match rng.bool() {
            _ if all => Workload::All,
            true => Workload::File(log_uniform(rng, PAGE, (room / 2).min(384 * MIB))),
            false => Workload::None,
        };
        // More takes too long: memfds are filled once, and captured and digested in each generation.
        let room = (room - workload.file()).min(512 * MIB);
        let (buffer, ring) = ring(rng, room);
        let ring_pages = Dma::bytes(buffer, ring).div_ceil(PAGE);
        let memfds = memfds(rng, kexecs, room / PAGE, ring_pages);
        let (armed, restore) = (time(rng), time(rng));
        let ledger = *rng.choice(&[500_000, 1_000_000, 1_000_000]).unwrap_or(&500_000);
        let mut sound = Self {
            seed: rng.u64(..=i64::MAX as u64),
            ram,
            vcpus,
            kexecs,
            old_kernel,
            new_kernel,
            memfds,
            dma: None,
            armed,
            restore,
            workload,
            ledger,
        };
        if rng.u8(..10) > 0 {
            sound.dma = sound.device(rng, buffer, ring);
        }
        sound
    }

    fn device(&self, rng: &mut Rng, buffer: u64, ring: u64) -> Option<Dma> {
        let interrupts = rng.bool();
        // By estimate a scenario fills up to 70 % of the ledger.
        let blocks = self.ledger / 10 * 7 / Dma::entries(interrupts);
        let wait = rng.bool() && ring * self.turns() <= blocks;
        let by_ledger = if wait {
            MAX_RATE
        } else {
            blocks * buffer * 1_000_000_000 / self.guest_ns()
        };
        let by_interrupts = if interrupts {
            buffer * 1_000_000_000 / MIN_INTERRUPT_PERIOD_NS
        } else {
            MAX_RATE
        };
        let lowest = (buffer * 1_000_000_000).div_ceil(self.longest_period(wait, interrupts));
        let highest = by_ledger.min(by_interrupts).clamp(lowest, MAX_RATE);
        let rate = log_uniform(rng, lowest, highest);
        let memfd = self.memfds.first()?.name.clone();
        Some(Dma {
            rate,
            buffer,
            ring,
            memfd,
            wait,
            interrupts,
        })
    }

    /// Longest time that one block may take, in nanoseconds.
    fn longest_period(&self, wait: bool, interrupts: bool) -> u64 {
        let by_interrupts = if interrupts {
            MAX_INTERRUPT_PERIOD_NS
        } else {
            MAX_PERIOD_NS
        };
        let by_wait = if wait {
            MAX_WAITING_PERIOD_NS.max(self.restore / 2)
        } else {
            MAX_PERIOD_NS
        };
        by_interrupts.min(by_wait)
    }

    /// Most times that a waiting engine can fill its ring: at first, and after each of the eight times that each wait
    /// of the run releases blocks.
    fn turns(&self) -> u64 {
        1 + 16 * u64::from(self.kexecs)
    }

    /// Most guest time from the engine's start to its stop, by estimate. Kernels before 7.3 hash the next kernel, which
    /// takes most of the time of a live update.
    pub fn guest_ns(&self) -> u64 {
        let hashes = [&self.old_kernel, &self.new_kernel]
            .iter()
            .any(|version| series(version) < (7, 3));
        let update = if !hashes { 300 } else { 1_800 } * MS;
        let preserved: u64 = self.memfds.iter().map(|memfd| memfd.pages).sum();
        let page_work = preserved * 8_000 + self.workload.file() / PAGE * 5_000;
        let per_page = if self.workload == Workload::All {
            10_000
        } else {
            200
        };
        let memory = self.ram / PAGE * per_page;
        let processors = u64::from(self.vcpus) * 40 * MS;
        u64::from(self.kexecs) * (update + page_work + memory + processors + self.armed + self.restore)
    }

    /// The scenario file.
    pub fn text(&self) -> String {
        let mut text = format!(
            "name = \"sound\"\nseed = {}\nram = \"{}\"\nvcpus = {}\nkexecs = {}\n",
            self.seed,
            bytes(self.ram),
            self.vcpus,
            self.kexecs
        );
        let mut put = |line: String| {
            let _ = writeln!(text, "{line}");
        };
        put(format!(
            "\n[kernel]\nold = \"{}\"\nnew = \"{}\"",
            self.old_kernel, self.new_kernel
        ));
        for memfd in &self.memfds {
            let (name, size) = (&memfd.name, bytes(memfd.pages * PAGE));
            let (session, token) = (&memfd.session, memfd.token);
            put(format!("\n[[memfd]]\nname = \"{name}\"\nsize = \"{size}\""));
            put(format!("session = \"{session}\"\ntoken = {token}"));
            if let Some(hops) = memfd.hops {
                put(format!("hops = {hops}"));
            }
        }
        if let Some(dma) = &self.dma {
            let when_full = if dma.wait { "wait" } else { "overwrite" };
            put(format!(
                "\n[dma]\nrate = \"{} B/s\"\nbuffer = \"{}\"",
                dma.rate,
                bytes(dma.buffer)
            ));
            put(format!(
                "ring = {}\nmemfd = \"{}\"\nwhen_full = \"{when_full}\"",
                dma.ring, dma.memfd
            ));
            if dma.interrupts {
                put("interrupts = true".into());
            }
        }
        put(format!(
            "\n[run]\narmed = \"{} ns\"\nrestore = \"{} ns\"",
            self.armed, self.restore
        ));
        match self.workload {
            Workload::None => (),
            Workload::File(size) => put(format!("workload = \"{}\"", bytes(size))),
            Workload::All => put("workload = \"all\"".into()),
        }
        put(format!("\n[limits]\nledger = {}", self.ledger));
        if self.dma.is_none() {
            put("\n[expect]".into());
            for rule in [
                "device-writes-landed",
                "dma-only-to-preserved",
                "device-never-silent",
            ] {
                put(format!("{rule} = \"unjudged\""));
            }
        }
        text
    }
}

/// The series of a kernel version, such as (7, 3).
pub fn series(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// Whether the second kernel can take over from the first: the formats of KHO, LUO and memfds are the same
/// (include/linux/kho/abi). They changed after 6.19 and after 7.1; 7.2 and 7.3 share theirs.
fn share_formats(old: &str, new: &str) -> bool {
    let formats = |version| match series(version) {
        series if series >= (7, 2) => (7, 2),
        series => series,
    };
    formats(old) == formats(new)
}

/// Two kernels with the same formats, half of the time one kernel twice.
fn kernel_pair(rng: &mut Rng, kernels: &[String]) -> (String, String) {
    let old = kernels[rng.usize(..kernels.len())].clone();
    let others: Vec<&String> = kernels.iter().filter(|new| share_formats(&old, new)).collect();
    let new = if rng.bool() {
        &old
    } else {
        others[rng.usize(..others.len())]
    };
    (old.clone(), new.clone())
}

/// Memory for memfds and workload: what the kernels leave for sure. Most of the rest is the scratch area, which by
/// default is twice what the kernel reserves at boot (7.3.4: 100 MiB of 256 and of 512 MiB, but 173 MiB of 399 MiB with
/// seven processors). With eight, 6.19.11 is out of memory with 51 MiB of 262 MiB.
pub fn room(ram: u64, vcpus: u32) -> u64 {
    (ram - 160 * MIB - u64::from(vcpus) * 4 * MIB) / 2
}

/// Buffer size and number of descriptors that fit `room`.
fn ring(rng: &mut Rng, room: u64) -> (u64, u64) {
    let buffer = 64 << rng.u32(..=6);
    let most = ((room / 2).saturating_sub(20 * PAGE) / buffer).clamp(1, 4096);
    let ring = match rng.u8(..6) {
        0 => 1,
        1 => most,
        _ => log_uniform(rng, 1, most),
    };
    (buffer, ring)
}

/// Memfds of at most `room` pages together. The first has at least `ring` pages and goes all the way.
fn memfds(rng: &mut Rng, kexecs: u32, room: u64, ring: u64) -> Vec<Memfd> {
    let count = match rng.u8(..10) {
        0..5 => 1,
        5..9 => rng.usize(2..=5),
        _ => rng.usize(6..=64),
    };
    let sessions: Vec<String> = (0..rng.usize(1..=4)).map(|index| session(rng, index)).collect();
    let mut left = room;
    (0..count)
        .map(|index| {
            let least = if index == 0 { ring } else { 1 };
            let later = (count - 1 - index) as u64;
            let most = left.saturating_sub(later).max(least);
            let pages = if rng.u8(..8) == 0 {
                most
            } else {
                log_uniform(rng, least, most)
            };
            left = left.saturating_sub(pages);
            // Tokens are unique in their session, so any number plus one of a kind will do.
            let token = [index as u64, rng.u64(..1 << 56) << 6 | index as u64][rng.usize(..2)];
            Memfd {
                name: format!("memory-{index}"),
                pages,
                session: sessions[rng.usize(..sessions.len())].clone(),
                token,
                hops: (index > 0 && rng.bool()).then(|| rng.u32(1..=kexecs)),
            }
        })
        .collect()
}

/// A session's name, up to 63 bytes long and unlike others.
fn session(rng: &mut Rng, index: usize) -> String {
    let length = [3, 10, 62][rng.usize(..3)];
    let rest = (0..length).map(|_| rng.alphanumeric());
    std::iter::once(['a', 'b', 'c', 'd'][index]).chain(rest).collect()
}

/// A wait.
fn time(rng: &mut Rng) -> u64 {
    match rng.u8(..8) {
        0 => 0,
        1 => log_uniform(rng, 20 * MS, 400 * MS),
        _ => log_uniform(rng, 1, 20 * MS),
    }
}

/// A number from `low` to `high`, each order of magnitude as likely as another.
fn log_uniform(rng: &mut Rng, low: u64, high: u64) -> u64 {
    let (from, to) = ((low.max(1) as f64).ln(), (high.max(1) as f64).ln());
    #[allow(clippy::cast_possible_truncation)] // between low and high
    let number = (from + rng.f64() * (to - from)).exp().round() as u64;
    number.clamp(low, high.max(low))
}

/// A size in the largest unit that gives a whole number.
fn bytes(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", MIB), ("KiB", 1 << 10)];
    let fitting = units.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
    fitting.map_or_else(
        || format!("{bytes} B"),
        |(name, unit)| format!("{} {name}", bytes / unit),
    )
}
