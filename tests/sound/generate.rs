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

/// Longest time that one block may take, so that there is one after each jump for the rules to look at. It is that of
/// 64 bytes at 1 kB/s, the lowest rate.
const MAX_PERIOD_NS: u64 = 64 * MS;

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
}

impl Dma {
    /// Bytes of the memfd that ring, count and buffers take.
    pub fn bytes(buffer: u64, ring: u64) -> u64 {
        2 * PAGE + (ring * 16).next_multiple_of(PAGE) + ring * buffer
    }
}

/// A sound scenario.
#[derive(Debug, Clone)]
pub struct Sound {
    pub seed: u64,
    pub ram: u64,
    pub vcpus: u32,
    pub kexecs: u32,
    pub kernel: String,
    pub memfds: Vec<Memfd>,
    pub dma: Option<Dma>,
    pub armed: u64,
    pub restore: u64,
    pub workload: Option<u64>,
    pub ledger: u64,
}

impl Sound {
    /// The scenario that belongs to `seed`, with one of `kernels`.
    pub fn new(seed: u64, kernels: &[String]) -> Self {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        let kernel = kernels[rng.usize(..kernels.len())].clone();
        let ram = log_uniform(rng, 256 * MIB, 3072 * MIB) / PAGE * PAGE;
        let (vcpus, kexecs) = (rng.u32(1..=8), rng.u32(1..=3));
        let room = room(ram);
        let workload = rng
            .bool()
            .then(|| log_uniform(rng, PAGE, (room / 2).min(384 * MIB)));
        // More takes too long: memfds are filled once, and captured and digested in each generation.
        let room = (room - workload.unwrap_or(0)).min(512 * MIB);
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
            kernel,
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
        // By estimate a scenario fills up to 70 % of the ledger. Block and count are one entry each.
        let most = self.ledger / 10 * 7;
        let wait = rng.bool() && 2 * ring * self.turns() <= most;
        let highest = if wait {
            MAX_RATE
        } else {
            most / 2 * buffer * 1_000_000_000 / self.guest_ns()
        };
        let lowest = (buffer * 1_000_000_000).div_ceil(MAX_PERIOD_NS).max(1_000);
        let rate = log_uniform(rng, lowest, highest.clamp(lowest, MAX_RATE));
        let memfd = self.memfds.first()?.name.clone();
        Some(Dma {
            rate,
            buffer,
            ring,
            memfd,
            wait,
        })
    }

    /// Most times that a waiting engine can fill its ring: at first, and after each of the eight times that each wait of
    /// the run releases blocks.
    fn turns(&self) -> u64 {
        1 + 16 * u64::from(self.kexecs)
    }

    /// Most guest time from the engine's start to its stop, by estimate. Kernels before 7.3 hash the next kernel, which
    /// takes most of the time of a live update.
    pub fn guest_ns(&self) -> u64 {
        let update = if self.kernel.starts_with("7.3") {
            300
        } else {
            1_800
        } * MS;
        let preserved: u64 = self.memfds.iter().map(|memfd| memfd.pages).sum();
        let page_work = preserved * 8_000 + self.workload.unwrap_or(0) / PAGE * 5_000;
        let memory = self.ram / PAGE * 200;
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
        put(format!("\n[kernel]\nold = \"{}\"", self.kernel));
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
        }
        put(format!(
            "\n[run]\narmed = \"{} ns\"\nrestore = \"{} ns\"",
            self.armed, self.restore
        ));
        if let Some(workload) = self.workload {
            put(format!("workload = \"{}\"", bytes(workload)));
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

/// Memory for memfds and workload: what the kernels leave for sure. Most of the rest is the scratch area, which by default
/// is twice what the kernel reserves at boot (7.3.4: 100 MiB of 256 and of 512 MiB, but 173 MiB of 399 MiB with seven
/// processors).
fn room(ram: u64) -> u64 {
    (ram - 144 * MIB) / 2
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
        .map_while(|index| {
            let least = if index == 0 { ring } else { 1 };
            let pages = log_uniform(rng, least, left.max(least));
            left = left.checked_sub(pages)?;
            // Tokens are unique in their session, so any number plus one of a kind will do.
            let token = [index as u64, rng.u64(..1 << 56) << 6 | index as u64][rng.usize(..2)];
            Some(Memfd {
                name: format!("memory-{index}"),
                pages,
                session: sessions[rng.usize(..sessions.len())].clone(),
                token,
                hops: (index > 0 && rng.bool()).then(|| rng.u32(1..=kexecs)),
            })
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
