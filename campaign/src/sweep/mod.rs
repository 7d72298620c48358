//! Sweeps: one kind of fault at every place.
//!
//! [`Sweep`] bends one field of the handover at a time, lets the new kernel have it, and classes what it does. The
//! cases are branches of one run, so that each costs only what the new kernel executes after it first reads the field.
//! [`DmaSweep`] changes one device write, at one moment after the other.

mod base;
mod class;
mod cost;
mod dma;
mod lines;

pub use base::{Base, BaseError};
pub use class::{Class, Classed, Reference, classify};
pub use cost::{Cost, Meter};
pub use dma::{DmaCase, DmaDeed, DmaLine, DmaSweep, dma_table};
pub use lines::{Key, Line, part, read, table};

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use harness::bend::{NAMES, Named, literal, written};
use harness::conductor::{Run, chain};
use harness::plan::Plan;
use harness::verdict::Judged;
use kho_core::fields::{Field, FieldError, LIST_LIMIT};
use vmm::soft::Soft;

/// Which cases to run: all values of the fields of a path, or one value.
///
/// As text `PATH` or `PATH=VALUE`. A path that ends in `*` stands for all paths that begin so. A value is the name of
/// a value, a number, `text:...` or `hex:...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Only {
    path: String,
    value: Option<String>,
}

impl std::str::FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, value) = match text.rsplit_once('=') {
            Some((path, value)) => (path, Some(value)),
            None => (text, None),
        };
        let known = |text: &str| NAMES.contains(&text) || literal(text).is_some();
        match value {
            _ if path.is_empty() => {
                Err("expected PATH or PATH=VALUE, such as luo/compatible=text:luo-v9".into())
            }
            Some(value) if !known(value) => Err(format!(
                "\"{value}\" is no value: expected a name ({}), a number, text:... or hex:...",
                NAMES.join(", ")
            )),
            _ => Ok(Self {
                path: path.into(),
                value: value.map(Into::into),
            }),
        }
    }
}

/// The name of a value that is not one of a sweep's own.
const GIVEN: &str = "given";

/// One bent field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The field, with the value that the old kernel wrote.
    pub field: Field,
    /// Its new value.
    pub named: Named,
}

/// A sweep over the fields of a handover.
#[derive(Debug)]
pub struct Sweep {
    /// The unchanged run.
    pub base: Base,
    plan: Plan,
    /// Command line up to `--only`.
    command: String,
    /// Branch at the entry always, not as late as is equal.
    pub from_entry: bool,
    /// Whether evidence has the hash of the machine's state, which costs time in each case.
    pub hashed: bool,
}

/// A case that was run.
#[derive(Debug)]
pub struct Ran {
    /// Its result.
    pub line: Line,
    /// Its evidence, judged.
    pub judged: Judged,
    /// What it took.
    pub cost: Cost,
}

/// Why a case could not be run.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct CaseError {
    /// The field.
    pub path: String,
    /// Why.
    pub reason: String,
}

impl Sweep {
    /// Makes the unchanged run of `plan`. `command` is what a reproducing command line begins with.
    pub fn new(plan: &Plan, agent: &[u8], command: &str, soft: Soft) -> Result<Self, BaseError> {
        Ok(Self {
            base: Base::new(plan, agent, soft)?,
            plan: plan.clone(),
            command: command.into(),
            from_entry: false,
            hashed: false,
        })
    }

    /// Release of the kernel that is tested.
    pub fn kernel(&self) -> &str {
        &self.plan.kernel(1).release
    }

    /// The cases: those of `only`, or all if there are none.
    pub fn cases(&self, only: &[Only]) -> Result<Vec<Case>, FieldError> {
        let handover = self.base.bendable();
        let of = |field: &Field| {
            let all = handover.values(field).into_iter();
            // A bit of a block that no bitmap has a place for cannot be set.
            all.filter(|named| handover.writes(field, &named.value).is_ok())
                .collect::<Vec<_>>()
        };
        let all_of = |field: &Field| {
            let case = |named| Case {
                field: field.clone(),
                named,
            };
            of(field).into_iter().map(case).collect::<Vec<_>>()
        };
        if only.is_empty() {
            return Ok(handover.fields(LIST_LIMIT).iter().flat_map(all_of).collect());
        }
        let mut cases = Vec::new();
        for Only { path, value } in only {
            let fields = match path.strip_suffix('*') {
                Some(prefix) => {
                    let mut fields = handover.fields(LIST_LIMIT);
                    fields.retain(|field| field.path.starts_with(prefix));
                    fields
                }
                None => vec![handover.find(path)?],
            };
            for field in fields {
                match value {
                    None => cases.extend(all_of(&field)),
                    Some(value) => cases.extend(self.given(&field, value, all_of(&field))?),
                }
            }
        }
        Ok(cases)
    }

    /// The case of a value that is given by its name or literally.
    fn given(&self, field: &Field, value: &str, all: Vec<Case>) -> Result<Option<Case>, FieldError> {
        let handover = self.base.bendable();
        // The list has one name for values that are equal.
        let Some(value) = literal(value).or_else(|| handover.value(field, value)) else {
            return Ok(None);
        };
        handover.writes(field, &value)?;
        let known = all.into_iter().find(|case| case.named.value == value);
        let named = Named { name: GIVEN, value };
        Ok(known.or(Some(Case {
            field: field.clone(),
            named,
        })))
    }

    /// Runs a case to its end and classes it.
    pub fn run(&self, case: &Case) -> Result<Ran, CaseError> {
        let meter = Meter::start();
        let failed = |reason: String| CaseError {
            path: case.field.path.clone(),
            reason,
        };
        let writes = self.base.bendable().writes(&case.field, &case.named.value);
        let writes = writes.map_err(|error| failed(chain(&error)))?;
        let snapshot = if self.from_entry {
            &self.base.entry
        } else {
            self.base.fork(&writes)
        };
        let mut run = Run::from_snapshot(snapshot, &[]).map_err(|error| failed(chain(&error)))?;
        for write in &writes {
            run.put(write.at, &write.bytes)
                .map_err(|error| failed(chain(&error)))?;
        }
        run.warm_up(&self.base.warm);
        let running = Meter::start();
        let before = run.stands_at().retired;
        run.proceed(&[], &());
        let ran = running.elapsed();
        let after = run.stands_at().retired;
        run.leave_code(&self.base.warm);
        let evidence = if self.hashed {
            run.finish(&())
        } else {
            run.finish_unhashed(&())
        };
        let judged = Judged::new(evidence).map_err(|error| failed(error.to_string()))?;
        let Classed { class, what, warned } = classify(&judged, &self.base.reference);
        let set = written(&case.named.value);
        let line = Line {
            kernel: self.kernel().into(),
            scenario: self.plan.name.clone(),
            seed: self.plan.seed,
            path: case.field.path.clone(),
            kind: case.field.kind,
            value: case.named.name.into(),
            was: written(&case.field.value),
            class,
            warned,
            what,
            reproduce: format!("{} --only '{}={set}'", self.command, case.field.path),
            set,
        };
        let cost = Cost {
            instructions: after.unwrap_or(0).saturating_sub(before.unwrap_or(0)),
            running: ran,
            whole: meter.elapsed(),
        };
        Ok(Ran { line, judged, cost })
    }

    /// Runs cases on `jobs` threads. `each` is told each result when it is there; a case that could not be run is told
    /// as an error, and the others go on. Evidence of interesting cases is kept in a folder each under `keep`.
    pub fn run_all(
        &self,
        cases: &[Case],
        jobs: usize,
        keep: Option<&Path>,
        each: &(dyn Fn(Result<&Line, &CaseError>) + Sync),
    ) {
        let told = Mutex::new(());
        each_of(cases, jobs, |case| {
            let result = self.run(case).and_then(|Ran { line, judged, .. }| {
                keep.map_or(Ok(()), |keep| keep_evidence(&line, &judged, keep))?;
                Ok(line)
            });
            let _one_at_a_time = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            each(result.as_ref());
        });
    }
}

/// Works on cases on `jobs` threads.
pub fn each_of<C: Sync>(cases: &[C], jobs: usize, work: impl Fn(&C) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, cases.len().max(1)) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(case);
                }
            });
        }
    });
}

/// The folder under `keep` for the evidence of a case. Each case of a sweep has its own.
pub fn folder(line: &Line, keep: &Path) -> PathBuf {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '_'
        }
    };
    // Values that are given literally have one name.
    let value = if line.value == GIVEN {
        &line.set
    } else {
        &line.value
    };
    let name: String = format!("{}-{}-{value}", line.kernel, line.path)
        .chars()
        .map(plain)
        .collect();
    keep.join(name)
}

fn keep_evidence(line: &Line, judged: &Judged, keep: &Path) -> Result<(), CaseError> {
    if !line.class.is_interesting() {
        return Ok(());
    }
    harness::evidence::save(&judged.evidence, &folder(line, keep)).map_err(|error| CaseError {
        path: line.path.clone(),
        reason: chain(&error),
    })
}

/// The cases that have no line yet.
pub fn left(cases: Vec<Case>, kernel: &str, lines: &[Line]) -> Vec<Case> {
    let done: HashSet<Key> = lines.iter().map(Line::key).collect();
    let is_left = |case: &Case| {
        let key = (
            kernel.to_owned(),
            case.field.path.clone(),
            written(&case.named.value),
        );
        !done.contains(&key)
    };
    cases.into_iter().filter(is_left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kho_core::fields::Kind;

    fn line(value: &str, set: &str) -> Line {
        Line {
            kernel: "7.3.4".into(),
            scenario: "receiver".into(),
            seed: 1,
            path: "luo/session[vm]/file[0]/token".into(),
            kind: Kind::Number,
            value: value.into(),
            set: set.into(),
            was: "0x11".into(),
            class: Class::Oops,
            warned: true,
            what: String::new(),
            reproduce: String::new(),
        }
    }

    #[test]
    fn each_case_has_a_folder_of_its_own() {
        let of = |value, set| folder(&line(value, set), Path::new("keep"));
        assert_eq!(
            of("one", "0x1"),
            Path::new("keep/7.3.4-luo_session_vm__file_0__token-one")
        );
        assert_ne!(of(GIVEN, "0x7"), of(GIVEN, "0x8"));
    }
}
