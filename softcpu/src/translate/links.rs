//! Which branches lead to which blocks, so that either can be translated first.

use rustc_hash::FxHashMap;

use super::writer::Link;

/// Branches that are kept at most.
const MAX_LINKS: usize = 1 << 20;

/// In place of an index: there are no more.
const END: u32 = u32::MAX;

/// A virtual address in a mode: the address, which is canonical, without its highest bit, and one bit for user mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place(u64);

impl Place {
    pub fn new(va: u64, user: bool) -> Self {
        Self(va << 1 | u64::from(user))
    }
}

/// What is known of a place.
#[derive(Debug, Clone, Copy)]
struct Meeting {
    /// Number of the code page and offset of the code of the block there.
    block: Option<(u32, usize)>,
    /// Index of the last branch that leads there.
    last: u32,
}

/// A branch, the number of the code page that it is in, and the index of the one before that leads to the same place.
#[derive(Debug, Clone, Copy)]
struct Branch {
    page: u32,
    link: Link,
    before: u32,
}

/// All branches and blocks.
#[derive(Debug, Default)]
pub(super) struct Links {
    meetings: FxHashMap<Place, Meeting>,
    branches: Vec<Branch>,
}

impl Links {
    pub fn clear(&mut self) {
        self.meetings.clear();
        self.branches.clear();
    }

    /// Whether so many more branches can be kept.
    pub fn has_room(&self, more: usize) -> bool {
        self.branches.len() + more <= MAX_LINKS
    }

    fn meeting(&mut self, place: Place) -> &mut Meeting {
        self.meetings.entry(place).or_insert(Meeting {
            block: None,
            last: END,
        })
    }

    /// Adds a branch of code page `page`; gives the block that it leads to, if there is one.
    pub fn add(&mut self, place: Place, page: u32, link: Link) -> Option<(u32, usize)> {
        let index = u32::try_from(self.branches.len()).unwrap_or(END);
        let meeting = self.meeting(place);
        let before = std::mem::replace(&mut meeting.last, index);
        let block = meeting.block;
        self.branches.push(Branch { page, link, before });
        block
    }

    /// Adds a block; gives the branches that lead there, and the code pages that they are in.
    pub fn arrive(&mut self, place: Place, page: u32, at: usize) -> impl Iterator<Item = (u32, Link)> + '_ {
        let meeting = self.meeting(place);
        meeting.block = Some((page, at));
        let mut next = meeting.last;
        std::iter::from_fn(move || {
            let branch = self.branches.get(next as usize)?;
            next = branch.before;
            Some((branch.page, branch.link))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn link(at: usize) -> Link {
        Link {
            at,
            target: 0,
            page_at: None,
        }
    }

    #[test]
    fn blocks_and_branches_meet_in_either_order() {
        let mut links = Links::default();
        let kernel = Place::new(0xffff_ffff_8100_0000, false);
        let user = Place::new(0x40_0000, true);
        assert_eq!(links.add(kernel, 1, link(10)), None);
        assert_eq!(links.add(kernel, 2, link(20)), None);
        assert_eq!(links.add(user, 3, link(30)), None);
        let met: Vec<_> = links.arrive(kernel, 7, 70).collect();
        assert_eq!(met, [(2, link(20)), (1, link(10))]);
        assert_eq!(links.add(kernel, 4, link(40)), Some((7, 70)));
        assert_eq!(links.arrive(Place::new(0x40_0000, false), 8, 80).count(), 0);
        assert_eq!(links.arrive(user, 9, 90).collect::<Vec<_>>(), [(3, link(30))]);
        links.clear();
        assert_eq!(links.add(kernel, 1, link(10)), None);
    }
}
