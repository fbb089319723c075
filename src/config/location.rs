//! Locations in the text of a configuration.

/// Location in the text. Lines and columns count from 1, columns in characters. Line 0 is the file
/// as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Location {
    pub(super) line: usize,
    pub(super) column: usize,
    /// Number of characters, at least 1.
    pub(super) width: usize,
}

/// Range of the text: line (from 1) and column (from 0, in characters) of its first character, and
/// of the one after its last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TextRange {
    pub(super) from: (usize, usize),
    pub(super) until: (usize, usize),
}

impl Location {
    /// Returns the range of the characters at this location.
    pub(super) fn range(self) -> TextRange {
        let column = self.column.saturating_sub(1);
        TextRange {
            from: (self.line, column),
            until: (self.line, column + self.width),
        }
    }
}
