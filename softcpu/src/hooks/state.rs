//! What is watched, and what was seen, as plain data.

use serde::{Deserialize, Serialize};

use super::{CODE, CpuWrite, Hooks, LOGGED, UNIT, number, number_of};
use crate::memory::{PAGE_SIZE, Ram};
use crate::state::StateError;

/// What is watched on a processor and what has been seen. Nothing of it changes what the guest does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watches {
    /// First write to each page since the epoch began, in order.
    pub epoch: Vec<CpuWrite>,
    /// Pages whose writers are kept, by ascending address.
    pub written: Vec<WatchedPage>,
    /// Guest physical addresses of the pages whose execution is watched, ascending.
    pub executed: Vec<u64>,
    /// Stop before kernel code in the lower half of the address space.
    pub low_supervisor_fetch: bool,
    /// The stop before the instruction at this virtual address has been reported; go on past it.
    pub pass: Option<u64>,
    /// When user mode was last left, in ticks of guest time.
    pub left_user: Option<u64>,
    /// When user mode was first entered since the marks were reset.
    pub entered_user: Option<u64>,
}

/// A page whose writers are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchedPage {
    /// Guest physical address.
    pub gpa: u64,
    /// Last writer of each 8 bytes that were written: their number in the page, ascending, and the write.
    pub last: Vec<(u16, CpuWrite)>,
}

impl Hooks {
    pub fn state(&self, ram: &Ram) -> Watches {
        let Self {
            // Flags and code maps follow from the lists below and from decoded code, which is a cache.
            pages: _,
            code: _,
            any_code: _,
            epoch,
            watched,
            executed,
            // For one run that nobody holds: it drops translations, which a held run must not do.
            accessed: _,
            low_supervisor_fetch,
            // Whoever awaits them says so again after a restore.
            addresses: _,
            address_mask: _,
            pass,
            left_user,
            entered_user,
        } = self;
        let address = |page: usize| ram.address_of(page as u64 * PAGE_SIZE);
        Watches {
            epoch: epoch.clone(),
            written: watched
                .iter()
                .map(|(page, units)| WatchedPage {
                    gpa: address(*page),
                    last: (0..)
                        .zip(units)
                        .filter_map(|(unit, last)| Some((unit, (*last)?)))
                        .collect(),
                })
                .collect(),
            executed: executed.iter().map(|page| address(*page)).collect(),
            low_supervisor_fetch: *low_supervisor_fetch,
            pass: *pass,
            left_user: *left_user,
            entered_user: *entered_user,
        }
    }

    pub fn from_state(state: &Watches, ram: &Ram) -> Result<Self, StateError> {
        let Watches {
            epoch,
            written,
            executed,
            low_supervisor_fetch,
            pass,
            left_user,
            entered_user,
        } = state;
        let mut hooks = Self {
            epoch: epoch.clone(),
            low_supervisor_fetch: *low_supervisor_fetch,
            pass: *pass,
            left_user: *left_user,
            entered_user: *entered_user,
            ..Self::default()
        };
        hooks.cover(ram);
        for record in epoch {
            let page = page_of(record.gpa, ram)?;
            within_page(record)?;
            if hooks.flags(page) & LOGGED != 0 {
                return Err(StateError::Twice {
                    what: "first write of an epoch",
                    page: record.gpa & !(PAGE_SIZE - 1),
                });
            }
            hooks.set(page, LOGGED, true);
        }
        let mut last = None;
        for WatchedPage { gpa, last: writes } in written {
            let page = ascending(&mut last, whole_page(*gpa, ram)?, "watched page", *gpa)?;
            hooks.watch_writes(page, true);
            let units = hooks.watched.entry(number(page)).or_default();
            let mut last_unit = None;
            for (unit, record) in writes {
                within_page(record)?;
                ascending(
                    &mut last_unit,
                    u64::from(*unit),
                    "written word of a watched page",
                    *gpa,
                )?;
                let first = record.gpa % PAGE_SIZE / UNIT;
                let end = (record.gpa % PAGE_SIZE + u64::from(record.len)).div_ceil(UNIT);
                let covers =
                    record.gpa & !(PAGE_SIZE - 1) == *gpa && (first..end).contains(&u64::from(*unit));
                match units.get_mut(number_of((*unit).into())) {
                    Some(place) if covers => *place = Some(*record),
                    _ => {
                        return Err(StateError::Writer {
                            page: *gpa,
                            unit: *unit,
                        });
                    }
                }
            }
        }
        last = None;
        for gpa in executed {
            let page = ascending(
                &mut last,
                whole_page(*gpa, ram)?,
                "page watched for execution",
                *gpa,
            )?;
            hooks.watch_execution(page, true);
        }
        debug_assert!(hooks.pages.iter().all(|flags| flags & CODE == 0));
        Ok(hooks)
    }
}

/// RAM offset of the page around `gpa`.
fn page_of(gpa: u64, ram: &Ram) -> Result<u64, StateError> {
    ram.page_offset(gpa).ok_or(StateError::NotRam { gpa })
}

/// RAM offset of the page at `gpa`.
fn whole_page(gpa: u64, ram: &Ram) -> Result<u64, StateError> {
    if gpa.is_multiple_of(PAGE_SIZE) {
        page_of(gpa, ram)
    } else {
        Err(StateError::NotRam { gpa })
    }
}

fn within_page(record: &CpuWrite) -> Result<(), StateError> {
    let end = record.gpa % PAGE_SIZE + u64::from(record.len);
    if record.len == 0 || end > PAGE_SIZE {
        return Err(StateError::WriteLength {
            gpa: record.gpa,
            len: record.len,
        });
    }
    Ok(())
}

/// `value`, if it is above the last one.
fn ascending(last: &mut Option<u64>, value: u64, what: &'static str, page: u64) -> Result<u64, StateError> {
    if last.is_some_and(|last| value <= last) {
        return Err(StateError::Twice { what, page });
    }
    *last = Some(value);
    Ok(value)
}
