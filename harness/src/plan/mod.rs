//! A plan: a scenario with kernels, seeds and objects resolved, and the steps of each kernel generation.

mod dma;
mod given;
mod given_dma;
mod inject;
mod overrides;
mod payload_steps;
mod steps;
mod words;

pub use dma::bytes_before_buffers;
use dma::dma_plan;
pub(crate) use given_dma::{first_preserved, preserves};
pub use inject::{Ask, BlobAsk, FieldChange, InjectionPlan, Thing, Where};
pub use overrides::Overrides;
pub use steps::Step;

use crate::evidence::{CheckpointKind, DmaSetup, MemfdEnd, ObjectKind, Phase};
use crate::handover::{HandoverError, HandoverPlan};
use crate::kernel::{KernelError, KernelImage};
use crate::payload::{PackError, PayloadPlan, device_memory};
use crate::scenario::{KexecBy, Scenario};
use crate::seed::seed_for;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Command line of every guest kernel. `liveupdate=on kho=on` enable live update. `retain_initrd` keeps the initramfs
/// readable, which is the initrd of the next kernel. `no_timer_check` and `lpj` skip calibrations. `panic=-1` makes a
/// panic end the run at once, `reboot=acpi` by the reset register even in a kernel that would ask EFI firmware.
/// `earlyprintk` makes a death in early boot be told; the real console takes over without repeating a line.
/// `loglevel=5`, before it, prints only warnings and worse, because each character costs guest time; a
/// scenario may append another level.
pub const COMMAND_LINE: &str = "console=ttyS0 loglevel=5 earlyprintk=ttyS0 liveupdate=on kho=on retain_initrd no_timer_check lpj=5000000 mitigations=off panic=-1 reboot=acpi";

/// Identity of the first region of reserve_mem.
const FIRST_REGION: u32 = 3000;
/// The kernel's table of regions (mm/memblock.c). A kernel without it knows no `reserve_mem=`.
pub const REGION_TABLE: &str = "reserved_mem_table";
/// Identity of the first object that is found in a handover.
pub const FIRST_FOUND: u32 = 5000;
/// Identity of the file that [`Step::UseMemory`] fills; no evidence is kept of it.
pub const WORKLOAD_OBJECT: u32 = 2000;

/// A scenario with everything resolved, except its expectations: the verdict reads those from `scenario_text`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Scenario name.
    pub name: String,
    /// Path of the scenario file as given.
    pub scenario_file: String,
    /// Text of the scenario file.
    pub scenario_text: String,
    /// What the command line overrides.
    pub overrides: Overrides,
    /// Seed of the run.
    pub seed: u64,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Kexecs in a row.
    pub kexecs: u32,
    /// The first kernel.
    pub old_kernel: KernelImage,
    /// Every later kernel; `None` if it is the first one again.
    pub new_kernel: Option<KernelImage>,
    /// Command line of the first kernel.
    pub old_command_line: String,
    /// Command line of every later kernel.
    pub new_command_line: String,
    /// Memory objects of the agent.
    pub objects: Vec<ObjectPlan>,
    /// Whether the kernel's own test of Kexec HandOver is one of the objects.
    pub test_kho: bool,
    /// What generation 1 is handed over, if it is booted first. Generation 0 does not run then.
    pub handover: Option<HandoverPlan>,
    /// Programs of the user's own, instead of objects of the agent's.
    pub payload: Option<PayloadPlan>,
    /// The DMA engine.
    pub dma: Option<DmaSetup>,
    /// Faults on purpose.
    pub injections: Vec<InjectionPlan>,
    /// For each generation, the steps after its agent's greeting.
    pub steps: Vec<Vec<Step>>,
    /// Guest time without progress after which the guest counts as hung, in nanoseconds.
    pub progress_ns: u64,
    /// The same while a kernel boots, until its agent's greeting.
    pub boot_progress_ns: u64,
    /// Most ledger entries.
    pub ledger_entries: u64,
}

impl Plan {
    /// Why only the `soft` backend can run it, in one sentence; `None` if `kvm` can, too.
    pub fn needs_soft(&self) -> Option<String> {
        if self
            .payload
            .as_ref()
            .is_some_and(|payload| payload.kexec == KexecBy::Payload)
        {
            return Some(
                "a kexec of the payload's own, which the kvm backend does not see; use --backend soft".into(),
            );
        }
        let all = self.injections.iter().enumerate();
        let mut reasons = all.filter_map(|(number, planned)| {
            let what = planned.injection.needs_soft()?;
            Some(format!(
                "injection {number}: {what}, which the kvm backend cannot; use --backend soft"
            ))
        });
        reasons.next()
    }
}

/// A memory object of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectPlan {
    /// Identity in messages.
    pub id: u32,
    /// Name in reports.
    pub name: String,
    /// What it is.
    pub kind: ObjectKind,
    /// What the new kernel's agent does about it.
    pub end: MemfdEnd,
    /// Size in bytes.
    pub bytes: u64,
    /// Seed of its pattern.
    pub seed: u64,
    /// Number of kexecs over which it is preserved.
    pub hops: u32,
    /// Whether it begins as zeroes, which the scenario's steps change, and not with its pattern.
    pub blank: bool,
}

impl ObjectPlan {
    /// Session and token, if the agent preserves it.
    pub fn preserve(&self) -> Option<(&String, u64)> {
        match &self.kind {
            ObjectKind::Memfd { session, token } => Some((session, *token)),
            ObjectKind::ReserveMem
            | ObjectKind::Anonymous
            | ObjectKind::Device
            | ObjectKind::Found { .. } => None,
        }
    }

    /// Whether it is the DMA engine's own memory.
    pub fn is_device(&self) -> bool {
        self.kind == ObjectKind::Device
    }

    /// What and which it is, for people.
    pub fn words(&self) -> String {
        let kind = match self.kind {
            ObjectKind::Memfd { .. } | ObjectKind::Found { .. } => "memfd",
            ObjectKind::ReserveMem => "reserve_mem",
            ObjectKind::Anonymous | ObjectKind::Device => "memory",
        };
        format!("{kind} \"{}\"", self.name)
    }
}

/// There can be no plan for a scenario.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source}")]
pub struct PlanError {
    /// Where the scenario's text says what cannot be had; `None` if the command line or a default says it.
    pub span: Option<std::ops::Range<usize>>,
    /// Why.
    pub source: Unplanned,
}

/// Why there can be no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unplanned {
    /// A kernel was not found or cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The handover cannot be made.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// The payload cannot be had.
    #[error(transparent)]
    Payload(#[from] PackError),
    /// The scenario allows no such machine.
    #[error("with {options}: {reason}")]
    Overridden {
        /// The options of the command line.
        options: String,
        /// What is wrong.
        reason: String,
    },
}

/// Resolves a scenario.
pub fn plan(scenario: &Scenario, file: &str, text: &str, overrides: &Overrides) -> Result<Plan, PlanError> {
    plan_with(scenario, file, text, overrides, &mut KernelImage::resolve)
}

/// Resolves a scenario, with `find` for its kernels.
pub fn plan_with(
    scenario: &Scenario,
    file: &str,
    text: &str,
    overrides: &Overrides,
    find: &mut dyn FnMut(&str) -> Result<KernelImage, KernelError>,
) -> Result<Plan, PlanError> {
    let overridden = overrides.with_machine(scenario)?;
    let scenario = overridden.as_ref().unwrap_or(scenario);
    let [(old, old_span), (new, new_span)] = overrides.kernels(scenario, file);
    let mut resolve = |name: &str, span: &Option<std::ops::Range<usize>>| {
        find(name).map_err(|source| PlanError {
            span: span.clone(),
            source: source.into(),
        })
    };
    let old_kernel = resolve(&old, &old_span)?;
    let new_kernel = if new == old {
        None
    } else {
        Some(resolve(&new, &new_span)?)
    };
    if let Some(region) = scenario.reserve_mem.first() {
        for kernel in [Some(&old_kernel), new_kernel.as_ref()].into_iter().flatten() {
            kernel.require_symbol(REGION_TABLE).map_err(|source| PlanError {
                span: Some(region.name.span()),
                source: source.into(),
            })?;
        }
    }
    for inject in &scenario.inject {
        let when = inject.when.get_ref();
        if let (Some(symbol), Some(since)) = (&when.symbol, when.since()) {
            let kernel = kernel_of(since.generation.into(), &old_kernel, new_kernel.as_ref());
            let found = kernel.require_symbol(symbol);
            found.map_err(|source| PlanError {
                span: Some(inject.when.span()),
                source: source.into(),
            })?;
        }
    }
    let mut plan = with_kernels(scenario, file, text, overrides, old_kernel, new_kernel);
    if let Some(payload) = &scenario.payload {
        let made = PayloadPlan::new(payload.get_ref(), Path::new(file));
        plan.payload = Some(made.map_err(|source| PlanError {
            span: Some(payload.get_ref().initramfs.span()),
            source: source.into(),
        })?);
    }
    let Some(wanted) = &scenario.handover else {
        return Ok(plan);
    };
    let made = crate::handover::plan(wanted.get_ref(), Path::new(file), plan.ram_bytes, &plan.objects);
    let made = made.map_err(|source| PlanError {
        span: Some(wanted.span()),
        source: source.into(),
    })?;
    Ok(Plan {
        handover: Some(made),
        ..plan
    })
}

/// What would be done, without looking for any kernel: a plan to read, and not to run. What needs a kernel is left out:
/// addresses of symbols, and a handover that is built; and so is the initramfs of a payload.
pub fn outline(
    scenario: &Scenario,
    file: &str,
    text: &str,
    overrides: &Overrides,
) -> Result<Plan, PlanError> {
    let overridden = overrides.with_machine(scenario)?;
    let scenario = overridden.as_ref().unwrap_or(scenario);
    let [(old, _), (new, _)] = overrides.kernels(scenario, file);
    let new_kernel = (new != old).then(|| KernelImage::named(&new));
    let old_kernel = KernelImage::named(&old);
    let plan = with_kernels(scenario, file, text, overrides, old_kernel, new_kernel);
    let payload = scenario.payload.as_ref();
    Ok(Plan {
        payload: payload.map(|payload| PayloadPlan::with(payload.get_ref(), Vec::new())),
        ..plan
    })
}

/// The plan of a scenario with these kernels.
pub(crate) fn with_kernels(
    scenario: &Scenario,
    file: &str,
    text: &str,
    overrides: &Overrides,
    old_kernel: KernelImage,
    new_kernel: Option<KernelImage>,
) -> Plan {
    let (seed, kernel) = (overrides.seed.unwrap_or(scenario.seed), &scenario.kernel);
    let kexecs = *scenario.kexecs.get_ref();
    let (progress_ns, boot_progress_ns) = overrides.patience(&scenario.limits);
    let added = overrides.append.as_deref().unwrap_or_default();
    let mut objects: Vec<ObjectPlan> = (1..)
        .zip(&scenario.memfd)
        .map(|(id, memfd)| ObjectPlan {
            id,
            name: memfd.name.get_ref().clone(),
            kind: ObjectKind::Memfd {
                session: memfd.session.clone(),
                token: *memfd.token.get_ref(),
            },
            end: memfd.end(),
            bytes: memfd.size.get_ref().0,
            seed: seed_for(seed, &format!("memfd/{}", memfd.name.get_ref())),
            hops: match memfd.end() {
                MemfdEnd::Retrieved => memfd.hops.as_ref().map_or(kexecs, |hops| *hops.get_ref()),
                MemfdEnd::Finished | MemfdEnd::Left => 1,
            },
            blank: false,
        })
        .collect();
    let given = scenario.given(seed);
    if scenario.gives_steps() {
        given::settle(&mut objects, &given, scenario.handover.is_some());
    }
    let dma = dma_plan(scenario, seed, &mut objects);
    objects.extend(
        (FIRST_REGION..)
            .zip(&scenario.reserve_mem)
            .map(|(id, region)| ObjectPlan {
                id,
                name: region.name.get_ref().clone(),
                kind: ObjectKind::ReserveMem,
                end: MemfdEnd::Retrieved,
                bytes: region.size.get_ref().0,
                seed: seed_for(seed, &format!("reserve_mem/{}", region.name.get_ref())),
                hops: kexecs,
                blank: false,
            }),
    );
    let linked = |generation: u16, symbol: &str| {
        kernel_of(generation.into(), &old_kernel, new_kernel.as_ref()).linked_address(symbol)
    };
    let injections = inject::of(scenario, seed, &objects, &linked);
    let own = scenario.own_parameters();
    let mut plan = Plan {
        name: scenario.name.get_ref().clone(),
        scenario_file: file.into(),
        scenario_text: text.into(),
        overrides: overrides.clone(),
        seed,
        ram_bytes: scenario.ram.get_ref().0,
        vcpus: *scenario.vcpus.get_ref(),
        kexecs,
        old_kernel,
        new_kernel,
        old_command_line: command_line(&[COMMAND_LINE, &own, &kernel.append, &kernel.append_old, added]),
        new_command_line: command_line(&[COMMAND_LINE, &own, &kernel.append, &kernel.append_new, added]),
        objects,
        test_kho: scenario.test_kho.is_some(),
        handover: None,
        payload: None,
        dma,
        injections,
        steps: Vec::new(),
        progress_ns,
        boot_progress_ns,
        ledger_entries: *scenario.limits.ledger.get_ref(),
    };
    plan.steps = (0..=kexecs)
        .map(|generation| match given.as_slice() {
            [] => steps::of(&plan, scenario, generation),
            given => given::of(&plan, scenario, given, generation),
        })
        .collect();
    plan
}

/// The kernel of a generation. Without a new one it is the old one again.
fn kernel_of<'a>(generation: u32, old: &'a KernelImage, new: Option<&'a KernelImage>) -> &'a KernelImage {
    new.filter(|_| generation > 0).unwrap_or(old)
}

/// A kernel's command line of these parts, of which any may be empty.
#[must_use]
pub fn command_line(parts: &[&str]) -> String {
    parts
        .iter()
        .map(|part| part.trim())
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

impl Plan {
    /// The same with `text` added to every command line.
    pub fn with_command_line(&self, text: &str) -> Self {
        Self {
            old_command_line: command_line(&[&self.old_command_line, text]),
            new_command_line: command_line(&[&self.new_command_line, text]),
            ..self.clone()
        }
    }

    /// Whether the scenario gives its own steps.
    pub fn gives_steps(&self) -> bool {
        let mut steps = self.steps.iter().flatten();
        steps.any(|step| matches!(step, Step::Given(_)))
    }

    /// Whether the next kernel comes through the mailbox, and what the first one refuses is left out; see
    /// [`Overrides::survey`].
    pub fn is_survey(&self) -> bool {
        self.overrides.survey
    }

    /// Whether a run of `other` is the same as one of this plan until the first injection of either is armed. The text
    /// of the scenario has expectations, which no run depends on. Runs of a matrix may go on to other kernels: they are
    /// the same at least until the first kernel's agent has greeted.
    pub fn begins_as(&self, other: &Self) -> bool {
        let Self {
            name,
            scenario_file,
            scenario_text: _,
            overrides,
            seed,
            ram_bytes,
            vcpus,
            kexecs,
            old_kernel,
            new_kernel: _,
            old_command_line,
            new_command_line,
            objects,
            test_kho,
            handover,
            payload,
            dma,
            injections: _,
            steps,
            progress_ns,
            boot_progress_ns,
            ledger_entries,
        } = self;
        let kernel = |kernel: &KernelImage| (kernel.hash, kernel.path.clone());
        *name == other.name
            && *scenario_file == other.scenario_file
            && overrides.begins_as(&other.overrides)
            && *seed == other.seed
            && *ram_bytes == other.ram_bytes
            && *vcpus == other.vcpus
            && *kexecs == other.kexecs
            && kernel(old_kernel) == kernel(&other.old_kernel)
            && (overrides.survey || self.has_new_kernel_of(other))
            && *old_command_line == other.old_command_line
            && *new_command_line == other.new_command_line
            && *objects == other.objects
            && *test_kho == other.test_kho
            && *handover == other.handover
            && *payload == other.payload
            && *dma == other.dma
            && *steps == other.steps
            && *progress_ns == other.progress_ns
            && *boot_progress_ns == other.boot_progress_ns
            && *ledger_entries == other.ledger_entries
    }

    /// Whether the later kernels are those of `other`.
    pub fn has_new_kernel_of(&self, other: &Self) -> bool {
        let kernel = |plan: &Self| {
            let kernel = plan.kernel(1);
            (kernel.hash, kernel.path.clone())
        };
        kernel(self) == kernel(other)
    }

    /// The generation that is booted.
    pub fn first_generation(&self) -> u32 {
        self.handover.is_some().into()
    }

    /// The kernel of a generation.
    pub fn kernel(&self, generation: u32) -> &KernelImage {
        kernel_of(generation, &self.old_kernel, self.new_kernel.as_ref())
    }

    /// Reads the files that a run would read when it wants them, so that it wants none.
    pub fn read_files(&self) {
        for generation in self.first_generation()..=self.kexecs {
            self.kernel(generation).read_symbols();
        }
    }

    /// The command line of a generation.
    pub fn command_line(&self, generation: u32) -> &str {
        if generation == 0 {
            &self.old_command_line
        } else {
            &self.new_command_line
        }
    }

    /// Steps of a generation that could not retrieve everything: they end the run.
    pub fn wind_down(&self) -> Vec<Step> {
        let stop = self.dma.as_ref().map(|_| Step::StopDma);
        [Step::Phase(Phase::Done)]
            .into_iter()
            .chain(stop)
            .chain([
                Step::Capture(CheckpointKind::End),
                Step::KernelLog,
                Step::PowerOff,
            ])
            .collect()
    }

    /// RAM that belongs to the DMA engine and not to the kernels, if there is any.
    pub fn device_memory(&self) -> Option<std::ops::Range<u64>> {
        device_memory(self.ram_bytes, &self.objects)
    }

    /// The object of identity `id`.
    pub fn object(&self, id: u32) -> Option<&ObjectPlan> {
        self.objects.iter().find(|object| object.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::PAGE;

    #[test]
    fn list_descriptors_count_and_buffers_follow_each_other() {
        for (entries, descriptors) in [(1, 1), (256, 1), (257, 2), (4096, 16)] {
            let text = format!(
                "{}[dma]\nrate = \"1 MB/s\"\nring = {entries}\nbuffer = \"64 B\"\n",
                crate::testing::SCENARIO.replace("72 KiB", "328 KiB"),
            );
            let ring = crate::testing::plan(&text).dma.unwrap().ring;
            let offsets =
                [ring.list, ring.descriptors, ring.completion, ring.buffers].map(|place| place.offset / PAGE);
            assert_eq!(offsets, [0, 1, 1 + descriptors, 2 + descriptors], "{entries}");
        }
    }

    #[test]
    fn a_plan_and_its_kernels_come_back_from_bytes() {
        let plan = crate::testing::plan(crate::testing::SCENARIO);
        let bytes = postcard::to_allocvec(&plan).unwrap();
        let again: Plan = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(postcard::to_allocvec(&again).unwrap(), bytes);
        assert_eq!(again.steps, plan.steps);
        let (old, new) = (again.kernel(0), again.kernel(1));
        assert_eq!(
            (old.hash, &old.release),
            (plan.old_kernel.hash, &plan.old_kernel.release)
        );
        assert_eq!(
            new.symbol(&crate::kernel::Fit::At(0), 0xffff_ffff_8100_0107)
                .as_deref(),
            Some("clear_page+0x7")
        );
    }

    #[test]
    fn expectations_and_injections_change_nothing_before_an_injection_is_armed() {
        let of = |added: &str| crate::testing::plan(&format!("{}\n{added}", crate::testing::SCENARIO));
        let plain = of("");
        let fault =
            "[[inject]]\nwhen.phase = \"armed\"\nwhat.memory.write = { at = 0x1000, bytes = \"00\" }\n";
        assert!(plain.begins_as(&of(fault)));
        assert!(of(fault).begins_as(&plain));
        assert!(!plain.begins_as(&of("[limits]\nprogress = \"3 s\"\n")));
        let other_seed = Plan {
            seed: plain.seed + 1,
            ..plain.clone()
        };
        assert!(!plain.begins_as(&other_seed));
    }

    #[test]
    fn runs_of_a_matrix_begin_equally_whatever_kernel_is_next() {
        let plan = |old: &str, new: &str, survey: bool| {
            let plan = crate::testing::plan_with(crate::testing::SCENARIO, |overrides| {
                (overrides.kernel, overrides.next_kernel) = (Some(old.into()), Some(new.into()));
                overrides.survey = survey;
            });
            Plan {
                new_kernel: Some(KernelImage::in_memory(new, "")),
                ..plan
            }
        };
        assert!(plan("a", "b", true).begins_as(&plan("a", "c", true)));
        assert!(!plan("a", "b", true).begins_as(&plan("b", "b", true)));
        assert!(!plan("a", "b", false).begins_as(&plan("a", "c", false)));
        assert!(!plan("a", "b", true).begins_as(&plan("a", "b", false)));
        assert!(plan("a", "b", false).begins_as(&plan("a", "b", false)));
    }

    #[test]
    fn command_lines_have_single_spaces() {
        assert_eq!(command_line(&["a b", "", " c "]), "a b c");
    }
}
