//! Talks about memory that a kernel reserves by name (`reserve_mem=`).

use super::super::regions::Region;
use super::*;

/// A guest that has, in `generation`, these regions.
fn regions_in(generation: u32, found: Option<Vec<Region>>) -> impl Fn(&Guest<'_>, &Move) -> Option<What> {
    move |guest, due| {
        let here = guest.at.moment.generation == generation && *due == Move::FindRegions;
        here.then(|| What::Regions(found.clone()))
    }
}

fn region(name: &str, start: u64, bytes: u64) -> Vec<Region> {
    let name = name.into();
    vec![Region { name, start, bytes }]
}

#[test]
fn memory_reserved_by_name_is_found_filled_and_found_again() {
    let plan = testing::plan(OWN);
    let told = talk(&plan, &|_, _| None);
    assert_eq!(told.ending(), (OutcomeKind::Completed, "every step was done"));
    let object = told
        .evidence
        .objects
        .iter()
        .find(|object| object.name == "kept")
        .unwrap();
    let run = PageRun {
        first: 0x4_0000,
        count: 2,
    };
    assert_eq!(object.pages, [(0, vec![run]), (1, vec![run])].into());
    assert_eq!((object.preserved_by.as_slice(), object.closed), (&[0][..], None));
    assert!(told.moves.contains(&Move::Fill(object.id)));
    let mut again = told.evidence.retrievals.iter();
    let again = again
        .find(|retrieval| retrieval.object == Some(object.id))
        .unwrap();
    assert_eq!((again.generation, again.failure), (1, None));
}

#[test]
fn memory_that_is_not_where_it_was_is_lost_and_the_run_goes_on() {
    let plan = testing::plan(OWN);
    for (found, said) in [
        (
            region("kept", 0x5000_0000, 0x2000),
            "has it at 0x50000000, and it was at 0x40000000",
        ),
        (region("kept", 0x4000_0000, 0x1000), "has it at"),
        (region("kept", 0x4000_0001, 0x2000), "no memory of that name"),
        (region("other", 0x4000_0000, 0x2000), "no memory of that name"),
        (Vec::new(), "no memory of that name"),
    ] {
        let told = talk(&plan, &regions_in(1, Some(found)));
        assert_eq!(told.ending().0, OutcomeKind::SessionLost);
        assert!(told.ending().1.contains(said), "{said}: {:?}", told.ending());
    }
}

#[test]
fn a_first_kernel_without_the_memory_and_a_table_that_cannot_be_read_end_the_run() {
    let plan = testing::plan(OWN);
    let told = talk(&plan, &regions_in(0, Some(region("kept", 0x4000_0000, 0x1000))));
    assert_eq!(told.ending().0, OutcomeKind::SetupFailed);
    assert!(
        told.ending().1.contains("1 pages, expected 2"),
        "{:?}",
        told.ending()
    );
    for generation in [0, 1] {
        let told = talk(&plan, &regions_in(generation, None));
        assert_eq!(told.ending().0, OutcomeKind::MachineFailed);
        assert!(told.ending().1.contains("System.map"), "{:?}", told.ending());
    }
}
