//! What is held out of a source for validation, where no other text is named for that.
//!
//! ```text
//! documents >= 100  a hash of each decides, at max(share, min(0.1, 10 / documents)): ten documents, or a tenth of few
//! fewer           the end of the text, max(share, min(0.1, 64 KiB / bytes)) of it
//! ```
//! So a book, which is one document, is split by place, and a folder of notes has more than one of them to validate on.

use super::DataError;
use super::held_out::HeldOut;
use super::source::Source;
use super::split::Split;
use std::ops::ControlFlow;

/// Fewer documents are split by place.
const FEW: u64 = 100;
/// Documents to hold out at least.
const STORIES: f64 = 10.0;
/// Bytes to hold out at least by place.
const BYTES: f64 = 65_536.0;
/// What these two may take at most.
const MOST: f64 = 0.1;

/// The two sides of a source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Holdout {
    /// To train on.
    pub train: Split,
    /// HeldOut out.
    pub valid: Split,
}

impl Holdout {
    /// At least `share`, 0 < share < 1, of the source. Reads as far as is needed to know, all of it where documents are few.
    /// `stop` ends that with an error.
    pub fn of(source: &Source, share: f64, stop: &dyn Fn() -> bool) -> Result<Holdout, DataError> {
        let enough = ((STORIES / share).ceil() as u64).max(FEW);
        let (mut stories, mut stopped) = (0, false);
        let read = source.stories(&mut |_| {
            stories += 1;
            stopped = stop();
            if stories < enough && !stopped { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if stopped {
            return Err(DataError::Stopped);
        }
        Ok(Holdout::at(share, stories, read.bytes))
    }

    /// Of a text of so many documents and, where these are few, bytes.
    fn at(share: f64, stories: u64, bytes: u64) -> Holdout {
        if stories >= FEW {
            let share = share.max((STORIES / stories as f64).min(MOST));
            return Holdout { train: Split::Train(share), valid: Split::Valid(share) };
        }
        let held = bytes as f64 * share.max((BYTES / bytes.max(1) as f64).min(MOST));
        let at = bytes.saturating_sub((held.ceil() as u64).max(1));
        Holdout { train: Split::Before(at), valid: Split::After(at) }
    }
}

/// All documents of a validation text. `stop` ends that with an error.
pub fn stories_of(valid: &Source, stop: &dyn Fn() -> bool) -> Result<HeldOut, DataError> {
    let (mut held, mut stopped) = (HeldOut::default(), false);
    valid.stories(&mut |story| {
        held.add(story);
        stopped = stop();
        if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if stopped { Err(DataError::Stopped) } else { Ok(held) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{Folder, collect, source};

    #[test]
    fn many_stories_are_held_out_by_hash_and_few_by_place() {
        let hash = |share| Holdout { train: Split::Train(share), valid: Split::Valid(share) };
        let place = |at| Holdout { train: Split::Before(at), valid: Split::After(at) };
        for (share, stories, bytes, holdout) in [
            (0.01, 4_100, 1_000_000, hash(0.01)),
            (0.01, 500, 1_000_000, hash(0.02)),
            (0.05, 200, 1_000_000, hash(0.05)),
            (0.01, 100, 1_000_000, hash(0.1)),
            (0.5, 100, 1_000_000, hash(0.5)),
            (0.01, 1, 1_115_394, place(1_115_394 - 65_536)),
            (0.01, 99, 3_000, place(2_700)),
            (0.01, 1, 100_000_000, place(99_000_000)),
            (0.25, 1, 1_000_000, place(750_000)),
            (0.01, 1, 1, place(0)),
        ] {
            assert_eq!(Holdout::at(share, stories, bytes), holdout, "{share} of {stories}, {bytes} bytes");
        }
    }

    #[test]
    fn a_book_is_split_near_its_end() {
        let folder = Folder::new();
        let book: Vec<String> = (0..20_000).map(|i| format!("Line {i} of the book.")).collect();
        let text = source(&folder, "book.txt", &[&book.join("\n")]);
        let holdout = Holdout::of(&text, 0.01, &|| false).unwrap();
        let side = |split| collect(&text.clone().with_split(split)).concat();
        let (train, valid) = (side(holdout.train), side(holdout.valid));
        assert_eq!(format!("{train}\n{valid}"), book.join("\n"));
        // A tenth, which is less than 64 KiB, from the next line on.
        let tenth = book.join("\n").len() / 10;
        assert!((tenth - 100..=tenth + 1).contains(&valid.len()), "{} of {tenth}", valid.len());
        assert!(valid.starts_with("Line 1"));
    }

    #[test]
    fn stories_of_the_validation_text_are_known() {
        let folder = Folder::new();
        let (a, b) = (source(&folder, "a.txt", &["one", "two", "two"]), source(&folder, "b.txt", &["two", "one"]));
        let held = stories_of(&a, &|| false).unwrap();
        assert!(held.contains("two") && held.contains(" two\r\n") && !held.contains("tw o"));
        assert_eq!(held.digest(), stories_of(&b, &|| false).unwrap().digest());
        let other = source(&folder, "c.txt", &["two", "three"]);
        assert_ne!(held.digest(), stories_of(&other, &|| false).unwrap().digest());
        let left = other.without(held.into());
        assert_eq!(collect(&left), ["three"]);
        let report = left.stories(&mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((report.stories, report.duplicates, report.read), (1, 1, 2));
        assert!(matches!(stories_of(&a, &|| true), Err(DataError::Stopped)));
        assert!(matches!(Holdout::of(&a, 0.1, &|| true), Err(DataError::Stopped)));
    }
}
